"""The small model that the method is tested on."""

from __future__ import annotations

import pytest

from app.backbones.blip import Blip
from tests.models import INPUT_PX, random_blip


@pytest.fixture(scope="session")
def blip() -> Blip:
    """7 × 7 patches, 5 layers."""
    model, tokenizer = random_blip()
    return Blip(model, tokenizer, name="blip:random", input_size=INPUT_PX)
