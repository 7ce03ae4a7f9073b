"""Answers to a segmentation: one mask per category, and their conversions."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, Field

from exemplar_client import coco, drawing, exports
from exemplar_client.errors import Invalid
from exemplar_client.photos import Photo
from exemplar_client.records import Record, folded
from exemplar_client.rle import Bits, decode

if TYPE_CHECKING:
    import fiftyone
    import matplotlib.axes
    import supervision

# Longest side of a picture in a notebook.
_NOTEBOOK_PX = 1024


class Mask(Record):
    """The mask of one category in one photo.

    Attributes:
        name: The category.
        presence: Probability that the photo shows the category.
        mean_probability: Mean over the mask's pixels; high for absent categories too.
        match_score: Image-text score of the category's words and the whole photo, uncalibrated.
        adapted: True if an adapter was used, False if the words alone.
        adapter_version: Version of that adapter.
        adapter_problem: Why the category's adapter could not be used; None if nothing was wrong.
        area: Marked pixels; 0 if the category was not found.
        bbox: (x, y, width, height) in pixels; all 0 if the category was not found.
        rle: COCO's compressed run lengths, `{"size": [height, width], "counts": str}`.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    name: str
    presence: float
    mean_probability: float
    match_score: float
    adapted: bool
    adapter_version: int | None = None
    adapter_problem: str | None = None
    area: int
    bbox: tuple[int, int, int, int]
    rle: dict[str, Any] = Field(alias="segmentation", repr=False)

    @cached_property
    def array(self) -> Bits:
        """The mask, bool `[height, width]`, read-only; decoded when it is first read."""
        bits = decode(self.rle)
        bits.flags.writeable = False
        return bits


class Backbone(Record):
    """The model that answered: its name and the hash of its weights."""

    name: str
    revision: str


class Picture(Record):
    """The photo as the service read it: its size after EXIF rotation, the hash of its file, and a note if any."""

    width: int
    height: int
    sha256: str
    note: str | None = None


class Segmented(Record):
    """The JSON of a segmentation."""

    image: Picture
    backbone: Backbone
    layers: list[int] = Field(default_factory=list)
    categories: list[Mask] = Field(default_factory=list)
    timings_ms: dict[str, float] = Field(default_factory=dict)


