"""ConvCRF: mask edges follow the photo's edges (Teichmann & Cipolla 2018, https://arxiv.org/abs/1805.04777).

A round's messages cost 2 · classes · blurred pixels · filter_size² operations. As sums over shifted images, or over
neighbourhoods that are copied out, they wait for memory. Here a square of pixels and all pixels within reach of it make
up one small dense matrix, half of which is the filter: messages are a batch of matrix products. And a class that has
lost everywhere has no say any more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

# Side of the squares of blurred pixels. A larger one wastes more products on pairs out of reach, a smaller one is
# slower per product.
_BLOCK = 8
# What is outside the image is so far away, in deviations, that it counts nothing.
_FAR = 1e6
# Numbers of a band of rows of all classes, two megabytes.
_BAND_VALUES = 2**19
# A class that is nowhere more probable than this has lost.
_LOST = 1e-6


@dataclass(frozen=True)
class CrfParameters:
    """The authors' settings.

    Attributes:
        iterations: Rounds of mean-field inference.
        filter_size: Side of the square of neighbours, in blurred pixels; odd.
        blur: Messages pass at 1/blur of the resolution.
        message_weight: Share of the neighbours' message; the rest is the pixel's own evidence.
        position_deviation: Pixels over which nearness decays.
        position_weight: Compatibility of nearness.
        colour_deviation: Distance of normalised colours over which likeness decays.
        colour_weight: Compatibility of likeness.
    """

    iterations: int = 20
    filter_size: int = 15
    blur: int = 4
    message_weight: float = 0.2
    position_deviation: float = 3.0
    position_weight: float = 3.0
    colour_deviation: float = 0.1
    colour_weight: float = 10.0


# Three rounds of near neighbours: what the embedded model's masks, which have edges already, gain by (docs/quality.md).
THREE_ROUNDS = CrfParameters(iterations=3, filter_size=7)


@torch.no_grad()
def conv_crf(
    class_map: Float[Tensor, "class height width"],
    colours: Float[Tensor, "3 height width"],
    parameters: CrfParameters | None = None,
) -> Float[Tensor, "class height width"]:
    """Refine class probabilities along the image's edges.

    Args:
        class_map: Probabilities; over classes they sum to 1, or less where unlikely classes were left out.
        colours: The image, ImageNet-normalised, of the same size.
        parameters: The authors' by default.

    Returns:
        Probabilities that sum to 1 over classes.
    """
    p = parameters or CrfParameters()
    # 1. The evidence is the log-softmax of *probabilities*: it spans less than 1 nat, so that the neighbours lead.
    evidence = class_map.log_softmax(dim=0)
    # 2. How much each neighbour counts depends on the image alone.
    weights = neighbour_weights(colours, p)
    # 3. The first message is taken of the log values themselves.
    _, height, width = class_map.shape
    rows, columns = Axis(height, p.blur, class_map), Axis(width, p.blur, class_map)
    coarse = rows.down @ evidence @ columns.down.T
    alive = torch.arange(len(class_map), device=class_map.device)
    for _ in range(p.iterations - 1):
        message = pass_messages(coarse, weights, p.filter_size) @ columns.up.T
        for blurred, band in rows.bands(evidence[:, 0].numel()):
            answer = _answer(evidence[:, band], rows.up[band], message, p)
            coarse[:, blurred] = rows.down[blurred, band] @ answer @ columns.down.T
        # 4. Only those classes go on that still are somewhere.
        left = (coarse.flatten(1).amax(dim=1) > _LOST).nonzero().flatten()
        if len(left) < len(coarse):
            coarse, evidence, alive = coarse[left], evidence[left], alive[left]
    message = pass_messages(coarse, weights, p.filter_size) @ columns.up.T
    refined = torch.zeros_like(class_map)
    for _, band in rows.bands(evidence[:, 0].numel()):
        refined[:, band].index_copy_(0, alive, _answer(evidence[:, band], rows.up[band], message, p))
    return refined


def _answer(
    evidence: Float[Tensor, "class row width"],
    up: Float[Tensor, "row y"],
    message: Float[Tensor, "class y width"],
    p: CrfParameters,
) -> Float[Tensor, "class row width"]:
    """What some rows of pixels make of their own evidence and of the message."""
    near = up.any(dim=0).nonzero().flatten()  # neighbours, so that a slice will do
    near_rows = slice(int(near[0]), int(near[-1]) + 1)
    up, message = up[:, near_rows].expand(len(message), -1, -1), message[:, near_rows]
    return torch.baddbmm(evidence, up, message, beta=1 - p.message_weight, alpha=p.message_weight).softmax(dim=0)


class Axis:
    """Rows (or columns) of pixels, and the fewer and wider ones between which messages pass.

    Both ways are a matrix: average pooling down, where what is missing of the first and the last one doesn't count, and
    linear interpolation up.

    Attributes:
        down: `[y, height]`.
        up: `[height, y]`.

    Args:
        length: Pixels.
        blur: Pixels of a blurred one.
        like: A tensor of the device and number format in use.
    """

    def __init__(self, length: int, blur: int, like: Tensor) -> None:
        count, padding = -(-length // blur), (-length % blur + 1) // 2
        pixels, places = torch.eye(length), torch.eye(count)
        pooled = F.avg_pool1d(pixels[None], blur, padding=padding, ceil_mode=True, count_include_pad=False)[0]
        self.down = pooled.T[:count].to(like)
        self.up = (
            F.interpolate(places[None], scale_factor=blur, mode="linear")[0].T[padding : padding + length].to(like)
        )
        self._length, self._blur, self._padding = length, blur, padding

    @property
    def centres(self) -> Float[Tensor, "y"]:
        """Where the blurred ones are, in pixels."""
        return self.down @ torch.arange(self._length).to(self.down)

    def bands(self, values: int) -> Iterator[tuple[slice, slice]]:
        """Some blurred rows at a time, and their rows of pixels: as many as fit into the processor's cache.

        Between two messages the full resolution is gone through in these bands, so that main memory sees the evidence
        alone.

        Args:
            values: Numbers of a row of pixels.
        """
        step = max(1, _BAND_VALUES // (values * self._blur))
        for start in range(0, len(self.down), step):
            stop = min(start + step, len(self.down))
            first, last = (index * self._blur - self._padding for index in (start, stop))
            yield slice(start, stop), slice(max(0, first), min(self._length, last))


def neighbour_weights(
    colours: Float[Tensor, "3 height width"], p: CrfParameters
) -> Float[Tensor, "block neighbour pixel"]:
    """The merged kernel, position and colour, summed and not normalised: what each pixel of a block takes of each
    neighbour of the block.

    Pixels are blurred ones, blocks squares of `_BLOCK`, row by row; a block's neighbours are the pixels at most
    filter_size // 2 rows and columns away from it. One out of a pixel's reach or outside the image has weight 0.
    """
    vertical, horizontal = (Axis(length, p.blur, colours) for length in colours.shape[1:])
    rows, columns = (_nearness(axis.centres / p.position_deviation, p.filter_size) for axis in (vertical, horizontal))
    windows = _windows(vertical.down @ (colours / p.colour_deviation) @ horizontal.down.T, p.filter_size)
    outside = 1 - _windows(colours.new_ones(1, len(vertical.down), len(horizontal.down)), p.filter_size)[..., 0]
    near = _within_reach(p.filter_size)
    reach = (near[:, None, :, None] & near[None, :, None, :]).reshape(windows.shape[1], -1).to(colours)
    weights = windows.new_empty(len(rows), len(columns), *reach.shape)
    # A row of blocks at a time, which fits into the processor's cache.
    parts = zip(weights, rows, windows.chunk(len(rows)), outside.chunk(len(rows)), strict=True)
    for out, row, colour, beyond in parts:
        product = row[None, :, None, :, None] * columns[:, None, :, None, :]
        torch.mul(product.view_as(out), p.position_weight, out=out)
        out.add_(_likeness(colour, beyond, p.filter_size).mul_(reach), alpha=p.colour_weight)
    return weights.flatten(0, 1)


def pass_messages(
    prediction: Float[Tensor, "class y x"], weights: Float[Tensor, "block neighbour pixel"], filter_size: int
) -> Float[Tensor, "class y x"]:
    """Σ over neighbours of weight × the neighbour's prediction."""
    classes, height, width = prediction.shape
    down, across = -(-height // _BLOCK), -(-width // _BLOCK)
    blocks = _windows(prediction, filter_size).mT @ weights
    maps = blocks.view(down, across, classes, _BLOCK, _BLOCK).permute(2, 0, 3, 1, 4)
    return maps.reshape(classes, down * _BLOCK, across * _BLOCK)[:, :height, :width]


def _windows(maps: Float[Tensor, "channel y x"], filter_size: int) -> Float[Tensor, "block neighbour channel"]:
    """Each block's neighbours; 0 outside the image."""
    reach = filter_size // 2
    side = _BLOCK + 2 * reach
    channels, height, width = maps.shape
    padded = F.pad(maps, (reach, reach + -width % _BLOCK, reach, reach + -height % _BLOCK))
    # Channels last: what is copied are whole rows of windows.
    windows = padded.permute(1, 2, 0).contiguous().unfold(0, side, _BLOCK).unfold(1, side, _BLOCK)
    return windows.permute(0, 1, 3, 4, 2).reshape(-1, side * side, channels)


def _likeness(
    windows: Float[Tensor, "block neighbour channel"], outside: Float[Tensor, "block neighbour"], filter_size: int
) -> Float[Tensor, "block neighbour pixel"]:
    """exp(−|a − b|² / 2) of every neighbour and every pixel of some blocks; 0 outside the image."""
    reach = filter_size // 2
    side = _BLOCK + 2 * reach
    inner = slice(reach, reach + _BLOCK)
    pixels = windows.view(-1, side, side, windows.shape[2])[:, inner, inner].flatten(1, 2)
    # From the block's own mean, since the products below lose the digits that all features share.
    mean = pixels.mean(dim=1, keepdim=True)
    windows, pixels = windows - mean, pixels - mean
    # −|a − b|² / 2 = a·b − |a|² / 2 − |b|² / 2
    own, other = pixels.square().sum(dim=2)[:, None], windows.square().sum(dim=2) + _FAR * outside
    return torch.baddbmm(own, windows, pixels.mT, beta=-0.5).sub_(0.5 * other[..., None]).exp_()


def _nearness(centres: Float[Tensor, "place"], filter_size: int) -> Float[Tensor, "block neighbour pixel"]:
    """exp(−(a − b)² / 2) of blocks' neighbours and pixels along one axis; 0 out of reach and outside the image."""
    reach = filter_size // 2
    padded = F.pad(centres, (reach, reach + -len(centres) % _BLOCK), value=_FAR)
    windows = padded.unfold(0, _BLOCK + 2 * reach, _BLOCK)
    distance = windows[:, :, None] - windows[:, None, reach : reach + _BLOCK]
    return torch.exp(-0.5 * distance.square()) * _within_reach(filter_size).to(distance)


def _within_reach(filter_size: int) -> Bool[Tensor, "neighbour pixel"]:
    """Whether a block's neighbour is in the filter's range of a pixel of the block, along one axis."""
    distance = torch.arange(_BLOCK + 2 * (filter_size // 2))[:, None] - torch.arange(_BLOCK)  # to the first in range
    return (distance >= 0) & (distance < filter_size)
