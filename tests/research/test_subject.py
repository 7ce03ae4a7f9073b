"""What is taught and measured: the draw of the supports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.errors import InvalidInputError
from app.method.backbone import Backbone
from app.method.prompts import Query
from app.research.dataset import Dataset, LabelledPhoto
from app.research.subject import Options, Subject
from app.services.tuning_job import make_shot

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASSES = ("background", "cat", "dog", "bird")
OPTIONS = Options(protocol="one-shot", crf=False)


def photo(id: str, *classes: int, side: int = 4) -> LabelledPhoto:
    """A photo whose labels have a square of each of its classes, one below the other."""
    labels = np.zeros((40, 40), np.uint8)
    for row, number in enumerate(classes):
        labels[10 * row : 10 * row + side, :side] = number
    return LabelledPhoto(id, Path(id), lambda: labels, classes)


def supports(backbone: Backbone, *photos: LabelledPhoto, seed: int = 0, shots: int = 1) -> dict[int, list[str]]:
    """Ids of the supports of each class."""
    subject = Subject(backbone, Dataset(CLASSES, photos), replace(OPTIONS, shots=shots), lambda *_: None)
    return {number: [photo.id for photo in found] for number, found in subject.supports(seed).items()}


@pytest.mark.parametrize("seed", range(10))
def test_of_every_class_a_photo_is_left_to_measure(tiny: Backbone, seed: int) -> None:
    """The photo that is left of the cat must not teach the dog, nor the one of the bird anything."""
    photos = photo("both", 1, 2), photo("cat", 1), photo("dog", 2), photo("with bird", 1, 2, 3)
    found = supports(tiny, *photos, seed=seed)
    assert set(found) == {1, 2}
    taken = {id for ids in found.values() for id in ids}
    left = {number for photo in photos if photo.id not in taken for number in photo.classes}
    assert left == {1, 2, 3}


def test_a_seed_draws_the_same_supports_again(tiny: Backbone) -> None:
    photos = [photo(str(number), 1) for number in range(9)]
    assert supports(tiny, *photos, seed=1) == supports(tiny, *photos, seed=1)
    assert len({*(supports(tiny, *photos, seed=seed)[1][0] for seed in range(9))}) > 1


def test_as_many_supports_as_shots(tiny: Backbone) -> None:
    photos = [photo(str(number), 1) for number in range(4)]
    assert len(supports(tiny, *photos, shots=3)[1]) == 3
    with pytest.raises(InvalidInputError):
        supports(tiny, *photos, shots=4)


def test_one_file_under_two_ids_is_one_photo(tiny: Backbone) -> None:
    """As in exports that were merged, or where two sets have the same photo."""
    once, again, other = photo("1", 1), replace(photo("2", 1), image=Path("./1")), photo("3", 1)
    with pytest.raises(InvalidInputError, match="No category has a photo to be taught from"):
        supports(tiny, once, again)
    with pytest.raises(InvalidInputError, match="No category has a photo to be taught from"):
        supports(tiny, once, again, other, shots=2)
    cat, dog = photo("1", 1), replace(photo("2", 2), image=Path("1"))
    found = supports(tiny, cat, dog, photo("3", 1), photo("4", 2, 1), photo("5", 1))
    assert set(found) == {1, 2}


@pytest.mark.parametrize("seed", range(10))
def test_of_a_class_whose_photo_another_set_teaches_from_one_is_left(tiny: Backbone, seed: int) -> None:
    """One set marks the cat, another the dog on the same photo: who learns the cat from it has seen the dog."""
    with_cat, with_dog = photo("0/1", 1), replace(photo("1/1", 2), image=Path("0/1"))
    photos = with_cat, photo("0/2", 1), with_dog, photo("1/2", 2)
    found = supports(tiny, *photos, seed=seed)
    taken = {one.image for one in photos for ids in found.values() if one.id in ids}
    left = {number for one in photos if one.image not in taken for number in one.classes}
    assert left == {1, 2}


def test_a_photo_that_shows_too_little_of_a_class_does_not_teach_it(tiny: Backbone) -> None:
    """A support has 0.5 % of its pixels: 8 of 1,600."""
    small, large = photo("small", 1, side=2), photo("large", 1, side=3)
    assert supports(tiny, small, photo("small 2", 1, side=2), large) == {1: ["large"]}


def test_a_set_without_a_second_photo_of_any_class_teaches_nothing(tiny: Backbone) -> None:
    with pytest.raises(InvalidInputError, match="No category has a photo to be taught from"):
        supports(tiny, photo("cat", 1), photo("dog", 2))


def test_a_set_of_which_nothing_can_be_asked_is_refused(tiny: Backbone) -> None:
    with pytest.raises(InvalidInputError, match="No photo shows a class: in a mask"):
        supports(tiny, photo("0 and 255 alone"))
    with pytest.raises(InvalidInputError, match=r"high shows class 4, and the data set has the classes 0 to 3"):
        supports(tiny, photo("high", 4))


def test_a_mask_of_another_size_than_its_photo_is_named(tiny: Backbone, tmp_path: Path) -> None:
    Image.new("RGB", (30, 40)).save(tmp_path / "cat.png")
    cat = replace(photo("cat", 1), image=tmp_path / "cat.png")
    subject = Subject(tiny, Dataset(CLASSES, (cat,)), OPTIONS, lambda *_: None)
    with pytest.raises(InvalidInputError, match=r"cat\.png has 40 × 40 pixels, the photo 30 × 40"):
        subject.labels(cat)


def test_the_pipeline_has_the_settings_of_the_measurement(tiny: Backbone) -> None:
    options = replace(OPTIONS, layers=(1,), use_tiles=True, min_presence=0.3, use_mask_decoder=False)
    pipeline = Subject(tiny, Dataset(CLASSES, (photo("cat", 1),)), options, lambda *_: None).pipeline
    assert (pipeline.layers, pipeline.use_tiles, pipeline.min_presence) == ((1,), True, 0.3)
    assert not pipeline.use_mask_decoder


@pytest.mark.parametrize("times", [1, 3], ids=["in tiles", "in pieces"])
def test_a_photo_is_measured_as_the_service_segments_it(embedded: Backbone, tmp_path: Path, times: int) -> None:
    """A photo of a cat, or three beside each other, which are more than four times as long as high."""
    with Image.open(EXAMPLES / "chelsea.jpg") as file:
        rgb = np.tile(np.array(file.convert("RGB")), (1, times, 1))
    Image.fromarray(rgb).save(tmp_path / "cat.png")
    cat = replace(photo("cat", 1), image=tmp_path / "cat.png")
    subject = Subject(embedded, Dataset(CLASSES, (cat,)), replace(OPTIONS, use_tiles=True), lambda *_: None)
    found = subject.predict(cat, [3, 1])
    served = subject.pipeline.run(rgb, [Query(("bird",)), Query(("cat",))]).class_map
    assert 1 in found.classes
    assert found.classes == tuple((0, 3, 1)[number] for number in served.classes)
    assert torch.equal(found.probabilities, served.probabilities)
    assert torch.equal(found.presence, served.presence)
    assert subject.framed(cat).frame.photo_hw == rgb.shape[:2]


def test_an_example_smaller_than_the_pixels_of_the_input_is_an_example_as_in_the_service(
    tiny: Backbone, tmp_path: Path
) -> None:
    """Of each four pixels that become one, the first alone shows the class: the nearest one is another."""
    side = 2 * tiny.input_size
    Image.new("RGB", (side, side)).save(tmp_path / "cat.png")
    mask = np.zeros((side, side), bool)
    mask[::2, ::2] = True
    cat = LabelledPhoto("cat", tmp_path / "cat.png", lambda: mask.astype(np.uint8), (1,))
    shot = Subject(tiny, Dataset(CLASSES, (cat,)), OPTIONS, lambda *_: None).shot(cat, 1)
    served = make_shot(tiny, np.zeros((side, side, 3), np.uint8), mask)
    assert torch.equal(shot.target, served.target)
    assert torch.equal(shot.inside, served.inside)
    assert shot.target.unique().tolist() == [0.25]


def test_ignored_pixels_of_an_example_are_neither_in_nor_out(tiny: Backbone, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "cat.png")
    labels = np.zeros((40, 40), np.uint8)
    labels[:8], labels[-8:] = 1, 255
    cat = LabelledPhoto("cat", tmp_path / "cat.png", lambda: labels, (1,))
    shot = Subject(tiny, Dataset(CLASSES, (cat,)), OPTIONS, lambda *_: None).shot(cat, 1)
    assert shot.inside[-1].max() == 0
    assert shot.inside[0].min() == 1
    assert shot.target[0].min() == 1
