"""Photos with masks in the format of the training photos (pixel values are classes)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.photos import Photo, Region

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Photo]:
    folder = tmp_path_factory.mktemp("photos")
    made = []
    for file, name in (("chelsea", "cat"), ("kitten", "cat"), ("dog", "dog")):
        with Image.open(EXAMPLES / f"{file}_mask.png") as mask:
            labels = (np.array(mask.convert("L")) > 0).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"{file}.png")
        region = Region((name,), frozenset({name}))
        made.append(Photo(EXAMPLES / f"{file}.jpg", folder / f"{file}.png", {1: region}))
    return made
