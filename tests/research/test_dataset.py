"""The data folder that `evaluate` reads: its format, and the selection of photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import InvalidInputError
from app.research.dataset import Dataset, LabelledPhoto, joined
from app.research.layouts import read_dataset


def test_split_ids_and_limit_choose_photos(folder: Path, tmp_path: Path) -> None:
    assert [photo.id for photo in read_dataset(folder, split="val", ids=None, limit=None).photos] == ["chelsea"]
    keep = tmp_path / "ids.json"
    keep.write_text('["kitten", "astronaut"]')
    assert [p.id for p in read_dataset(folder, split=None, ids=keep, limit=None).photos] == ["astronaut", "kitten"]
    assert len(read_dataset(folder, split=None, ids=None, limit=3).photos) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"classes": ["a"]}', '{"classes": 3, "images": [{"id": 1}]}'])
def test_a_folder_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(InvalidInputError, match="index"):
        read_dataset(tmp_path, split=None, ids=None, limit=None)


def test_nothing_left_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="--split"):
        read_dataset(folder, split="no such split", ids=None, limit=None)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.zeros((512, 512, 3), np.uint8), "one class number per pixel"),
        (np.full((512, 512), 3, np.uint8), "class 3, and the data set has the classes 0 to 2"),
    ],
)
def test_a_mask_that_has_no_class_numbers_is_named(folder: Path, mask: np.ndarray, told: str) -> None:
    Image.fromarray(mask).save(folder / "masks" / "kitten.png")
    photos = {photo.id: photo for photo in read_dataset(folder, split=None, ids=None, limit=None).photos}
    with pytest.raises(InvalidInputError, match=rf"kitten\.jpg has.*{told}"):
        photos["kitten"].read_labels()


def test_ignored_pixels_stay_ignored_where_sets_are_joined(folder: Path) -> None:
    labels = np.full((40, 40), 255, np.uint8)
    labels[0, :2] = 0, 1
    photo = LabelledPhoto("1", folder / "1.jpg", lambda: labels, (1,))
    both = joined([Dataset(("background", "dog"), (photo,)), Dataset(("background", "cat"), (photo,))])
    assert both.classes == ("background", "dog", "cat")
    assert both.photos[1].read_labels()[0, :3].tolist() == [0, 2, 255]
