"""Boxes `[x, y, width, height]` in pixels: box to mask, and the bounding box of a mask."""

from __future__ import annotations

import math

import numpy as np

from . import MalformedMaskError, Mask
from .coordinates import finite_number


def box_to_mask(box_xywh: object, image_hw: tuple[int, int]) -> Mask:
    """Marks the pixels whose centre lies in a box.

    Args:
        box_xywh: `[x, y, width, height]` in pixels, width and height above 0; cut to the image.
        image_hw: (height, width) of the mask.

    Returns:
        The mask `[height, width]`; empty if the box lies outside the image or holds no pixel's centre.

    Raises:
        MalformedMaskError: Not four finite numbers, or a width or height of 0 or less.
    """
    if not isinstance(box_xywh, list | tuple) or len(box_xywh) != 4:
        raise MalformedMaskError("expected a box [x, y, width, height]")
    x, y, width, height = (finite_number(value) for value in box_xywh)
    if width <= 0 or height <= 0:
        raise MalformedMaskError(f"expected a box with a width and a height above 0, got {width:g} × {height:g}")
    mask = np.zeros(image_hw, dtype=bool)
    mask[_centres_between(y, y + height, image_hw[0]), _centres_between(x, x + width, image_hw[1])] = True
    return mask


def bbox_of(mask: Mask) -> list[int]:
    """Returns the bounding box of a mask; the inverse of `box_to_mask` for boxes in whole pixels.

    Args:
        mask: `[height, width]`.

    Returns:
        `[x, y, width, height]` in pixels; `[0, 0, 0, 0]` for the empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _centres_between(low: float, high: float, side: int) -> slice:
    """The pixels of one axis with low ≤ centre < high."""
    first, past = (math.ceil(min(max(edge, 0.0), side) - 0.5) for edge in (low, high))
    return slice(first, past)
