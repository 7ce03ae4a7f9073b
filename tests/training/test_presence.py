"""Presence of the embedded model: the file is made from photos of several sets; half of own things are left out."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.backbones.embedded.presence import EXAMPLE_FACTS, NAMED_FACTS, Presence
from training import own_things, presence

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three collections of sample photos; one of people's own categories is measured on, the other fitted."""
    sets = {
        "coco_mini_dev": {"kitten": "cat", "chelsea": "cat", "astronaut": "person", "grace_hopper": "person"},
        "voc_animals_dev": {"dog": "dog"},
        "own_things/cups": {"teacup": "fitted", "coffee": "fitted", "giraffes": "held"},
    }
    assert [own_things.measured(name) for name in ("fitted", "held")] == [False, True]
    for name, photos in sets.items():
        folder = tmp_path / name
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        classes = ["background", *sorted(set(photos.values()))]
        images = []
        for photo, category in photos.items():
            number = classes.index(category)
            (folder / "images" / f"{photo}.jpg").write_bytes((EXAMPLES / f"{photo}.jpg").read_bytes())
            with Image.open(EXAMPLES / f"{photo}_mask.png") as mask:
                marked = (np.array(mask.convert("L")) > 127).astype(np.uint8) * number
            Image.fromarray(marked).save(folder / "masks" / f"{photo}.png")
            images.append({"id": photo, "classes": [number]})
        (folder / "index.json").write_text(json.dumps({"classes": classes, "images": images}))
    return tmp_path


def test_photos_that_show_a_measured_category_are_left_out(data: Path) -> None:
    sets = presence.fitted_entries(data)
    assert {name: [entry.image.stem for entry in entries] for name, entries in sets.items()} == {
        "coco": ["kitten", "chelsea", "astronaut", "grace_hopper"],
        "voc": ["dog"],
        "cups": ["teacup", "coffee"],
    }


def test_the_mask_decoder_learns_from_the_same_own_things(data: Path) -> None:
    (cups,) = own_things.own_photos(data).values()
    assert [photo.image.stem for photo in cups] == ["teacup", "coffee"]
    assert all(photo.rivals == ("fitted",) and "dog" in photo.uncertain for photo in cups)


def test_from_photos_to_a_file_that_the_model_reads(
    data: Path, embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = dict(embedded.mask_decoder.weights)
    sets = presence.fitted_entries(data)
    seen = list(presence.scenes(embedded, sets))
    monkeypatch.setattr(presence, "LACKING", 2)
    known = presence.known_words(sets, seen)
    assert {"cat", "kitten", "man", "puppy"} < known.row.keys()
    assert "fitted" not in known.row
    cat, dog = (known.rows([(word,)])[0] for word in ("kitten", "dog"))
    assert known.spread[cat].isfinite().all()  # of two photos without one
    assert known.spread[dog].isinf().all()  # the only photo that could lack one shows one
    assert [set(scene.share) for scene in seen][:2] == [{"cat"}, {"cat"}]
    assert seen[0].names == ("cat", "person", "fitted")
    rng = random.Random(0)
    bank = presence.make_bank(weights, seen, rng)
    assert bank.directions.shape == (7, presence.DIRECTIONS, 64)
    named_facts, named_truth, taught_facts, taught_truth = presence.samples(weights, bank, known, seen, rng)
    assert named_facts.shape == (len(named_truth), len(NAMED_FACTS))
    assert taught_facts.shape == (len(taught_truth), len(NAMED_FACTS) + len(EXAMPLE_FACTS))
    assert 0 < named_truth.mean() < 1
    is_known = NAMED_FACTS.index("known word")
    assert set(named_facts[:, is_known].tolist()) == set(taught_facts[:, is_known].tolist()) == {0.0, 1.0}
    named, taught = presence.fit(named_facts, named_truth), presence.fit(taught_facts, taught_truth)
    presence.write(tmp_path / "presence", bank, known, named, taught, {"revision": embedded.revision})
    model = Presence.load(tmp_path / "presence", weights, revision=embedded.revision)
    assert model is not None
    assert model.knows(("Cat",))
    assert not model.knows(("fitted",))
    for name in ("members", "kind", "median", "spread"):
        assert torch.equal(getattr(model.known, name), getattr(known, name))
    torch.testing.assert_close(model._named(named_facts), named(named_facts))
    assert ((model._named(named_facts) > 0.5) == (named_truth > 0.5)).float().mean() > 0.9


def test_the_command_writes_the_file(
    data: Path, embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With few draws and steps: what they lead to is tested above."""
    file = tmp_path / "made"
    monkeypatch.setattr(sys, "argv", ["training.presence", "--data", str(data), "--out", str(file)])
    for name, count in {"DRAWS": 1, "FITS": 2, "_STEPS": 30}.items():
        monkeypatch.setattr(presence, name, count)
    presence.main()
    assert "taught:" in capsys.readouterr().out
    assert Presence.load(file, embedded.mask_decoder.weights, revision=embedded.revision) is not None


def test_a_fitted_model_gives_the_frequency() -> None:
    """Present in three of four cases where the fact is 1, and in one of four where it is 0."""
    facts = torch.tensor([[0.0], [1.0]]).repeat_interleave(400, dim=0)
    truth = torch.tensor([0.0, 0, 0, 1]).repeat(100)
    truth = torch.cat([truth, 1 - truth])
    model = presence.fit(facts, truth)
    assert model(torch.tensor([[0.0], [1.0]])).tolist() == pytest.approx([0.25, 0.75], abs=0.02)
