"""The sample photos as a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.research.dataset import Dataset
from app.research.layouts import read_dataset

EXAMPLES = Path(__file__).parents[2] / "examples"
# Two photos each, so that one can teach and the other can test.
PHOTOS = {"astronaut": 1, "grace_hopper": 1, "kitten": 2, "chelsea": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sample photos in the form that `evaluate` reads."""
    return write_photos(tmp_path)


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    """Two photos of a person and two of a cat."""
    return read_photos(folder)


def write_photos(folder: Path) -> Path:
    """Write the sample photos in the form that `evaluate` reads."""
    for part in ("images", "masks"):
        (folder / part).mkdir()
    images = []
    for name, number in PHOTOS.items():
        (folder / "images" / f"{name}.jpg").write_bytes((EXAMPLES / f"{name}.jpg").read_bytes())
        with Image.open(EXAMPLES / f"{name}_mask.png") as mask:
            labels = (np.array(mask.convert("L")) > 0).astype(np.uint8) * number
        Image.fromarray(labels).save(folder / "masks" / f"{name}.png")
        images.append({"id": name, "classes": [number], "split": "val" if name == "chelsea" else "train"})
    index = {"classes": ["background", "person", "cat"], "images": images}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def read_photos(folder: Path) -> Dataset:
    """Read them as a data set."""
    return read_dataset(folder, split=None, ids=None, limit=None)
