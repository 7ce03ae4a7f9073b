"""Pseudo-labels by the model: the object where the model is certain, unknown where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.photos import UNKNOWN, Photo, Region
from training.pseudo_labels import own_labels

EXAMPLES = Path(__file__).parents[2] / "examples"


def photo(file: str, name: str) -> Photo:
    return Photo(EXAMPLES / file, None, {1: Region((name,), frozenset({name}))})


def nothing(photos: list[Photo]) -> dict[Path, np.ndarray]:
    """First guesses that say nothing."""
    return {one.image: np.full_like(grey(one.image), UNKNOWN) for one in photos}


def grey(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("L"))


@pytest.mark.parametrize(("file", "name"), [("chelsea.jpg", "cat"), ("dog.jpg", "dog")])
def test_what_is_there_is_marked(embedded, file: str, name: str) -> None:
    photos = [photo(file, name)]
    labels = own_labels(embedded, photos, nothing(photos), layers=embedded.default_layers)[EXAMPLES / file]
    truth = grey(EXAMPLES / file.replace(".jpg", "_mask.png")) > 0
    assert set(np.unique(labels)) == {0, 1, UNKNOWN}
    marked = labels == 1
    assert (marked & truth).sum() / (marked | truth).sum() > 0.6
    assert (truth & (labels == 0)).sum() / truth.sum() < 0.15  # little of it is called background


def test_what_was_an_object_before_does_not_become_background(embedded) -> None:
    photos = [photo("dog.jpg", "dog")]
    first = nothing(photos)
    first[EXAMPLES / "dog.jpg"][:] = 1
    labels = own_labels(embedded, photos, first, layers=embedded.default_layers)[EXAMPLES / "dog.jpg"]
    assert set(np.unique(labels)) == {1, UNKNOWN}


def test_a_photo_in_which_it_is_not_found_is_left_out(embedded) -> None:
    photos = [photo("coffee.jpg", "elephant"), photo("dog.jpg", "dog")]
    found = own_labels(embedded, photos, nothing(photos), layers=embedded.default_layers)
    assert list(found) == [EXAMPLES / "dog.jpg"]
