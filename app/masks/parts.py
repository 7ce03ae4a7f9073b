"""Connected parts of a mask, such as the single objects of a category that do not touch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import Mask
from .polygons import mask_to_polygons, polygons_to_mask


def parts_of(mask: Mask, *, min_area: float = 0.0) -> Iterator[Mask]:
    """The 4-connected parts of a mask, ordered by their highest edge; an island in a ring's hole is a part of its own.

    Args:
        mask: `[height, width]`.
        min_area: Smaller parts are left out, in pixels; the largest never is.

    Yields:
        Masks of the same size, one at a time: many of a large photo would be gigabytes.
    """
    outlines = [np.array(ring).reshape(-1, 2).astype(int) for ring in mask_to_polygons(mask)]
    boxes = [tuple(slice(low, high) for low, high in zip(o.min(0), o.max(0), strict=True))[::-1] for o in outlines]
    left, crops = mask.copy(), dict[int, Mask]()
    # Islands before the rings around them, which are larger, so that a ring finds its hole empty.
    for place in sorted(range(len(outlines)), key=lambda place: _area(outlines[place])):
        outline, box = outlines[place], boxes[place]
        corner = outline.min(axis=0)
        within = polygons_to_mask([(outline - corner).ravel().tolist()], left[box].shape)
        crops[place] = within & left[box]
        left[box] &= ~within
    areas = [int(crops[place].sum()) for place in range(len(boxes))]
    least = min(min_area, max(areas, default=0))
    for place, box in enumerate(boxes):
        if areas[place] < least:
            continue
        part = np.zeros_like(mask)
        part[box] = crops[place]
        yield part


def _area(outline: np.ndarray) -> int:
    """Pixels within an outline, those of its holes too (Gauss's formula)."""
    x, y = outline.T
    return abs(int(x @ np.roll(y, 1) - y @ np.roll(x, 1))) // 2
