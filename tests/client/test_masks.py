"""What is made of an answer: arrays, label map, COCO, pictures, objects of other libraries."""

from __future__ import annotations

import io
import json
import sys
from hashlib import sha256
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from exemplar_client import Client, Invalid, Mask, Masks, coco_instances
from exemplar_client.masks import Segmented
from exemplar_client.photos import ImageInput, open_photo

from .conftest import HW, noise


def encoded(bits: np.ndarray) -> dict[str, object]:
    packed = coco_mask.encode(np.asfortranarray(bits, dtype=np.uint8))
    return {"size": list(bits.shape), "counts": packed["counts"].decode()}


def found(name: str, bits: np.ndarray, presence: float = 0.75) -> dict[str, object]:
    """One category of an answer, as the service writes it."""
    return {
        "name": name,
        "adapted": False,
        "presence": presence,
        "match_score": 0.5,
        "mean_probability": 0.9,
        "area": int(bits.sum()),
        "bbox": coco_mask.toBbox(coco_mask.encode(np.asfortranarray(bits, dtype=np.uint8))).astype(int).tolist(),
        "segmentation": encoded(bits),
    }


def masks_of(*, photo: ImageInput | None = None, **categories: np.ndarray) -> Masks:
    opened = open_photo(noise() if photo is None else photo)
    answer = {
        "image": {"width": HW[1], "height": HW[0], "sha256": sha256(opened.content()).hexdigest()},
        "backbone": {"name": "tiny", "revision": "0"},
        "categories": [found(name, bits) for name, bits in categories.items()],
        "timings_ms": {"answer": 1.0},
    }
    return Masks(Segmented.model_validate(answer), opened)


@pytest.fixture
def other() -> np.ndarray:
    """A mask of columns 25 to 40 of rows 15 to 31; it overlaps `marked`."""
    bits = np.zeros(HW, dtype=bool)
    bits[15:31, 25:40] = True
    return bits


@pytest.fixture
def masks(marked: np.ndarray, other: np.ndarray) -> Masks:
    """A cat, no dog, and a bird on the cat."""
    return masks_of(Cat=marked, dog=np.zeros(HW, bool), bird=other)


def test_a_sequence_with_names(masks: Masks, marked: np.ndarray) -> None:
    assert len(masks) == 3
    assert [mask.name for mask in masks] == masks.names == ["Cat", "dog", "bird"]
    assert masks[0] is masks["Cat"] is masks["cat "]
    assert [mask.name for mask in masks[1:]] == ["dog", "bird"]
    assert "CAT" in masks
    assert "fish" not in masks
    assert masks[2] in masks
    assert masks.index(masks["dog"]) == 1
    with pytest.raises(KeyError, match="'fish' is not among the categories of this answer: Cat, dog, bird"):
        masks["fish"]
    assert [mask.name for mask in masks.found] == ["Cat", "bird"]
    assert (masks["cat"].area, masks["cat"].bbox) == (300, (10, 5, 20, 15))
    assert repr(masks) == "<Masks of image.png: Cat 0.75, bird 0.75 (3 categories)>"


def test_arrays(masks: Masks, marked: np.ndarray, other: np.ndarray) -> None:
    cat = masks["cat"].array
    assert cat.dtype == bool
    assert (cat == marked).all()
    assert cat is masks["cat"].array
    with pytest.raises(ValueError, match="read-only"):
        cat[0, 0] = True
    assert not masks["dog"].array.any()
    labels = np.where(other, 3, np.where(marked, 1, 0))
    assert masks.labels.dtype == np.uint8
    assert (masks.labels == labels).all()


def test_more_categories_than_a_palette_holds(marked: np.ndarray) -> None:
    many = masks_of(**{f"category {number}": marked for number in range(257)})
    assert many.labels.dtype == np.uint16
    assert many.labels.max() == 257
    with pytest.raises(Invalid, match="at most 255"):
        many.to_png()


