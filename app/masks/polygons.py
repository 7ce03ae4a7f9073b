"""COCO polygons: traces a mask's outlines, and draws polygons as a mask."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from . import MalformedMaskError, Mask
from .boxes import bbox_of
from .coordinates import finite_number
from .rle import decompressed, filled

Ring: TypeAlias = Float[np.ndarray, "_ 2"]  # corners (x, y) in pixels, any number; the last joins the first

# pycocotools keeps 5 points of 16 bytes per pixel of outline: this bounds a call to 160 MB and a fraction of a second.
# The border of a 40-megapixel photo is 26,000 pixels long.
MAX_OUTLINE_PX = 2_000_000

# Every ring costs up to half a millisecond, however short its outline is, and every number a fraction of a microsecond:
# together these bound a call to a few seconds. No annotation of COCO has a hundred rings.
MAX_RINGS = 10_000
MAX_NUMBERS = 1_000_000


@dataclass(frozen=True)
class _Sides:
    """The straight sides of all outlines of a mask, each walked with the mask on the right hand."""

    start_xy: Int[np.ndarray, "side 2"]
    end_xy: Int[np.ndarray, "side 2"]
    heading: Int[np.ndarray, " side"]  # 0 = East, 1 = South, 2 = West, 3 = North: +1 is a right turn


def mask_to_polygons(mask: Mask) -> list[list[float]]:
    """Traces the outline of every 4-connected part of a mask, along the edges of its pixels.

    COCO takes the union of polygons, which can't express a hole: **holes come out filled** (use run lengths where they
    matter). `polygons_to_mask` gives back exactly this mask if it has no hole and its outlines are within the limits
    above. Parts that touch only at a corner are two rings, so no ring crosses itself.

    Args:
        mask: `[height, width]`.

    Returns:
        One ring `[x, y, x, y, …]` per part, clockwise on the screen, whole pixels, no three corners in line; ordered by
        their highest edge. Empty for the empty mask.
    """
    left, top, width, height = bbox_of(mask)
    sides = _sides(mask[top : top + height, left : left + width])
    x, y = (sides.start_xy + np.array([left, top])).T.astype(float).tolist()
    rings = _cycles(_following_side(sides).tolist())
    # A cycle begins with its highest East side. It is the top of an outline; the top of a hole is a West side.
    outlines = (ring for ring in rings if y[ring[0]] == min(y[side] for side in ring))
    return [[value for side in ring for value in (x[side], y[side])] for ring in outlines]


def polygons_to_mask(polygons: object, image_hw: tuple[int, int]) -> Mask:
    """Draws the union of polygons with COCO's own rasteriser.

    Args:
        polygons: Rings `[x, y, x, y, …]`, each of 3 corners or more; parts outside the image are cut off. A ring that
            crosses itself is filled by the even-odd rule.
        image_hw: (height, width) of the mask.

    Returns:
        The mask `[height, width]`.

    Raises:
        MalformedMaskError: Not a list of such rings, more than `MAX_RINGS` of them or `MAX_NUMBERS` in them, or
            outlines longer than `MAX_OUTLINE_PX` in total.
    """
    if not isinstance(polygons, list | tuple) or not polygons:
        raise MalformedMaskError("expected a list of polygons, each [x, y, x, y, …]")
    if len(polygons) > MAX_RINGS:
        raise MalformedMaskError(f"expected at most {MAX_RINGS} polygons, got {len(polygons)}: send run lengths")
    numbers = sum(len(polygon) for polygon in polygons if isinstance(polygon, list | tuple))
    if numbers > MAX_NUMBERS:
        raise MalformedMaskError(f"expected at most {MAX_NUMBERS} coordinates, got {numbers}: send run lengths")
    rings = [_clipped(_ring_of(polygon), image_hw) for polygon in polygons]
    outline_px = sum(float(np.abs(ring - np.roll(ring, 1, axis=0)).max(axis=1).sum()) for ring in rings if len(ring))
    if outline_px > MAX_OUTLINE_PX:
        raise MalformedMaskError(f"expected outlines of at most {MAX_OUTLINE_PX} pixels in total, got {outline_px:.0f}")
    mask = np.zeros(image_hw, dtype=bool)
    for ring in rings:
        if len(ring) >= 3:
            draw_ring(ring, mask=mask)
    return mask


def draw_ring(ring: Ring, *, mask: Mask) -> None:
    """Adds a ring of 3 corners or more that lies within the image to a mask, however long it is."""
    # pycocotools rounds corners to fifths of a pixel, and its union and decoder visit the whole image for every ring.
    # So only the ring's box is decoded. To shift the ring would change pixels where its sides are rounded.
    left, top = map(math.floor, np.floor(5 * ring.min(axis=0) + 0.5) / 5)
    right, bottom = map(math.ceil, np.floor(5 * ring.max(axis=0) + 0.5) / 5)
    if left < right and top < bottom:
        # A list in a list, of six numbers or more: pycocotools would take four numbers for a box.
        rle = coco_mask.frPyObjects([ring.ravel().tolist()], bottom, right)[0]
        runs = decompressed(rle["counts"].decode("ascii"))
        assert runs is not None
        mask[top:bottom, left:right] |= filled(_without(runs, left, top, bottom), bottom - top, right - left)


def _without(runs: Int[np.ndarray, " run"], left: int, top: int, height: int) -> Int[np.ndarray, " _left"]:
    """Run lengths of a mask of this height without its first columns and rows, in which nothing is marked."""
    ends = np.cumsum(runs)
    starts = ends[:-1:2] - left * height
    lengths = runs[1::2]
    # Each column up to a run's own loses its first rows; none are lost if a run goes on in the next column.
    starts = starts - top * (starts // height + 1)
    total = (height - top) * (ends[-1] // height - left)
    bounds = np.stack([starts, starts + lengths], axis=1).ravel()
    return np.diff(bounds, prepend=0, append=total)


def _ring_of(polygon: object) -> Ring:
    if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
        raise MalformedMaskError("expected a polygon [x, y, x, y, …] of 3 corners or more")
    return np.array([finite_number(value) for value in polygon], dtype=float).reshape(-1, 2)


def _clipped(ring: Ring, image_hw: tuple[int, int]) -> Ring:
    """Clips a ring to the image (Sutherland and Hodgman); the result may have fewer than 3 corners.

    Needed as pycocotools walks every edge in steps of 0.2 pixels, outside the image too, with 32-bit coordinates.
    """
    size = np.array([image_hw[1], image_hw[0]])
    lowest, highest = ring.min(axis=0), ring.max(axis=0)
    if (lowest >= 0).all() and (highest <= size).all():  # of nearly all rings nothing is cut
        return ring
    if (lowest > size).any() or (highest < 0).any():
        return ring[:0]
    ring = ring.clip(-1e9, 1e9)  # far outside any photo, and differences stay finite
    for axis, side in enumerate(reversed(image_hw)):
        ring = _half_plane(ring, axis=axis, limit=side, sign=1)
        ring = _half_plane(ring, axis=axis, limit=0, sign=-1)
    return ring


def _half_plane(ring: Ring, *, axis: int, limit: int, sign: int) -> Ring:
    """The part of a ring with sign · coordinate ≤ sign · limit."""
    inside = sign * ring[:, axis] <= sign * limit
    if inside.all():
        return ring
    following = np.roll(ring, -1, axis=0)
    inside_following = np.roll(inside, -1)
    crosses = inside != inside_following
    step = following - ring
    share = np.divide(limit - ring[:, axis], step[:, axis], out=np.zeros(len(ring)), where=crosses)
    crossing = ring + share[:, None] * step
    crossing[:, axis] = limit
    candidates = np.stack([crossing, following], axis=1).reshape(-1, 2)
    part: Ring = candidates[np.stack([crosses, inside_following], axis=1).ravel()]
    return part


def _sides(mask: Mask) -> _Sides:
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]
    left, right = padded[1:-1, :-1].T, padded[1:-1, 1:].T  # transposed: a row is a column of edges
    east, west = _straight_runs(below & ~above), _straight_runs(above & ~below)
    south, north = _straight_runs(left & ~right), _straight_runs(right & ~left)
    line, first, last = 0, 1, 2
    start_xy = [east[:, [first, line]], south[:, [line, first]], west[:, [last, line]], north[:, [line, last]]]
    end_xy = [east[:, [last, line]], south[:, [line, last]], west[:, [first, line]], north[:, [line, first]]]
    heading = np.repeat(np.arange(4), [len(part) for part in start_xy])
    return _Sides(start_xy=np.concatenate(start_xy), end_xy=np.concatenate(end_xy), heading=heading)


def _straight_runs(edges: Bool[np.ndarray, "line step"]) -> Int[np.ndarray, "run 3"]:
    """Line, first and last corner of each unbroken run of pixel edges, in reading order."""
    padded = np.pad(edges, ((0, 0), (1, 1)))
    changes = padded[:, 1:] != padded[:, :-1]
    line, corner = np.divmod(np.flatnonzero(changes), changes.shape[1])
    return np.column_stack([line[::2], corner[::2], corner[1::2]])  # no run leaves its line: both ends are padded


def _following_side(sides: _Sides) -> Int[np.ndarray, " side"]:
    """For each side, the index of the side that continues it: the one that starts at its end, after a turn."""
    if len(sides.heading) == 0:
        return sides.heading
    stride = int(sides.end_xy.max()) + 1
    corner, next_corner = (xy[:, 1] * stride + xy[:, 0] for xy in (sides.start_xy, sides.end_xy))
    keys = corner * 4 + sides.heading
    order = np.argsort(keys)
    keys = keys[order]
    right, left = (next_corner * 4 + (sides.heading + turn) % 4 for turn in (1, -1))
    # Where two pixels touch only at a corner both turns exist: the right turn stays on the same pixel.
    place = np.searchsorted(keys, right).clip(max=len(keys) - 1)
    place = np.where(keys[place] == right, place, np.searchsorted(keys, left))
    following: Int[np.ndarray, " side"] = order[place]
    return following


def _cycles(following: list[int]) -> Iterable[list[int]]:
    """The cycles of a permutation, each from its lowest member on."""
    seen = bytearray(len(following))
    for first in range(len(following)):
        cycle = []
        side = first
        while not seen[side]:
            seen[side] = True
            cycle.append(side)
            side = following[side]
        if cycle:
            yield cycle
