"""Training photos: augmentation changes a photo and its labels alike."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from training.photos import SIZE, Region, Sample, imagenet_names, mosaic, named_photos, paste, vary


def red_square(names: tuple[str, ...] = ("square",)) -> Sample:
    """A grey photo with a red square on it, and its label."""
    rgb = np.full((131, 173, 3), 90, np.uint8)
    labels = np.zeros((131, 173), np.uint8)
    rgb[40:90, 60:120] = (220, 20, 20)
    labels[40:90, 60:120] = 1
    return Sample(rgb, labels, [Region(names, frozenset(names))])


def redness(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., 0].astype(int) - rgb[..., 1] > 40


@pytest.mark.parametrize("seed", range(7))
def test_a_varied_photo_keeps_its_labels_in_place(seed: int) -> None:
    varied = vary(red_square(), random.Random(seed))
    assert varied.rgb.shape == (SIZE, SIZE, 3)
    red, labelled = redness(varied.rgb), varied.labels == 1
    assert (red & labelled).sum() / max(1, (red | labelled).sum()) > 0.93


def test_a_pasted_region_brings_its_pixels_and_its_name() -> None:
    plain = Sample(np.full((151, 127, 3), 90, np.uint8), np.zeros((151, 127), np.uint8), [])
    both = paste(plain, red_square(), random.Random(3))
    assert [region.names for region in both.regions] == [("square",)]
    red, labelled = redness(both.rgb), both.labels == 1
    assert labelled.sum() > 100
    assert (red & labelled).sum() / (red | labelled).sum() > 0.9


def test_a_region_of_a_name_that_is_there_joins_it() -> None:
    both = paste(red_square(), red_square(), random.Random(5))
    assert len(both.regions) == 1
    assert set(np.unique(both.labels)) == {0, 1}


def test_two_classes_of_one_name_stay_apart(tmp_path: Path) -> None:
    """ImageNet's crane is a bird, and another class a machine."""
    for folder, labels in (
        ("imagenet_samples", [{"file": f"{n}.jpg", "wnid": f"n0{n}", "name": "Crane"} for n in (2, 1)]),
        ("caltech_part", []),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "labels.json").write_text(json.dumps({"images": labels, "text": {}}))
    found = named_photos(tmp_path, imagenet=imagenet_names(tmp_path), without=set())
    assert [(photo.image.name, photo.guess) for photo in found] == [("1.jpg", (0,)), ("2.jpg", (1,))]


def test_a_mosaic_keeps_every_region_in_its_quarter() -> None:
    plain = Sample(np.full((151, 127, 3), 90, np.uint8), np.zeros((151, 127), np.uint8), [], {"hat"})
    four = mosaic([red_square(), plain, plain, red_square(("box",))])
    assert [region.names for region in four.regions] == [("square",), ("box",)]
    assert four.uncertain == {"hat"}
    half = SIZE // 2
    assert set(np.unique(four.labels[:half, :half])) == {0, 1}
    assert set(np.unique(four.labels[half:, half:])) == {0, 2}
    assert not four.labels[:half, half:].any()
    red = redness(four.rgb)
    assert (red & (four.labels > 0)).sum() / (red | (four.labels > 0)).sum() > 0.9
