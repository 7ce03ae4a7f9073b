"""Connected parts of a mask, such as the single objects of a category that do not touch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import Mask
from .polygons import draw_ring, mask_to_polygons
from .rle import Rle, crop_to_rle


@dataclass(frozen=True)
class Part:
    """A connected part of a mask.

    Attributes:
        left: First column of its box.
        top: First row of its box.
        crop: The part within its box, `[height, width]`.
    """

    left: int
    top: int
    crop: Mask

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.crop.sum())

    @property
    def bbox(self) -> list[int]:
        """`[x, y, width, height]`."""
        height, width = self.crop.shape
        return [self.left, self.top, width, height]

    def on(self, image_hw: tuple[int, int]) -> Mask:
        """The part as a mask of the whole image."""
        mask = np.zeros(image_hw, dtype=bool)
        height, width = self.crop.shape
        mask[self.top : self.top + height, self.left : self.left + width] = self.crop
        return mask

    def rle(self, image_hw: tuple[int, int]) -> Rle:
        """COCO's compressed run lengths of the part as a mask of the whole image."""
        return crop_to_rle(self.crop, left=self.left, top=self.top, image_hw=image_hw)


def parts_of(mask: Mask, *, min_area: float = 0.0) -> list[Part]:
    """Finds the 4-connected parts of a mask; an island in a ring's hole is a part of its own.

    Args:
        mask: `[height, width]`.
        min_area: Smaller parts are left out, in pixels; the largest never is.

    Returns:
        The parts, ordered by their highest edge.
    """
    outlines = [np.array(ring).reshape(-1, 2) for ring in mask_to_polygons(mask)]
    parts: dict[int, Part] = {}
    left_over = mask.copy()
    largest = 0
    # Islands before the rings around them, which are larger, so that a ring finds its hole empty.
    for place in sorted(range(len(outlines)), key=lambda place: _area(outlines[place])):
        part = _taken_from(left_over, outlines[place])
        area = part.area
        largest = max(largest, area)
        if area >= min(min_area, largest):  # of many specks the crops take memory
            parts[place] = part
    least = min(min_area, largest)
    return [part for _, part in sorted(parts.items()) if part.area >= least]


def _taken_from(mask: Mask, outline: np.ndarray) -> Part:
    """Takes what is within an outline of whole pixels out of a mask."""
    (left, top), (right, bottom) = outline.min(axis=0).astype(int), outline.max(axis=0).astype(int)
    box = mask[top:bottom, left:right]
    within = np.zeros(box.shape, dtype=bool)
    draw_ring(outline - (left, top), mask=within)
    part = Part(int(left), int(top), box & within)
    box &= ~within
    return part


def _area(outline: np.ndarray) -> float:
    """Pixels within an outline, those of its holes too (Gauss's formula)."""
    x, y = outline.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)
