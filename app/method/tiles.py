"""Four overlapping tiles of a photo, in which small things are larger, and their maps joined with the whole's."""

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


def join(
    whole: Float[Tensor, "class size size"],
    frame: Frame,
    parts: Iterable[tuple[Tile, Frame, Float[Tensor, "class size size"]]],
) -> Float[Tensor, "class size size"]:
    """Weighted mean of the probabilities by the whole photo and by its tiles; the sum over classes is kept.

    Args:
        whole: On the network's input.
        frame: Place of the whole photo in it.
        parts: Per tile its place in the photo, its frame, and its probabilities of the same classes on its own input.
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
    joined[:, :height, :width] = _WHOLE_WEIGHT * whole[:, :height, :width] + (1 - _WHOLE_WEIGHT) * total / weight
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
