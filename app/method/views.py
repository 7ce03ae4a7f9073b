"""A photo whole and, if asked for, in four overlapping tiles too, so that small things get more patches.

Test-time augmentation by scale, with the tiles' maps blended into that of the whole photo.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from .frame import Frame

# Side of a tile over that of the photo: two of them overlap by a fifth of it.
_SIDE = 0.6
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))

Preprocess = Callable[[UInt8[np.ndarray, "height width 3"]], tuple[Float[Tensor, "3 size size"], Frame]]


@dataclass(frozen=True)
class View:
    """A part of the photo as the network sees it.

    Attributes:
        frame: Where the part lies in the network's input.
        corner: Of a tile: 0 or 1 down and across, as in "top right" = (0, 1).
    """

    frame: Frame
    corner: tuple[int, int] = (0, 0)


def views_of(
    preprocess: Preprocess, photo: UInt8[np.ndarray, "height width 3"], *, tiles: bool
) -> tuple[list[Float[Tensor, "3 size size"]], list[View]]:
    """Network inputs, values in [0, 1], and views: the whole photo, and after it its four tiles if they are wanted."""
    rgb, frame = preprocess(photo)
    inputs, views = [rgb], [View(frame)]
    for corner in _CORNERS if tiles else ():
        rows, columns = (_span(side, end) for side, end in zip(photo.shape[:2], corner, strict=True))
        rgb, frame = preprocess(np.ascontiguousarray(photo[rows, columns]))
        inputs.append(rgb)
        views.append(View(frame, corner))
    return inputs, views


def blend(maps: Sequence[Float[Tensor, "class size size"]], views: Sequence[View]) -> Float[Tensor, "class size size"]:
    """One map on the whole photo's input: the mean of the whole's own and of the tiles', which run into each other.

    Args:
        maps: Of the same classes, on each view's input.
        views: The whole photo, then its tiles.
    """
    (whole, *others), (first, *tiles) = maps, views
    height, width = first.frame.content_hw
    tiled = whole.new_zeros(len(whole), height, width)
    for map_, tile in zip(others, tiles, strict=True):
        (y, row_share), (x, column_share) = (
            _along(*sides, like=whole) for sides in zip(first.frame.photo_hw, (height, width), tile.corner, strict=True)
        )
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        content = map_[None, :, : tile.frame.content_hw[0], : tile.frame.content_hw[1]]
        rows, columns = _counted(row_share), _counted(column_share)
        seen = F.grid_sample(content, grid[None, rows, columns], padding_mode="border", align_corners=False)[0]
        tiled[:, rows, columns] += row_share[rows, None] * column_share[columns] * seen
    blended = whole.clone()
    blended[:, :height, :width].lerp_(tiled, 0.5)
    return blended


def _span(side: int, end: int) -> slice:
    """Pixels of one side of the photo that a tile at its start (0) or end (1) takes."""
    extent = max(1, round(_SIDE * side))
    return slice(side - extent, side) if end else slice(0, extent)


def _along(side: int, content: int, end: int, *, like: Tensor) -> tuple[Float[Tensor, "pixel"], Float[Tensor, "pixel"]]:
    """For one side of the input: where its pixels lie in a tile, from -1 to 1, and the tile's share in them.

    Args:
        side: Of the photo, in pixels.
        content: What it takes of the input, in pixels.
        end: Whether the tile is the one at the end.
    """
    span = _span(side, end)
    extent = span.stop - span.start
    centre = (torch.arange(content, dtype=like.dtype, device=like.device) + 0.5) * (side / content)
    # From one tile to the other over what both have; tiles that only touch change at once.
    first = ((extent - centre) / max(2 * extent - side, 1e-6)).clamp(0, 1)
    return 2 * (centre - span.start) / extent - 1, 1 - first if end else first


def _counted(share: Float[Tensor, "pixel"]) -> slice:
    """The pixels in which a tile has a share; without any, none."""
    some = share.nonzero().flatten().tolist()
    return slice(some[0], some[-1] + 1) if some else slice(0, 0)