def test_a_label_map_is_that_of_the_service(client: Client, photo: Path) -> None:
    names = ["cat", "dog", "猫", "bird", "tree", "house", "car", "apple"]
    ours = client.segment(photo, names, min_presence=0, background="sky").to_png()
    theirs = httpx2.post(
        f"{client._calls._service.url}/segment",
        files={"image": photo.read_bytes()},
        data={"categories": names, "min_presence": "0", "background": "sky"},
        headers={"Accept": "image/png"},
    ).content
    with Image.open(io.BytesIO(ours)) as a, Image.open(io.BytesIO(theirs)) as b:
        assert a.mode == b.mode == "P"
        assert np.asarray(a).any()
        assert (np.asarray(a) == np.asarray(b)).all()
        assert a.getpalette() == b.getpalette()
        assert a.info["categories"] == b.info["categories"] == json.dumps(names, ensure_ascii=False)


def test_coco_annotations(masks: Masks) -> None:
    annotations = masks.to_coco(image_id=7, first_id=11)
    assert [each["id"] for each in annotations] == [11, 12]
    assert [each["category_id"] for each in annotations] == [1, 3]
    assert annotations[0] == {
        "id": 11,
        "image_id": 7,
        "category_id": 1,
        "segmentation": masks["cat"].rle,
        "area": 300,
        "bbox": [10, 5, 20, 15],
        "iscrowd": 0,
        "score": 0.75,
    }
    assert [each["category_id"] for each in masks.to_coco(category_ids={"Cat": 5, "bird": 4})] == [5, 4]
    with pytest.raises(Invalid, match="no id of bird"):
        masks.to_coco(category_ids={"Cat": 5})


def test_a_coco_file_is_read_by_pycocotools(
    masks: Masks, marked: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco_instances([masks, masks_of(fish=marked, cat=marked)])))
    coco = COCO(path)
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == ["Cat", "dog", "bird", "fish"]
    assert [(each["width"], each["height"]) for each in coco.loadImgs(coco.getImgIds())] == [(47, 31)] * 2
    assert sorted(coco.anns) == [1, 2, 3, 4]
    (fish,) = coco.loadAnns(coco.getAnnIds(imgIds=[2], catIds=coco.getCatIds(["fish"])))
    assert (decoded_by_pycocotools(coco.annToRLE(fish)) == marked).all()


def decoded_by_pycocotools(rle: dict[str, object]) -> np.ndarray:
    # Its own decoder warns under NumPy 2; the area and the box say as much of a rectangle.
    x, y, width, height = coco_mask.toBbox(rle).astype(int)
    bits = np.zeros(HW, bool)
    bits[y : y + height, x : x + width] = True
    assert bits.sum() == coco_mask.area(rle)
    return bits


def test_category_ids_of_a_file_may_be_given(masks: Masks) -> None:
    ids = {"Cat": 17, "dog": 18, "bird": 16}
    written = coco_instances([masks], category_ids=ids)
    assert {each["name"]: each["id"] for each in written["categories"]} == ids
    with pytest.raises(Invalid, match="bird"):
        coco_instances([masks], category_ids={"Cat": 1})


def file_names(photos: list[ImageInput]) -> list[str]:
    """Names in the COCO file of these photos, in their order."""
    return [image["file_name"] for image in coco_instances(masks_of(photo=photo) for photo in photos)["images"]]


