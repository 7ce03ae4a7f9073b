"""A closer look: a photo is seen in four overlapping parts too, in which small things are larger, and the maps join."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from .backbone import Backbone
from .evidence import Query
from .frame import Frame
from .prompts import BACKGROUND_WORDS, free_background
from .segment import ClassMap, class_map

# Two by two parts of so much of each side: what lies at the edge of one is well inside of another.
_SIDE = 0.6
# Say of the whole photo, which knows what is there; the rest is its parts' (docs/quality.md).
_WHOLE = 0.6
# Share of a part's side over which it fades into its neighbour.
_FADE = 0.25


@dataclass(frozen=True)
class Tile:
    """A part of a photo: its rows and columns, in pixels."""

    rows: slice
    columns: slice

    def of(self, photo: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "tile_height tile_width 3"]:
        """The part itself."""
        return np.ascontiguousarray(photo[self.rows, self.columns])


@dataclass(frozen=True)
class SeenTile:
    """A part of a photo, as the network sees it."""

    tile: Tile
    frame: Frame
    image_tokens: Float[Tensor, "image_token width"]


def see_tiles(
    backbone: Backbone,
    photo: UInt8[np.ndarray, "height width 3"],
    encode: Callable[[int, Float[Tensor, "3 size size"]], Tensor],
) -> list[SeenTile]:
    """Show the network every part of a photo.

    Args:
        encode: Gives a part's image tokens, of its number and its network input.
    """
    seen = []
    for number, tile in enumerate(tiles_of((photo.shape[0], photo.shape[1]))):
        rgb, frame = backbone.preprocess(tile.of(photo))
        seen.append(SeenTile(tile, frame, encode(number, rgb)))
    return seen


@torch.no_grad()
def look_closer(
    backbone: Backbone,
    whole: ClassMap,
    frame: Frame,
    tiles: Callable[[], Sequence[SeenTile]],
    queries: Sequence[Query],
    *,
    layers: Sequence[int] | None = None,
    background: Sequence[str] = BACKGROUND_WORDS,
    second_look: bool = True,
) -> ClassMap:
    """The class map of a whole photo, joined with those of its parts.

    What the whole doesn't show at all isn't looked for in the parts; where nothing is left they are not needed.

    Args:
        whole: By `class_map`, for the same queries, layers and background.
        frame: Of the whole photo.
        tiles: Gives its parts (`see_tiles`).
        second_look: As of `class_map`.
    """
    there = whole.probabilities.flatten(1).any(dim=1)
    there[0] = True
    classes = [number for number, is_there in zip(whole.classes, there.tolist(), strict=True) if is_there]
    if len(classes) == 1:
        return whole
    # A word that names a category stays out of the background, also where that category isn't looked for any more.
    words = free_background(background, [word for query in queries for word in query.words])
    sought = [queries[number - 1] for number in classes[1:]]
    parts = (  # one after the other: of many classes the maps of all at once are gigabytes
        (
            one.tile,
            one.frame,
            class_map(
                backbone, one.image_tokens, sought, layers=layers, background=words, second_look=second_look
            ).probabilities,
        )
        for one in tiles()
    )
    joined = join(whole.probabilities[there], frame, parts)
    return replace(whole, classes=tuple(classes), probabilities=joined)


def tiles_of(photo_hw: tuple[int, int]) -> tuple[Tile, ...]:
    """The parts of a photo of this height and width, row by row."""
    rows, columns = (_parts(side) for side in photo_hw)
    return tuple(Tile(row, column) for row in rows for column in columns)


def join(
    whole: Float[Tensor, "class size size"],
    frame: Frame,
    parts: Iterable[tuple[Tile, Frame, Float[Tensor, "class size size"]]],
) -> Float[Tensor, "class size size"]:
    """Probabilities by the whole photo and by its parts; they sum to as much over classes as before.

    Args:
        whole: On the network's input.
        frame: Of the whole photo.
        parts: Where each lies, its frame, and its probabilities of the same classes on an input of its own.
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
    joined[:, :height, :width] = _WHOLE * whole[:, :height, :width] + (1 - _WHOLE) * total / weight
    return joined


def _parts(side: int) -> tuple[slice, slice]:
    length = max(1, round(_SIDE * side))
    return slice(0, length), slice(side - length, side)


def _scaled(part: slice, side: int, content: int) -> slice:
    """A part of one axis of the photo, on the input."""
    start, stop = (round(edge * content / side) for edge in (part.start, part.stop))
    return slice(start, max(stop, start + 1))


def _faded(part: slice, content: int) -> Float[Tensor, "pixel"]:
    """Weights of a part's pixels along one axis: full but for the edge that another part covers too."""
    count = part.stop - part.start
    centres = (torch.arange(count) + 0.5) / (_FADE * count)
    weights = torch.ones(count)
    if part.start > 0:
        weights = weights.minimum(centres)
    if part.stop < content:
        weights = weights.minimum(centres.flip(0))
    return weights
