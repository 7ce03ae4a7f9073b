"""A model of every family, loaded once per session."""

from __future__ import annotations

import numpy as np
import pytest

from app.backbones import load
from app.method.backbone import Backbone, EncodedImage
from tests.backbones.families import FAMILIES


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Value of `EXEMPLAR_BACKBONE` for a model of each family."""
    return {
        family: write(tmp_path_factory.mktemp(f"random-{family}"), changed=False) for family, write in FAMILIES.items()
    }


@pytest.fixture(scope="session")
def loaded(specs: dict[str, str]) -> dict[str, Backbone]:
    return {family: load(spec, device="cpu", dtype="float32") for family, spec in specs.items()}


@pytest.fixture(params=list(FAMILIES))
def backbone(request: pytest.FixtureRequest, loaded: dict[str, Backbone]) -> Backbone:
    """Each family's model in turn."""
    return loaded[request.param]


@pytest.fixture(scope="session")
def _encoded(loaded: dict[str, Backbone]) -> dict[str, EncodedImage]:
    photo = np.random.default_rng(3).integers(0, 256, (37, 101, 3), dtype=np.uint8)
    return {name: one.encode_image(one.preprocess(photo)[0][None])[0] for name, one in loaded.items()}


@pytest.fixture
def image(backbone: Backbone, _encoded: dict[str, EncodedImage]) -> EncodedImage:
    """A photo of noise, encoded."""
    return _encoded[backbone.family]
