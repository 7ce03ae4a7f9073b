"""The small model on which the method is tested, and examples for it."""

from __future__ import annotations

import pytest
import torch

from app.backbones.blip import Blip
from app.method.shot import IGNORE, Shot
from tests.models import INPUT_PX, random_blip


@pytest.fixture(scope="session")
def blip() -> Blip:
    """7 × 7 patches, 5 layers."""
    model, tokenizer = random_blip()
    return Blip(model, tokenizer, name="blip:random", input_size=INPUT_PX)


@pytest.fixture(scope="session")
def shots(blip: Blip) -> list[Shot]:
    """Three photos: an object of 3 × 4 patches at the top left is redder than the rest; the last row is padding."""
    labels = torch.zeros(112, 112, dtype=torch.long)
    labels[:48, :64] = 1
    labels[96:] = IGNORE
    made = []
    for seed in range(3):
        rgb = 0.5 * torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(seed))
        rgb[0, :48, :64] += 0.5
        made.append(Shot.of(blip, blip.encode_image(rgb[None])[0], labels))
    return made