class ClickedMask(Record):
    """The mask of one object that was clicked.

    Attributes:
        image: The photo as the service read it.
        backbone: The model that answered.
        mean_probability: Mean over the mask's pixels; 0 if nothing was found.
        area: Marked pixels.
        bbox: (x, y, width, height) in pixels.
        rle: COCO's compressed run lengths, `{"size": [height, width], "counts": str}`.
        timings_ms: Milliseconds that the service spent, by stage.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    image: Picture
    backbone: Backbone
    mean_probability: float
    area: int
    bbox: tuple[int, int, int, int]
    rle: dict[str, Any] = Field(alias="segmentation", repr=False)
    timings_ms: dict[str, float] = Field(default_factory=dict, repr=False)

    @cached_property
    def array(self) -> Bits:
        """The mask, bool `[height, width]`, read-only; decoded when it is first read."""
        bits = decode(self.rle)
        bits.flags.writeable = False
        return bits


class Masks(Sequence[Mask]):
    """The masks of one photo, in the order of the categories asked for; `masks["cat"]` is that of a name.

    Args:
        answer: The service's answer.
        photo: The photo that was sent.
        position: Position of the photo among several.
        age_s: Seconds since the service last read its store; None if it reads it now.
    """

    def __init__(self, answer: Segmented, photo: Photo, *, position: int = 0, age_s: float | None = None) -> None:
        self._answer = answer
        self._photo = photo
        self.position = position
        self.age_s = age_s

    @overload
    def __getitem__(self, key: int | str) -> Mask: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[Mask]: ...

    def __getitem__(self, key: int | str | slice) -> Mask | Sequence[Mask]:
        """Return the mask of a position or a name; names are compared as the service does, ignoring case."""
        if isinstance(key, str):
            wanted = folded(key)
            for mask in self._answer.categories:
                if folded(mask.name) == wanted:
                    return mask
            raise KeyError(f"{key!r} is not among the categories of this answer: {', '.join(self.names) or 'none'}")
        return self._answer.categories[key]

    def __len__(self) -> int:
        return len(self._answer.categories)

    def __contains__(self, item: object) -> bool:
        """True for a mask of this answer, or for the name of one."""
        if isinstance(item, str):
            return folded(item) in map(folded, self.names)
        return item in self._answer.categories

    def __repr__(self) -> str:
        found = ", ".join(f"{mask.name} {mask.presence:.2f}" for mask in self.found)
        return f"<Masks of {self.name}: {found or 'nothing found'} ({len(self)} categories)>"

    @property
    def name(self) -> str:
        """File name of the photo, as the service was told it."""
        return self._photo.name

    @property
    def path(self) -> Path | None:
        """Path of the photo, if it was given as a path or a `file://` address."""
        return self._photo.path

    @property
    def source(self) -> object:
        """The photo as it was given: a path, bytes, an array, …"""
        return self._photo.source

    @property
    def names(self) -> list[str]:
        """The names of the categories, in order."""
        return [mask.name for mask in self._answer.categories]

    @property
    def found(self) -> list[Mask]:
        """The masks that mark at least one pixel."""
        return [mask for mask in self._answer.categories if mask.area]

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the photo and of every mask, in pixels after EXIF rotation."""
        return self._answer.image.height, self._answer.image.width

    @property
    def note(self) -> str | None:
        """What was left out of the photo's file, such as further pages; None if nothing."""
        return self._answer.image.note

    @property
    def sha256(self) -> str:
        """Hash of the photo's file, hexadecimal."""
        return self._answer.image.sha256

    @property
    def backbone(self) -> Backbone:
        """The model that answered."""
        return self._answer.backbone

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds that the service spent, by stage."""
        return self._answer.timings_ms

    @cached_property
    def labels(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Label map `[height, width]`, read-only: 0 = background, i = the i-th category.

        uint8, or uint16 for more than 255 categories. Masks overlap only if a `threshold` was given; then the later
        category counts, while the service's own label map has the more probable one.
        """
        labels = np.zeros(self.size_hw, np.uint8 if len(self) <= drawing.MAX_LABELS else np.uint16)
        for number, mask in enumerate(self, start=1):
            if mask.area:
                labels[mask.array] = number
        labels.flags.writeable = False
        return labels

    def photo(self) -> Image.Image:
        """Return the upright photo, RGB; a photo given as a path is read again.

        Raises:
            Invalid: The file has changed since; or HEIC or AVIF, and what reads it is not installed.
            OSError: The file is no longer there.
        """
        if self.path and hashlib.sha256(self._photo.content()).hexdigest() != self.sha256:
            raise Invalid(f"{self.name} has changed since it was segmented: segment it again.")
        return self._photo.rgb()

    def overlay(self) -> Image.Image:
        """Return the photo with coloured masks and names; raises as `photo` does."""
        found = [(number, mask.name, mask.array) for number, mask in enumerate(self, start=1) if mask.area]
        return drawing.overlay(self.photo(), found)

    def to_png(self) -> bytes:
        """Return `labels` as a palette PNG with the names in its iTXt chunk `categories`.

        Raises:
            Invalid: More than 255 categories.
        """
        return drawing.label_map_png(self.labels, self.names)

    def to_coco(
        self, image_id: int = 1, *, category_ids: Mapping[str, int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """Return COCO annotations of the categories found; `coco_instances` makes the file of many photos.

        Args:
            image_id: Id of the photo.
            category_ids: Id of each category; default: 1, 2, … in the order of this answer.
            first_id: Id of the first annotation; the others follow.

        Returns:
            Annotations with run lengths, `area`, `bbox` and `score` (the presence).

        Raises:
            Invalid: A category has no id.
        """
        return coco.coco_annotations(self, image_id=image_id, category_ids=category_ids, first_id=first_id)

    def to_supervision(self) -> supervision.Detections:
        """Return the categories found as `supervision.Detections`; needs `exemplar-client[supervision]`.

        `class_id` is the position in this answer, `confidence` the presence, `data["class_name"]` the names.
        """
        return exports.to_supervision(self)

    def to_fiftyone(self) -> fiftyone.Detections:
        """Return the categories found as `fiftyone.Detections`; needs `exemplar-client[fiftyone]`.

        Boxes are shares of the photo's size and masks are cut to their boxes, as FiftyOne defines them.
        """
        return exports.to_fiftyone(self)

    def plot(self, ax: matplotlib.axes.Axes | None = None) -> matplotlib.axes.Axes:
        """Draw the overlay with matplotlib; needs `exemplar-client[plot]`.

        Args:
            ax: Where to draw; default: a new figure.

        Returns:
            The axes.
        """
        return exports.plot(self, ax)

    def _repr_png_(self) -> bytes:
        """Return the overlay for a notebook, at most 1,024 pixels wide and high."""
        picture = self.overlay()
        picture.thumbnail((_NOTEBOOK_PX, _NOTEBOOK_PX))
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()
