"""A folder of photos with masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from app.errors import InvalidInputError
from app.method.shot import IGNORE


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and its labels: class numbers, 255 to be ignored.

    Attributes:
        id: Unique in its data set.
        image: Photo file.
        labels: Mask file.
        classes: Numbers of the classes that it shows.
        numbers: Number of each value of the mask file; None if the values are the numbers.
    """

    id: str
    image: Path
    labels: Path
    classes: tuple[int, ...]
    numbers: tuple[int, ...] | None = None

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
            labels: np.ndarray = np.array(image)
        if self.numbers is None:
            return labels
        lookup = np.full(256, IGNORE, np.uint8)
        lookup[: len(self.numbers)] = self.numbers
        renumbered: np.ndarray = lookup[labels]
        return renumbered


@dataclass(frozen=True)
class Dataset:
    """Classes, the background first, and photos."""

    classes: tuple[str, ...]
    photos: tuple[LabelledPhoto, ...]


def joined(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one: classes of the same name are one class.

    A photo counts as showing nothing of the classes that only other sets have, so join sets whose photos show none of
    each other's classes.

    Raises:
        InvalidInputError: If there are more classes than a mask file can number.
    """
    if len(datasets) == 1:
        return datasets[0]
    classes = tuple(dict.fromkeys(name for dataset in datasets for name in dataset.classes))
    if len(classes) > IGNORE:
        raise InvalidInputError(f"The data sets have {len(classes)} classes, at most {IGNORE} can be told apart.")
    photos = []
    for place, dataset in enumerate(datasets):
        numbers = tuple(classes.index(name) for name in dataset.classes)
        photos += [
            replace(
                photo,
                id=f"{place}/{photo.id}",
                classes=tuple(numbers[number] for number in photo.classes),
                numbers=numbers,
            )
            for photo in dataset.photos
        ]
    return Dataset(classes, tuple(photos))


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
