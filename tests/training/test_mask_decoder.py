"""Training of the mask decoder: the encoded photos with exact masks, and the trained tensors."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.backbones.embedded.example_memory import empty_memory
from app.backbones.embedded.mask_decoder import decode
from training.looking import PIXELS, Seen, look
from training.mask_decoder import (
    Requests,
    _memory,
    lesson_of,
    showing,
    train_mask_decoder,
    train_on_open_requests,
)
from training.photos import Photo
from training.self_support import train_self_support

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def seen(embedded, photos: list[Photo], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Seen], list[Seen]]:
    """The photos, looked at once."""
    remembered = tmp_path_factory.mktemp("seen") / "looked.pt"
    return look(embedded, photos, photos[:1], seed=0, remembered=remembered)


@pytest.fixture(scope="module")
def learned(seen: tuple[list[Seen], list[Seen]]) -> dict[str, torch.Tensor]:
    start = train_self_support(*seen, seed=0, pace=0.01)
    return train_mask_decoder(start, *seen, seed=0, pace=0.005)


def test_few_photos_are_shown_in_several_forms(seen: tuple[list[Seen], list[Seen]]) -> None:
    few, many = seen
    assert [one.photo for one in many] == ["chelsea"]
    assert sorted(one.photo for one in few) == ["chelsea"] * 5 + ["dog"] * 5 + ["kitten"] * 5
    assert torch.equal(few[0].scores, many[0].scores)  # whole
    assert (few[0].features - few[3].features).abs().max() > 0.1  # varied


def test_a_target_is_what_the_mask_covers(seen: tuple[list[Seen], list[Seen]]) -> None:
    (cat,) = seen[1]
    with Image.open(EXAMPLES / "chelsea_mask.png") as mask:
        share = float((np.array(mask.convert("L")) > 0).mean())
    assert cat.names[0] == "cat"
    assert cat.target.sum(dim=0).min() == PIXELS
    assert float(cat.shares[1].mean()) == pytest.approx(share, abs=0.01)
    assert float(cat.patch_shares(24)[1].mean()) == pytest.approx(share, abs=0.01)


def test_layers_are_read_by_their_mean(seen: tuple[list[Seen], list[Seen]]) -> None:
    (cat,) = seen[1]
    assert cat.scores.shape == (4, 1 + len(cat.names), 576)
    torch.testing.assert_close(cat.read((1, 3)), (cat.scores[1] + cat.scores[3]) / 2)


def test_it_is_remembered(embedded, seen: tuple[list[Seen], list[Seen]], tmp_path: Path) -> None:
    few, _ = look(embedded, [], [], seed=0, remembered=tmp_path / "looked.pt")
    assert few == []
    again, _ = look(embedded, ["not asked for"], [], seed=0, remembered=tmp_path / "looked.pt")
    assert again == []


def test_it_gives_the_tensors_that_the_model_reads(embedded, learned: dict[str, torch.Tensor]) -> None:
    assert {name: t.shape for name, t in learned.items()} == {
        n: t.shape for n, t in embedded.mask_decoder.weights.items()
    }
    maps = decode(learned, torch.rand(3, 576), torch.randn(576, 512), torch.randn(48, 48, 48), grid_hw=(24, 24))
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(48, 48))


def test_a_seed_gives_the_same_again(seen: tuple[list[Seen], list[Seen]], learned: dict[str, torch.Tensor]) -> None:
    again = train_mask_decoder(train_self_support(*seen, seed=0, pace=0.01), *seen, seed=0, pace=0.005)
    assert all(torch.equal(learned[name], again[name]) for name in learned)


def test_open_requests_go_on_from_what_was_learned(
    seen: tuple[list[Seen], list[Seen]], learned: dict[str, torch.Tensor]
) -> None:
    few, many = seen
    first, again = (train_on_open_requests(learned, [few, many], few, many, seed=0, pace=0.002) for _ in range(2))
    assert {name: t.shape for name, t in first.items()} == {name: t.shape for name, t in learned.items()}
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], learned[name])}
    assert changed == {name for name in first if name not in ("edges.mean", "edges.deviation")}


def test_look_alikes_are_asked_for_first(embedded, photos: list[Photo], tmp_path: Path) -> None:
    cat, dog = photos[0], photos[2]
    asked = [
        look(embedded, [replace(cat, rivals=rivals), dog], [], seed=0, remembered=tmp_path / f"{len(rivals)}.pt")[0][0]
        for rivals in ((), ("dog", "cat", "a name that no photo has"))
    ]
    assert [one.names for one in asked] == [["cat", "dog"], ["cat", "dog"]]
    everything = Requests(without_absent=0, with_few=0)
    nothing, few_first = Requests(without_absent=1, with_few=0), Requests(without_absent=0, with_few=1, from_first=1)
    rows = [
        lesson_of(asked[1], {}, random.Random(0), layers=(0,), requests=requests).rows
        for requests in (everything, nothing, few_first)
    ]
    assert rows == [[0, 1, 2], [0, 1], [0, 1, 2]]


def test_examples_are_other_photos_of_the_same_thing(seen: tuple[list[Seen], list[Seen]]) -> None:
    few, _ = seen
    shown, rng = showing(few), random.Random(0)
    assert set(shown) == {"cat", "dog"}
    taught = 0
    for _ in range(50):
        lesson = lesson_of(few[0], shown, rng, layers=(0, 1))
        for at, (shots, wordless) in lesson.examples.items():
            taught += 1
            assert few[0].names[lesson.rows[at] - 1] in ("cat", "dog")
            assert all(one.photo != few[0].photo for one in shots)
            assert wordless == (lesson.words[at] != lesson.rows[at])
    assert taught > 10


def test_without_examples_nobody_is_taught(seen: tuple[list[Seen], list[Seen]]) -> None:
    few, _ = seen
    lessons = [lesson_of(few[0], {}, random.Random(seed), layers=(0, 1)) for seed in range(20)]
    assert not any(lesson.examples for lesson in lessons)
    assert all(lesson.rows[:2] == [0, 1] and lesson.words == lesson.rows for lesson in lessons)


def test_a_memory_is_of_the_form_of_those_in_use(seen, learned: dict[str, torch.Tensor]) -> None:
    few, _ = seen
    cats = showing(few)["cat"]
    made = _memory(learned, cats[:2], "cat", random.Random(0), layers=(0, 2), bias=torch.zeros(2), wordless=False)
    shapes = [
        {name: tensor.shape[1:] for name, tensor in vars(memory).items()} for memory in (made, empty_memory(learned))
    ]
    assert shapes[0] == shapes[1]
