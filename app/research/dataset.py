"""Photos with masks to measure on; `layouts` reads them from folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from app.errors import AppError, InvalidInputError
from app.images.photo import decode_photo
from app.method.shot import IGNORE

# Data sets are read from the caller's own disk.
_MAX_PIXELS = 2**31


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and its labels: class numbers, 255 to be ignored.

    Attributes:
        id: Unique in its data set.
        image: Photo file.
        labels: Reads the labels, uint8 [height, width].
        classes: Numbers of the classes that it shows.
        numbers: Class of each value of the labels, of which there are no others but 255; None if not known.
        crowds: Numbers of the classes of which it shows a crowd, which is ignored.
        hw: (height, width) of the labels; a photo of that size only without its EXIF rotation is left as it is stored.
    """

    id: str
    image: Path
    labels: Callable[[], np.ndarray]
    classes: tuple[int, ...]
    numbers: tuple[int, ...] | None = None
    crowds: tuple[int, ...] = ()
    hw: tuple[int, int] | None = None

    @cached_property
    def identity(self) -> str:
        """Digest of the photo file: copies and links of it have other ids, in sets that were merged or joined."""
        try:
            return hashlib.sha256(self.image.read_bytes()).hexdigest()
        except OSError:  # told when the photo is read
            return str(self.image)

    def read(self) -> np.ndarray:
        """The photo as the service reads it, RGB uint8 [height, width, 3].

        Raises:
            InvalidInputError: If it can't be read.
        """
        return read_photo(self.image, self.hw)

    def read_labels(self) -> np.ndarray:
        """The labels, uint8 [height, width].

        Raises:
            InvalidInputError: If they can't be read, or are no class numbers.
        """
        labels = self.labels()
        if labels.ndim != 2 or labels.dtype.kind not in "uib":
            raise InvalidInputError(f"The mask of {self.image} has to have one class number per pixel.")
        if self.numbers is None:
            return labels
        highest = labels[labels != IGNORE].max(initial=0)
        if highest >= len(self.numbers):
            raise InvalidInputError(
                f"The mask of {self.image} has class {highest}, and the data set has the classes 0 to "
                f"{len(self.numbers) - 1}; {IGNORE} is ignored."
            )
        lookup = np.full(256, IGNORE, np.uint8)
        lookup[: len(self.numbers)] = self.numbers
        renumbered: np.ndarray = lookup[labels.astype(np.uint8)]
        return renumbered


@dataclass(frozen=True)
class Dataset:
    """Classes, the background first, and photos."""

    classes: tuple[str, ...]
    photos: tuple[LabelledPhoto, ...]


def read_photo(file: Path, hw: tuple[int, int] | None = None) -> np.ndarray:
    """Read a photo as the service does.

    Args:
        file: The photo.
        hw: (height, width) of its labels. If only the photo without its EXIF rotation has this size, it is not rotated.

    Returns:
        RGB uint8 [height, width, 3].

    Raises:
        InvalidInputError: If it can't be read.
    """
    try:
        raw = file.read_bytes()
        upright = decode_photo(raw, max_pixels=_MAX_PIXELS).rgb
        if hw in (None, upright.shape[:2]):
            return upright
        stored = decode_photo(raw, max_pixels=_MAX_PIXELS, turn=False).rgb
    except OSError as error:
        raise InvalidInputError(f"{file} can't be read: {error.strerror}.") from error
    except AppError as error:
        raise InvalidInputError(f"{file} can't be read: {error.detail}") from error
    return stored if hw == stored.shape[:2] else upright


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
                crowds=tuple(numbers[number] for number in photo.crowds),
                numbers=numbers,
            )
            for photo in dataset.photos
        ]
    return Dataset(classes, tuple(photos))
