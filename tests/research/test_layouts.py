"""COCO and VOC data sets: what is read of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.errors import InvalidInputError
from app.images.photo import decode_photo
from app.masks.rle import mask_to_rle
from app.research.dataset import Dataset, joined
from app.research.layouts import VOC_CLASSES, read_dataset

HW = (11, 13)


def read(data: Path, **options: Any) -> Dataset:
    return read_dataset(data, **({"split": None, "ids": None, "limit": None} | options))


def photo(file: Path, *, turned: bool = False) -> None:
    """A photo of HW; stored on its side, with the EXIF orientation that says so, if it is turned."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*HW, 3), dtype=np.uint8))
    exif = Image.Exif()
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    image.save(file, exif=exif)


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[rows, columns] = True
    return mask


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., Path]:
    """Writes a COCO data set of two photos: a large cat with a small dog on it, and a crowd of dogs."""

    def written(name: str = "instances_val.json", **changes: Any) -> Path:
        photo(tmp_path / "images" / "1.jpg")
        photo(tmp_path / "images" / "2.jpg", turned=True)
        height, width = HW
        content = {
            "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
            "images": [
                {"id": 1, "file_name": "1.jpg", "height": height, "width": width},
                {"id": 2, "file_name": "2.jpg", "height": height, "width": width},
            ],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 18, "segmentation": [[3, 3, 6, 3, 6, 6, 3, 6]], "area": 9},
                {
                    "id": 2,
                    "image_id": 1,
                    "category_id": 17,
                    "segmentation": mask_to_rle(block(slice(1, 8), slice(2, 9))),
                    "area": 49,
                },
                {
                    "id": 3,
                    "image_id": 2,
                    "category_id": 18,
                    "segmentation": mask_to_rle(block(slice(0, 5), slice(0, 5))),
                    "area": 25,
                    "iscrowd": 1,
                },
            ],
        } | changes
        file = tmp_path / "annotations" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
        return file

    return written


