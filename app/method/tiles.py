"""Overlapping tiles of a photo, and their maps joined into one.

Four of them, in which small things are larger, beside the whole; or, of a photo so long that the network's square input
would squeeze all things in it, pieces from one end to the other instead of the whole.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from .frame import Frame

# Share of the photo's side that each of the two by two tiles has: a thing at the edge of one is well inside another.
_TILE_SIDE = 0.6
# Weight of the whole photo, which shows the context; the tiles have the rest (training/NOTEBOOK.md).
_WHOLE_WEIGHT = 0.6
# Share of a tile's side over which it fades into its neighbour.
_FADE = 0.25


# A photo is long if one side has more than this many times the other. Its pieces are at most twice as long as wide, a
# quarter of each lies in the next one, and there are at most so many: longer photos have longer pieces.
_LONG, _PIECE, _OVERLAP, _MAX_PIECES = 4, 2.0, 0.25, 16
# A strip of fewer pixels across shows nothing that could be found in pieces, each of which costs as much as a photo.
_LEAST_ACROSS = 24


@dataclass(frozen=True)
class Tile:
    """A part of a photo: its rows and columns, in pixels."""

    rows: slice
    columns: slice

    def of(self, photo: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "tile_height tile_width 3"]:
        """The pixels of the tile."""
        return np.ascontiguousarray(photo[self.rows, self.columns])


def tiles_of(photo_hw: tuple[int, int]) -> tuple[Tile, ...]:
    """The four tiles of a photo of this height and width, row by row."""
    rows, columns = (_parts(side) for side in photo_hw)
    return tuple(Tile(row, column) for row in rows for column in columns)


def is_long(photo_hw: tuple[int, int]) -> bool:
    """True for a photo that is seen in pieces."""
    return min(photo_hw) >= _LEAST_ACROSS and max(photo_hw) > _LONG * min(photo_hw)


def pieces_of(photo_hw: tuple[int, int]) -> tuple[Tile, ...]:
    """The pieces of a long photo of this height and width, from its start to its end."""
    height, width = photo_hw
    long, short = max(photo_hw), min(photo_hw)
    step = (1 - _OVERLAP) * _PIECE * short
    count = min(_MAX_PIECES, math.ceil((long - _PIECE * short) / step) + 1)
    length = math.ceil(long / (count - (count - 1) * _OVERLAP))
    starts = [round(place * (long - length) / (count - 1)) for place in range(count)]
    parts = [slice(start, start + length) for start in starts]
    across = slice(0, short)
    return tuple(Tile(part, across) if height > width else Tile(across, part) for part in parts)


def join(
    whole: Float[Tensor, "class size size"],
    frame: Frame,
    parts: Iterable[tuple[Tile, Frame, Float[Tensor, "class size size"]]],
    *,
    whole_weight: float = _WHOLE_WEIGHT,
) -> Float[Tensor, "class size size"]:
    """Weighted mean of the probabilities by the whole photo and by its tiles; the sum over classes is kept.

    Args:
        whole: On the network's input.
        frame: Place of the whole photo in it.
        parts: Per tile its place in the photo, its frame, and its probabilities of the same classes on its own input.
        whole_weight: Weight of the whole photo; the tiles have the rest.
    """
    height, width = frame.content_hw
    total = torch.zeros_like(whole[:, :height, :width])
    weight = torch.zeros_like(total[:1])
    for tile, own, part in parts:
        rows, columns = _scaled(tile.rows, frame.photo_hw[0], height), _scaled(tile.columns, frame.photo_hw[1], width)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        content = part[None, :, : own.content_hw[0], : own.content_hw[1]]
        fade = _faded(rows, height).outer(_faded(columns, width)).to(weight)
        total[:, rows, columns] += fade * F.interpolate(content, size=size, mode="bilinear", align_corners=False)[0]
        weight[:, rows, columns] += fade
    joined = whole.clone()
    joined[:, :height, :width] = whole_weight * whole[:, :height, :width] + (1 - whole_weight) * total / weight
    return joined


def _parts(side: int) -> tuple[slice, slice]:
    length = max(1, round(_TILE_SIDE * side))
    return slice(0, length), slice(side - length, side)


def _scaled(part: slice, side: int, content: int) -> slice:
    """A slice of one axis of the photo, in pixels of the input."""
    start, stop = (round(edge * content / side) for edge in (part.start, part.stop))
    return slice(start, max(stop, start + 1))


def _faded(part: slice, content: int) -> Float[Tensor, "pixel"]:
    """Weight of a tile's pixels along one axis: 1, falling to 0 at an edge that lies inside the photo."""
    count = part.stop - part.start
    centres = (torch.arange(count) + 0.5) / (_FADE * count)
    weights = torch.ones(count)
    if part.start > 0:
        weights = weights.minimum(centres)
    if part.stop < content:
        weights = weights.minimum(centres.flip(0))
    return weights
