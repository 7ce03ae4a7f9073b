"""A dozen photos outside the training set of the embedded model, nine of them with the mask of an object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FOLDERS = (Path(__file__).parents[2] / "examples", Path(__file__).parent / "absent")
PHOTOS = {file.stem: file for folder in FOLDERS for file in sorted(folder.glob("*.jpg"))}

SHOWN = {
    "astronaut": "person",
    "grace_hopper": "person",
    "kitten": "cat",
    "chelsea": "cat",
    "giraffes": "giraffe",
    "giraffe_head": "giraffe",
    "teacup": "cup",
    "coffee": "cup",
    "dog": "dog",
}


def photo(name: str) -> np.ndarray:
    with Image.open(PHOTOS[name]) as image:
        return np.array(image.convert("RGB"))


def mask(name: str) -> np.ndarray:
    with Image.open(FOLDERS[0] / f"{name}_mask.png") as image:
        return np.array(image.convert("L")) > 127