def test_photos_of_subfolders_keep_their_names_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [Path("two", folder, name) for folder in ("a", "b") for name in ("1.png", "2.png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise()).save(path)
    named = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert file_names([str(path) for path in paths]) == named
    assert file_names([paths[0], paths[1].absolute(), paths[2].absolute().as_uri(), Path("two/a/../b/2.png")]) == named
    assert file_names(list(paths[:2])) == ["1.png", "2.png"]
    assert file_names([paths[0]]) == ["1.png"]


def test_photos_without_a_path_are_numbered(photo: Path) -> None:
    taken = photo.with_name("image_2.png")
    taken.write_bytes(photo.read_bytes())
    content = photo.read_bytes()
    given = [noise(), content, noise(), taken, content, io.BytesIO(content), photo, photo]
    numbered = ["image.png", "image", "image_3.png", "image_2.png", "image_2", "image_3", "photo.png", "photo_2.png"]
    assert file_names(given) == numbered


def test_names_in_several_spellings_are_one_category(marked: np.ndarray) -> None:
    results = [masks_of(**{name: marked}) for name in ("Cat", "cat", "cafe\N{COMBINING ACUTE ACCENT}", "Café")]
    coco = coco_instances(results)
    assert [each["name"] for each in coco["categories"]] == ["Cat", "cafe\N{COMBINING ACUTE ACCENT}"]
    assert [each["category_id"] for each in coco["annotations"]] == [1, 1, 2, 2]
    named = coco_instances(results, category_ids={"CAT": 7, "café": 8})
    assert [each["category_id"] for each in named["annotations"]] == [7, 7, 8, 8]


@pytest.mark.parametrize("size", [HW, (5, 7)])
def test_a_photo_that_has_changed_since_is_not_painted(marked: np.ndarray, photo: Path, size: tuple[int, int]) -> None:
    masks = masks_of(photo=photo, cat=marked)
    assert masks.overlay().size == (47, 31)
    Image.fromarray(noise(*size, seed=8)).save(photo)
    with pytest.raises(Invalid, match=r"photo\.png has changed since"):
        masks.overlay()


def test_overlay(masks: Masks, marked: np.ndarray, other: np.ndarray) -> None:
    painted = np.asarray(masks.overlay())
    photo = np.asarray(masks.photo())
    assert (photo == noise()).all()
    changed = (painted != photo).any(axis=2)
    assert changed[other].mean() > 0.9
    assert not changed[:4].any()
    with Image.open(io.BytesIO(masks._repr_png_())) as shown:
        assert (np.asarray(shown) == painted).all()


def test_a_picture_for_a_notebook_is_small(marked: np.ndarray) -> None:
    answer = masks_of(cat=marked)
    large = Masks(answer._answer.model_copy(update={"categories": []}), open_photo(np.zeros((90, 2048, 3), np.uint8)))
    with Image.open(io.BytesIO(large._repr_png_())) as shown:
        assert shown.size == (1024, 45)


def test_the_overlay_of_a_taught_category(client: Client, photo: Path, marked: np.ndarray) -> None:
    client.teach("overlaid é", photo, marked).wait(progress=False)
    masks = client.segment(photo, ["overlaid é", "猫"], min_presence=0)
    assert masks[0].adapted
    assert masks[0].adapter_version == 1
    assert masks.overlay().size == (47, 31)
    client.delete("overlaid é")


def test_what_newer_services_add_is_read(marked: np.ndarray) -> None:
    mask = Mask.model_validate(found("cat", marked) | {"adapter_problem": "It is damaged.", "found": True})
    assert mask.adapter_problem == "It is damaged."


def test_plot(masks: Masks) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = masks.plot()
    assert axes.get_title() == "Cat 0.75, bird 0.75"
    assert masks.plot(axes) is axes
    pyplot.close("all")


def test_supervision(masks: Masks, marked: np.ndarray) -> None:
    pytest.importorskip("supervision")
    detections = masks.to_supervision()
    assert detections.xyxy.tolist() == [[10, 5, 30, 20], [25, 15, 40, 31]]
    assert (detections.mask[0] == marked).all()
    assert detections.class_id.tolist() == [0, 2]
    assert detections.data["class_name"].tolist() == ["Cat", "bird"]
    assert len(masks_of(dog=np.zeros(HW, bool)).to_supervision()) == 0


def test_fiftyone(masks: Masks) -> None:
    pytest.importorskip("fiftyone")
    cat, bird = masks.to_fiftyone().detections
    assert (cat.label, bird.label) == ("Cat", "bird")
    assert cat.bounding_box == [10 / 47, 5 / 31, 20 / 47, 15 / 31]
    assert cat.mask.shape == (15, 20)
    assert cat.mask.all()


def test_other_libraries_are_imported_when_they_are_needed(masks: Masks, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("supervision", "fiftyone"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=name):
            getattr(masks, f"to_{name}")()
