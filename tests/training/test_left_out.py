"""Categories that are left out of the training, and results that a run with other photos must not reuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from app.backbones import embedded
from app.backbones.embedded.model import dequantised
from training import __main__ as training
from training.batches import Collections, Material
from training.detected import Detection
from training.losses import Vocabulary
from training.network import Network
from training.own_things import measured, own_photos
from training.photos import Photo, Region
from training.vocabulary import names_of

IMAGENET = ["tabby"] * 1000


def test_own_photos_of_what_is_left_out_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "own_things" / "pets"
    folder.mkdir(parents=True)
    names = ["background", "cat", "apple"]
    assert not any(map(measured, names[1:]))
    shown = [{"id": "one", "classes": [1]}, {"id": "two", "classes": [2]}, {"id": "both", "classes": [1, 2]}]
    (folder / "index.json").write_text(json.dumps({"classes": names, "images": shown}))
    assert [photo.image.stem for photo in own_photos(tmp_path)["pets"]] == ["one", "two", "both"]
    (photo,) = own_photos(tmp_path, without={"cat", "kitten"})["pets"]
    assert photo.image.stem == "two"
    assert photo.rivals == ("apple",)
    assert own_photos(tmp_path, without={"cat", "apple"}) == {}


def test_detections_of_what_is_left_out_teach_nothing(
    photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = tmp_path / "none.png"
    with Image.open(photos[2].image) as image:
        Image.new("L", image.size).save(nothing)
    empty = replace(photos[2], labels=nothing, regions={})
    seen = {empty.image: [Detection(name, 0.9, 0.02, 0.02, 0.9, 0.96) for name in ("dog", "cat")]}
    monkeypatch.setattr(training, "detections", lambda images, remembered: seen)
    network = Network({name: t.float() for name, t in dequantised(load_file(embedded.WEIGHTS)).items()})
    words = [replace(photos[2], regions={1: Region(names_of(name), frozenset())}) for name in ("dog", "cat")]
    vocabulary = Vocabulary(network, words, [], IMAGENET, without={"cat", "kitten"})
    material = Material(Collections(coco=[], voc=[empty], named=[]), {}, vocabulary)
    made = training._with_detections(network, material, tmp_path / "out.safetensors", IMAGENET)
    (photo,) = made.collections.voc
    named = {name for region in photo.regions.values() for name in region.names}
    assert named == {"dog", "puppy"}
    assert named <= set(vocabulary.index)  # `first_layer_losses` looks every name up
    assert made.guessed[photo.image].any()


def test_pseudo_labels_of_other_photos_are_not_reused(
    photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        training, "pseudo_labels", lambda network, shown: {p.image: np.ones((2, 2), np.uint8) for p in shown}
    )
    for photo in (photos[0], photos[2]):
        material = Material(Collections(coco=[], voc=[], named=[photo]), {}, None)  # type: ignore[arg-type]
        made = training._guessed(None, material, tmp_path / "out.safetensors")  # type: ignore[arg-type]
        assert [one.image for one in made.collections.named] == [photo.image]


def test_what_was_looked_at_with_another_seed_is_not_reused(tmp_path: Path) -> None:
    files = {training._beside(tmp_path / "out.safetensors", "looked", "pt", "revision", seed, ["a"]) for seed in (0, 1)}
    assert len(files) == 2
