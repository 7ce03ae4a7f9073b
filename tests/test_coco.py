"""COCO files: which photo belongs to which name, annotations that can't be used, and files written whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.coco import coco_json, find_photos, read_coco, union, write_whole
from app.errors import InvalidInputError
from app.masks import MalformedMaskError
from app.masks.boxes import bbox_of
from app.masks.rle import mask_to_rle, rle_to_mask


def coco_file(folder: Path, **changes: Any) -> Path:
    """A COCO file of one photo with one object."""
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 5, "height": 3}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 3]}],
        "categories": [{"id": 1, "name": "cat"}],
    } | changes
    file = folder / "coco.json"
    file.write_text(json.dumps(content))
    return file


def found(folder: Path, names: list[str], photos: list[str]) -> list[str | None]:
    """Where the photos of these names are found among `photos`, all relative to a folder."""
    for photo in photos:
        (folder / photo).parent.mkdir(parents=True, exist_ok=True)
        (folder / photo).touch()
    coco = read_coco(coco_file(folder, images=[{"id": id, "file_name": name} for id, name in enumerate(names, 1)]))
    paths = find_photos(coco, [folder / "photos"]).values()
    return [path and path.relative_to(folder / "photos").as_posix() for path in paths]


@pytest.mark.parametrize(
    ("names", "photos", "expected"),
    [
        (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["a/1.jpg", "b/1.jpg"], ["b/1.jpg", "1.jpg"], ["1.jpg", "b/1.jpg"]),
        (["photos/1.jpg", "other/1.jpg"], ["1.jpg"], ["1.jpg", None]),  # --images photos
        (["a/1.jpg", "1.jpg"], ["1.jpg"], [None, "1.jpg"]),
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"], [None, None]),  # of which it is, nobody can tell
        (["1f0a9c3e-1.jpg", "1.jpg"], ["1.jpg"], [None, "1.jpg"]),
        (["a/1.jpg", "a/1.jpg"], ["1.jpg"], ["1.jpg", "1.jpg"]),  # in the file twice
    ],
)
def test_a_photo_belongs_to_one_name(tmp_path, names, photos, expected) -> None:
    assert found(tmp_path, names, [f"photos/{photo}" for photo in photos]) == expected


def test_a_size_that_no_photo_has_takes_no_memory(tmp_path) -> None:
    coco = read_coco(coco_file(tmp_path))
    with pytest.raises(MalformedMaskError, match="10000000 × 10000000"):
        union(coco.annotations[1], (10_000_000, 10_000_000))
    endless = {"size": [10_000_000, 10_000_000], "counts": [10**14 - 1, 1]}
    segmentation = [{"image_id": 1, "category_id": 1, "segmentation": endless}]
    coco = read_coco(coco_file(tmp_path, annotations=segmentation))
    with pytest.raises(MalformedMaskError, match="expected run lengths of size"):
        union(coco.annotations[1], (3, 5))


def test_numbers_that_were_written_with_a_point(tmp_path) -> None:
    left = {"size": [3.0, 5.0], "counts": [0.0, 6.0, 9.0]}
    coco = read_coco(coco_file(tmp_path, annotations=[{"image_id": 1, "category_id": 1, "segmentation": left}]))
    assert np.array_equal(union(coco.annotations[1], (3, 5)), np.arange(5) < np.full((3, 1), 2))


@pytest.mark.parametrize("id", [{"image_id": "1"}, {"category_id": "1"}, {"image_id": 7}])
def test_annotations_of_nothing_in_the_file(tmp_path, id: dict[str, object]) -> None:
    file = coco_file(tmp_path, annotations=[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 3]} | id])
    with pytest.raises(InvalidInputError, match="is of its images and categories"):
        read_coco(file)


def test_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("there", "new"):
        link, target = tmp_path / name, tmp_path / "elsewhere" / name
        link.symlink_to(target)
        if name == "there":
            target.write_bytes(b"before")
        write_whole(link, b"content")
        assert link.is_symlink()
        assert target.read_bytes() == b"content"
    assert sorted(file.name for file in (tmp_path / "elsewhere").iterdir()) == ["new", "there"]


def test_a_pipe_stays_a_pipe(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"content")
        assert pipe.is_fifo()
        assert os.read(reader, 99) == b"content"
    finally:
        os.close(reader)


def test_each_part_of_a_mask_can_be_an_annotation() -> None:
    """Two cups of 6 and 20 pixels and a speck; a dog that is a speck itself; a cat that is not there."""
    cups = np.zeros((100, 101), bool)
    cups[3:5, 7:10] = cups[50:54, 60:65] = True
    cups[90, 90] = True
    dog = np.zeros_like(cups)
    dog[0, 0] = True
    found = [
        {"name": name, "area": int(mask.sum()), "bbox": bbox_of(mask), "segmentation": mask_to_rle(mask), "presence": p}
        for name, mask, p in [("cup", cups, 0.9), ("cat", dog & cups, 0.1), ("dog", dog, 0.6)]
    ]
    answers = [("1.jpg", {"image": {"width": 101, "height": 100}, "categories": found})]
    ids = {"cup": 1, "cat": 2, "dog": 3}
    whole, parts = (coco_json(answers, ids, parts=parts)["annotations"] for parts in (False, True))
    assert [(each["category_id"], each["area"]) for each in whole] == [(1, 27), (3, 1)]
    assert [(each["id"], each["category_id"], each["area"], each["score"]) for each in parts] == [
        (1, 1, 6, 0.9),
        (2, 1, 20, 0.9),
        (3, 3, 1, 0.6),
    ]
    assert [each["bbox"] for each in parts] == [[7, 3, 3, 2], [60, 50, 5, 4], [0, 0, 1, 1]]
    larger = cups.copy()
    larger[:50] = larger[54:] = False
    assert np.array_equal(rle_to_mask(parts[1]["segmentation"]), larger)
