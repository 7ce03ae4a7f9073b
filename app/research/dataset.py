"""A folder of photos with masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from app.errors import InvalidInputError


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and its labels: class numbers, 255 to be ignored."""

    id: str
    image: Path
    labels: Path
    classes: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The photo, RGB uint8 [height, width, 3].

        Raises:
            InvalidInputError: If it can't be read.
        """
        try:
            with Image.open(self.image) as image:
                return np.array(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InvalidInputError(f"{self.image} can't be read: {error}.") from error

    def read_labels(self) -> np.ndarray:
        """The labels, uint8 [height, width]."""
        with Image.open(self.labels) as image:
            return np.array(image)


@dataclass(frozen=True)
class Dataset:
    """Classes, the background first, and photos."""

    classes: tuple[str, ...]
    photos: tuple[LabelledPhoto, ...]


def read_dataset(folder: Path, *, split: str | None, ids: Path | None, limit: int | None) -> Dataset:
    """Read the index of a data set.

    Args:
        folder: Holds `index.json`, `images/<id>.jpg` and `masks/<id>.png`.
        split: Only photos of this split; None for all.
        ids: A JSON list of photo ids to keep; None for all.
        limit: Most photos.

    Raises:
        InvalidInputError: If the folder is not of this form, or nothing is left of it.
    """
    try:
        index = json.loads((folder / "index.json").read_text())
        keep = None if ids is None else {str(item) for item in json.loads(ids.read_text())}
        photos = [
            LabelledPhoto(
                id=item["id"],
                image=folder / "images" / f"{item['id']}.jpg",
                labels=folder / "masks" / f"{item['id']}.png",
                classes=tuple(item["classes"]),
            )
            for item in index["images"]
            if (split is None or item.get("split") == split) and (keep is None or str(item["id"]) in keep)
        ]
        classes = tuple(str(name) for name in index["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{folder} is not a data set: it needs index.json with classes and images, images/<id>.jpg and "
            f"masks/<id>.png ({type(error).__name__}: {error})."
        ) from error
    if not photos:
        raise InvalidInputError(f"No photo is left of {folder}: check --split and --ids.")
    return Dataset(classes, tuple(photos[:limit]))