def test_coco_annotations_become_labels(coco, tmp_path: Path) -> None:
    coco()
    dataset = read(tmp_path)
    assert dataset.classes == ("background", "dog", "cat")
    first, second = dataset.photos
    assert (first.id, first.classes, second.id, second.classes) == ("1", (1, 2), "2", ())
    assert (first.crowds, second.crowds) == ((), (1,))
    expected = np.zeros(HW, np.uint8)
    expected[1:8, 2:9] = 2
    expected[3:6, 3:6] = 1  # the smaller object lies on the larger one
    assert (first.read_labels() == expected).all()
    assert (second.read_labels() == np.where(block(slice(0, 5), slice(0, 5)), 255, 0)).all()
    assert first.read().shape == second.read().shape == (*HW, 3)  # the second one is stored on its side


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_read_as_the_service_reads_it(coco, tmp_path: Path, orientation: int) -> None:
    file = coco()
    stored = np.random.default_rng(3).integers(0, 256, (*HW, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "images" / "1.jpg", exif=exif)
    seen = decode_photo((tmp_path / "images" / "1.jpg").read_bytes(), max_pixels=1000).rgb
    content = json.loads(file.read_text())
    for item, hw in ((content["images"][0], seen.shape), (content["images"][1], HW)):
        item["height"], item["width"] = hw[:2]
    content["annotations"] = []
    file.write_text(json.dumps(content))
    first, _ = read(file).photos
    assert (first.read() == seen).all()
    if orientation > 4:  # a tool that does not turn photos gives the size as it is stored
        content["images"][0] |= {"height": HW[0], "width": HW[1]}
        file.write_text(json.dumps(content))
        assert read(file).photos[0].read().shape == (*HW, 3)


def test_a_16_bit_photo_is_read_as_the_service_reads_it(coco, tmp_path: Path) -> None:
    file = coco(images=[{"id": 1, "file_name": "1.png"}], annotations=[])
    Image.fromarray(np.full(HW, 1000, np.uint16)).save(tmp_path / "images" / "1.png")
    (first,) = read(file).photos
    assert (first.read() == round(1000 * 255 / 65535)).all()


@pytest.mark.parametrize("bad_ring", [[1, 1, 2, 2], []])
def test_rings_of_fewer_than_three_corners_are_left_out(coco, bad_ring: list[int]) -> None:
    ring = [3, 3, 6, 3, 6, 6, 3, 6]
    dog = {"id": 1, "image_id": 1, "category_id": 18, "area": 9}
    (whole, _) = read(coco(annotations=[dog | {"segmentation": [ring]}])).photos
    (some, _) = read(coco(annotations=[dog | {"segmentation": [bad_ring, ring]}])).photos
    (boxed, _) = read(coco(annotations=[dog | {"segmentation": [bad_ring], "bbox": [3, 3, 3, 3]}])).photos
    assert whole.read_labels().sum() == 9
    assert (some.read_labels() == whole.read_labels()).all()
    assert (boxed.read_labels() == whole.read_labels()).all()


def test_coco_sets_are_selected_and_joined(coco, tmp_path: Path) -> None:
    file = coco()
    coco("instances_train.json", images=[{"id": 1, "file_name": "1.jpg"}])
    (tmp_path / "annotations" / "captions_val.json").write_text("{}")
    assert len(read(tmp_path, split="val").photos) == 2
    (only,) = read(tmp_path, split="train").photos
    assert only.read_labels().shape == HW  # a file without sizes: they are those of the photo
    with pytest.raises(InvalidInputError, match=r"instances_train\.json, instances_val\.json: choose with --split"):
        read(tmp_path)
    keep = tmp_path / "ids.json"
    keep.write_text("[2]")
    assert [photo.id for photo in read(file, ids=keep).photos] == ["2"]
    assert len(read(file, limit=1).photos) == 1
    both = joined([read(file), read(file, images=tmp_path / "images")])
    assert [photo.id for photo in both.photos] == ["0/1", "0/2", "1/1", "1/2"]
    assert both.photos[1].crowds == (1,)


def test_a_coco_split_is_named_with_or_without_its_year(coco, tmp_path: Path) -> None:
    file = coco("instances_train2017.json")
    with pytest.raises(InvalidInputError, match=r"of split val, it has instances_train2017\.json"):
        read(tmp_path, split="val")
    with pytest.raises(InvalidInputError, match="of split nosuch"):
        read(file, split="nosuch")
    coco("instances_val2017.json", images=[{"id": 1, "file_name": "1.jpg"}])
    for split in ("val", "val2017"):
        assert len(read(tmp_path, split=split).photos) == 1
    assert len(read(file, split="train").photos) == 2


def test_a_coco_category_named_background_is_the_background(coco) -> None:
    categories = [{"id": 17, "name": "background"}, {"id": 18, "name": "dog"}]
    dataset = read(coco(categories=categories))
    assert dataset.classes == ("background", "dog")
    assert dataset.photos[0].classes == (1,)
    assert set(np.unique(dataset.photos[0].read_labels())) == {0, 1}


def test_photos_that_are_not_there_are_told_of_also_where_ids_choose(coco, tmp_path: Path) -> None:
    file = coco(images=[{"id": 1, "file_name": "elsewhere.jpg"}])
    keep = tmp_path / "ids.json"
    keep.write_text("[1]")
    with pytest.raises(InvalidInputError, match=r"such as elsewhere\.jpg: name their folder with --images"):
        read(file, ids=keep)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"annotations": 3}, "not a COCO instances file"),
        ({"images": [{"id": 1, "file_name": "elsewhere.jpg"}]}, "such as elsewhere.jpg: name their folder"),
        ({"images": []}, "No photo is left"),
        ({"categories": [{"id": id, "name": str(id)} for id in range(255)]}, "at most 254"),
    ],
)
def test_a_coco_file_that_can_not_be_measured(coco, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        read(coco(**changes))


def test_an_annotation_that_can_not_be_drawn_is_named(coco) -> None:
    broken = {"id": 1, "image_id": 1, "category_id": 18, "segmentation": {"size": [2, 2], "counts": [4]}}
    (first, _) = read(coco(annotations=[broken])).photos
    with pytest.raises(InvalidInputError, match=r"An annotation of 1\.jpg can't be drawn"):
        first.read_labels()


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A folder in VOC's layout: a cat (8) and a person (15) with an edge in one photo, nothing in the other."""
    labels = np.zeros(HW, np.uint8)
    labels[2:5, 2:5] = 8
    labels[6:9, 6:9] = 15
    labels[9, 6:9] = 255
    (tmp_path / "SegmentationClass").mkdir()
    for name, values in {"2007_1": labels, "2007_2": np.zeros(HW, np.uint8)}.items():
        photo(tmp_path / "JPEGImages" / f"{name}.jpg")
        image = Image.fromarray(values)
        image.putpalette([level for level in range(256) for _ in range(3)])
        image.save(tmp_path / "SegmentationClass" / f"{name}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_1\n")
    return tmp_path


def test_voc_labels_are_class_numbers(voc: Path) -> None:
    dataset = read(voc)
    assert dataset.classes == VOC_CLASSES
    first, second = dataset.photos
    assert (first.id, first.classes, second.classes) == ("2007_1", (8, 15), ())
    assert [dataset.classes[number] for number in first.classes] == ["cat", "person"]
    assert first.read_labels()[9, 7] == 255
    assert first.read().shape == (*HW, 3)
    assert [photo.id for photo in read(voc, split="val").photos] == ["2007_1"]
    assert len(read(voc, limit=1).photos) == 1
    with pytest.raises(InvalidInputError, match=r"test\.txt"):
        read(voc, split="test")


def test_voc_with_the_colours_of_a_labelling_tool(voc: Path) -> None:
    (voc / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\ncup:10,20,30::\nbackground:0,0,0::\nplate:40,50,60::\n"
    )
    pixels = np.zeros((*HW, 3), np.uint8)
    pixels[1:3, 1:3] = (10, 20, 30)
    pixels[5:7, 5:7] = (40, 50, 60)
    pixels[8, 8] = (224, 224, 192)
    Image.fromarray(pixels).save(voc / "SegmentationClass" / "2007_1.png")
    dataset = read(voc)
    assert dataset.classes == ("background", "cup", "plate")
    labels = dataset.photos[0].read_labels()
    assert (labels[1, 1], labels[5, 5], labels[8, 8], labels[0, 0]) == (1, 2, 255, 0)


def test_voc_in_colours_without_their_list(voc: Path) -> None:
    Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(voc / "SegmentationClass" / "2007_1.png")
    with pytest.raises(InvalidInputError, match=r"put labelmap\.txt into the folder"):
        read(voc)
    (voc / "labelmap.txt").write_text("cup\n")
    with pytest.raises(InvalidInputError, match="name:red,green,blue"):
        read(voc)


def test_voc_names_may_have_spaces_and_folders(voc: Path, tmp_path: Path) -> None:
    for name in ("a/my photo", "b/my photo", "b/other"):
        photo(voc / "JPEGImages" / f"{name}.jpg")
        mask = voc / "SegmentationClass" / f"{name}.png"
        mask.parent.mkdir(exist_ok=True)
        mask.write_bytes((voc / "SegmentationClass" / "2007_1.png").read_bytes())
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("a/my photo\nb/other\n")
    assert [each.id for each in read(voc, split="train").photos] == ["a/my photo", "b/other"]
    keep = tmp_path / "ids.json"
    keep.write_text('["a/my photo", "other", "2007_2"]')
    assert [each.id for each in read(voc, ids=keep).photos] == ["2007_2", "a/my photo", "b/other"]
    keep.write_text('["my photo", "other"]')  # two folders have "my photo"
    assert [each.id for each in read(voc, ids=keep).photos] == ["b/other"]
