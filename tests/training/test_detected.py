"""Labels by an object detector: what the network marks inside its boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.backbones.embedded import DEFAULT_LAYERS, Embedded
from training.detected import Detection, label_detected
from training.detector import detections
from training.photos import UNKNOWN, Photo, load
from training.vocabulary import SYNONYMS

IMAGENET = ["tabby"] * 1000


@pytest.fixture
def dog(photos: list[Photo], tmp_path: Path) -> Photo:
    """A photo of a dog in which nothing is labelled."""
    file = tmp_path / "none.png"
    with Image.open(photos[2].image) as image:
        Image.new("L", image.size).save(file)
    return replace(photos[2], labels=file, regions={})


def labelled(model: Embedded, photo: Photo, *found: Detection) -> tuple[Photo, np.ndarray]:
    """The photo, and its labels or those of its file."""
    given = {photo.image: list(found)}
    (made,), labels = label_detected(model, [photo], {}, given, imagenet=IMAGENET, layers=DEFAULT_LAYERS)
    sample = load(made, labels.get(photo.image))
    return made, sample.labels


def test_what_is_marked_in_a_box_is_labelled(embedded: Embedded, photos: list[Photo], dog: Photo) -> None:
    made, labels = labelled(embedded, dog, Detection("dog", 0.9, 0.02, 0.02, 0.9, 0.96))
    assert [region.names for region in made.regions.values()] == [("dog", "puppy")]
    truth = load(photos[2]).labels == 1
    assert ((labels == 1) & truth).sum() / ((labels == 1) | truth).sum() > 0.7
    assert (labels[:, round(0.96 * labels.shape[1]) :] == 0).all()  # outside the box, and its margin, nothing changes


def test_what_is_not_found_in_its_box_is_unknown(embedded: Embedded, dog: Photo) -> None:
    made, labels = labelled(embedded, dog, Detection("toaster", 0.9, 0.0, 0.0, 0.25, 0.25))
    assert not made.regions
    assert "toaster" in made.uncertain
    height, width = labels.shape
    assert (labels[: height // 4, : width // 4] == UNKNOWN).all()
    assert (labels[height // 2 :] == 0).all()


def test_what_is_perhaps_there_is_no_negative(embedded: Embedded, dog: Photo) -> None:
    made, labels = labelled(embedded, dog, Detection("cat", 0.2, 0.1, 0.1, 0.8, 0.8))
    assert {"cat", *SYNONYMS["cat"]} <= made.uncertain
    assert not labels.any()


def test_what_is_labelled_stays(embedded: Embedded, photos: list[Photo]) -> None:
    found = [Detection("dog", 0.9, 0.0, 0.0, 1.0, 1.0), Detection("couch", 0.9, 0.0, 0.0, 1.0, 1.0)]
    made, labels = labelled(embedded, photos[2], *found)
    truth = load(photos[2]).labels == 1
    assert (labels[truth] == 1).all()  # by its own mask, whatever the detector says
    assert made.regions[1] == photos[2].regions[1]


def test_detections_are_read_back(tmp_path: Path) -> None:
    kept = tmp_path / "detections.json"
    kept.write_text('{"a.jpg": [["dog", 0.9, 0.1, 0.2, 0.3, 0.4]]}')
    assert detections([], remembered=kept) == {Path("a.jpg"): [Detection("dog", 0.9, 0.1, 0.2, 0.3, 0.4)]}
