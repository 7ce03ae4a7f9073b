"""The last stage: what looks alike is learned from photos with exact masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.method.self_support import PREFIX, self_support
from training.photos import Photo, Region
from training.self_support import train_self_support

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    """Two photos with masks of the training photos' form: values are classes."""
    made = []
    for file, name in (("chelsea", "cat"), ("dog", "dog")):
        with Image.open(EXAMPLES / f"{file}_mask.png") as mask:
            labels = (np.array(mask.convert("L")) > 0).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / f"{file}.png")
        region = Region((name,), frozenset({name}))
        made.append(Photo(EXAMPLES / f"{file}.jpg", tmp_path / f"{file}.png", {1: region}))
    return made


def test_it_gives_the_tensors_that_the_model_reads(embedded, photos: list[Photo]) -> None:
    learned = train_self_support(embedded, photos, photos[:1], seed=0, pace=0.02)
    assert {name.removeprefix(PREFIX) for name in learned} == set(embedded.self_support)
    assert all(learned[PREFIX + name].shape == tensor.shape for name, tensor in embedded.self_support.items())
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in learned.items()}
    found = self_support(weights, torch.rand(3, 576), torch.randn(576, 512))
    torch.testing.assert_close(found.sum(dim=0), torch.ones(576))


def test_a_seed_gives_the_same_again(embedded, photos: list[Photo]) -> None:
    one, other = (train_self_support(embedded, photos, photos, seed=3, pace=0.005) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
