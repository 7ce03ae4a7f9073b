"""ConvCRF: refines mask edges along the photo's edges (Teichmann & Cipolla 2018, https://arxiv.org/abs/1805.04777).

The messages of one round cost 2 · classes · blurred pixels · filter_size² operations. Computed as sums over shifted
images or over copied neighbourhoods, they are limited by memory bandwidth. Here a square block of pixels and all pixels
in range of it form one small dense matrix, about half of whose entries belong to the filter, and the messages are a
batch of matrix products. A class that has become improbable everywhere is dropped.

On a CPU `conv_crf.cpp` computes the same three to ten times as fast, if the project was installed where a compiler is.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

try:
    from . import _conv_crf
except ImportError:
    IS_COMPILED = False
else:
    IS_COMPILED = True

# Side of a block, in blurred pixels. A larger block wastes more products on pairs out of range, a smaller one is slower
# per product.
_BLOCK = 8
# Distance of positions outside the image, in standard deviations: large enough for a weight of 0.
_FAR = 1e6
# Values in a band of rows of all classes: 2 MiB in float32.
_BAND_VALUES = 2**19
# A class that is nowhere more probable than this is dropped.
_LOST = 1e-6


@dataclass(frozen=True)
class CrfParameters:
    """Parameters of ConvCRF; the defaults are the authors'.

    Attributes:
        iterations: Rounds of mean-field inference.
        filter_size: Side of the square of neighbours, in blurred pixels; odd.
        blur: Messages are passed at 1/blur of the resolution.
        message_weight: Weight of the neighbours' message; the pixel's own evidence has the rest.
        position_deviation: Standard deviation of the position kernel, in pixels.
        position_weight: Weight (compatibility) of the position kernel.
        colour_deviation: Standard deviation of the colour kernel, in normalised colour values.
        colour_weight: Weight (compatibility) of the colour kernel.
    """

    iterations: int = 20
    filter_size: int = 15
    blur: int = 4
    message_weight: float = 0.2
    position_deviation: float = 3.0
    position_weight: float = 3.0
    colour_deviation: float = 0.1
    colour_weight: float = 10.0


# Three rounds with near neighbours: improves the embedded model's masks, which already have edges (docs/quality.md).
THREE_ROUNDS = CrfParameters(iterations=3, filter_size=7)


@torch.no_grad()
def conv_crf(
    class_map: Float[Tensor, "class height width"],
    colours: Float[Tensor, "3 height width"],
    parameters: CrfParameters | None = None,
) -> Float[Tensor, "class height width"]:
    """Refine class probabilities along the image's edges.

    Args:
        class_map: Probabilities; they sum to 1 over classes, or to less if unlikely classes were left out.
        colours: The ImageNet-normalised image, of the same size.
        parameters: Default: the authors' parameters.

    Returns:
        Probabilities that sum to 1 over classes.
    """
    p = parameters or CrfParameters()
    if IS_COMPILED and class_map.device.type == "cpu" and class_map.dtype is torch.float32:
        return _compiled(class_map, colours, p)
    return by_matrices(class_map, colours, p)


def _compiled(
    class_map: Float[Tensor, "class height width"], colours: Float[Tensor, "3 height width"], p: CrfParameters
) -> Float[Tensor, "class height width"]:
    refined = np.zeros(class_map.shape, np.float32)
    evidence, photo = class_map.detach().contiguous().numpy(), colours.detach().float().contiguous().numpy()
    _conv_crf.conv_crf(evidence, photo, refined, refined.shape, astuple(p), torch.get_num_threads())
    return torch.from_numpy(refined)


def by_matrices(
    class_map: Float[Tensor, "class height width"], colours: Float[Tensor, "3 height width"], p: CrfParameters
) -> Float[Tensor, "class height width"]:
    """`conv_crf` on any device, as matrix products."""
    # 1. The evidence is the log-softmax of *probabilities*: its range is below 1 nat, so the neighbours dominate.
    evidence = class_map.log_softmax(dim=0)
    # 2. The weights of the neighbours depend on the image alone.
    weights = neighbour_weights(colours, p)
    # 3. The first message is computed from the log values, not from probabilities.
    _, height, width = class_map.shape
    rows, columns = Axis(height, p.blur, class_map), Axis(width, p.blur, class_map)
    coarse = rows.down @ evidence @ columns.down.T
    alive = torch.arange(len(class_map), device=class_map.device)
    for _ in range(p.iterations - 1):
        message = pass_messages(coarse, weights, p.filter_size) @ columns.up.T
        for blurred, band in rows.bands(evidence[:, 0].numel()):
            answer = _answer(evidence, rows, band, message, p)
            coarse[:, blurred] = rows.down[blurred, band] @ answer @ columns.down.T
        # 4. Classes that are improbable everywhere are left out of the next rounds.
        left = (coarse.flatten(1).amax(dim=1) > _LOST).nonzero().flatten()
        if len(left) < len(coarse):
            coarse, evidence, alive = coarse[left], evidence[left], alive[left]
    message = pass_messages(coarse, weights, p.filter_size) @ columns.up.T
    refined = torch.zeros_like(class_map)
    for _, band in rows.bands(evidence[:, 0].numel()):
        refined[:, band].index_copy_(0, alive, _answer(evidence, rows, band, message, p))
    return refined


def _answer(
    evidence: Float[Tensor, "class height width"],
    rows: "Axis",
    band: slice,
    message: Float[Tensor, "class y width"],
    p: CrfParameters,
) -> Float[Tensor, "class row width"]:
    """New class probabilities of a band of pixel rows, from their evidence and the message."""
    near = rows.near(band)
    up, message = rows.up[band, near].expand(len(message), -1, -1), message[:, near]
    mixed = torch.baddbmm(evidence[:, band], up, message, beta=1 - p.message_weight, alpha=p.message_weight)
    return mixed.softmax(dim=0)


class Axis:
    """Downsampling and upsampling along one axis, between pixels and blurred pixels.

    Both are matrices: average pooling, in which padding at the two ends does not count, and linear interpolation.

    Attributes:
        down: Pooling matrix `[y, height]`.
        up: Interpolation matrix `[height, y]`.

    Args:
        length: Number of pixels.
        blur: Number of pixels in a blurred pixel.
        like: A tensor with the device and number format to use.
    """

    def __init__(self, length: int, blur: int, like: Tensor) -> None:
        count, padding = -(-length // blur), (-length % blur + 1) // 2
        pixels, places = torch.eye(length), torch.eye(count)
        pooled = F.avg_pool1d(pixels[None], blur, padding=padding, ceil_mode=True, count_include_pad=False)[0]
        up = F.interpolate(places[None], scale_factor=blur, mode="linear")[0].T[padding : padding + length]
        self.down, self.up = pooled.T[:count].to(like), up.to(like)
        # Of each pixel, the first and the last blurred pixel that it is read from. The host knows them, so that no
        # band waits for a GPU to tell.
        mixed = up != 0
        self._first = mixed.int().argmax(dim=1).tolist()
        self._last = (count - 1 - mixed.flip(1).int().argmax(dim=1)).tolist()
        self._length, self._blur, self._padding = length, blur, padding

    @property
    def centres(self) -> Float[Tensor, "y"]:
        """Centres of the blurred pixels, in pixels."""
        return self.down @ torch.arange(self._length).to(self.down)

    def bands(self, values: int) -> Iterator[tuple[slice, slice]]:
        """Bands of blurred rows with their pixel rows, each small enough for the processor's cache.

        Between two messages the full resolution is processed band by band, so that only the evidence is read from main
        memory. A GPU takes all rows at once.

        Args:
            values: Number of values in a row of pixels, over all classes.
        """
        step = max(1, _BAND_VALUES // (values * self._blur)) if self.down.is_cpu else len(self.down)
        for start in range(0, len(self.down), step):
            stop = min(start + step, len(self.down))
            first, last = (index * self._blur - self._padding for index in (start, stop))
            yield slice(start, stop), slice(max(0, first), min(self._length, last))

    def near(self, band: slice) -> slice:
        """The blurred pixels that a band of pixels is read from."""
        return slice(self._first[band.start], self._last[band.stop - 1] + 1)


def neighbour_weights(
    colours: Float[Tensor, "3 height width"], p: CrfParameters
) -> Float[Tensor, "block neighbour pixel"]:
    """Weight of each neighbour of a block for each pixel of the block: position plus colour kernel, not normalised.

    Pixels are blurred pixels; blocks are squares with side `_BLOCK`, in row-major order. The neighbours of a block are
    the pixels at most filter_size // 2 rows and columns away from it. A neighbour out of range of a pixel, or outside
    the image, has weight 0.
    """
    vertical, horizontal = (Axis(length, p.blur, colours) for length in colours.shape[1:])
    rows, columns = (_nearness(axis.centres / p.position_deviation, p.filter_size) for axis in (vertical, horizontal))
    windows = _windows(vertical.down @ (colours / p.colour_deviation) @ horizontal.down.T, p.filter_size)
    outside = 1 - _windows(colours.new_ones(1, len(vertical.down), len(horizontal.down)), p.filter_size)[..., 0]
    near = _within_reach(p.filter_size)
    reach = (near[:, None, :, None] & near[None, :, None, :]).reshape(windows.shape[1], -1).to(colours)
    weights = windows.new_empty(len(rows), len(columns), *reach.shape)
    # One row of blocks at a time, because it fits into the processor's cache.
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
    """Values of each block's neighbours; 0 outside the image."""
    reach = filter_size // 2
    side = _BLOCK + 2 * reach
    channels, height, width = maps.shape
    padded = F.pad(maps, (reach, reach + -width % _BLOCK, reach, reach + -height % _BLOCK))
    # Channels last, so that whole rows of windows are copied at once.
    windows = padded.permute(1, 2, 0).contiguous().unfold(0, side, _BLOCK).unfold(1, side, _BLOCK)
    return windows.permute(0, 1, 3, 4, 2).reshape(-1, side * side, channels)


def _likeness(
    windows: Float[Tensor, "block neighbour channel"], outside: Float[Tensor, "block neighbour"], filter_size: int
) -> Float[Tensor, "block neighbour pixel"]:
    """exp(−|a − b|² / 2) for every pair of neighbour and pixel of some blocks; 0 outside the image."""
    reach = filter_size // 2
    side = _BLOCK + 2 * reach
    inner = slice(reach, reach + _BLOCK)
    pixels = windows.view(-1, side, side, windows.shape[2])[:, inner, inner].flatten(1, 2)
    # Relative to the block's mean: a large common offset would cost the products below their precision.
    mean = pixels.mean(dim=1, keepdim=True)
    windows, pixels = windows - mean, pixels - mean
    # −|a − b|² / 2 = a·b − |a|² / 2 − |b|² / 2
    own, other = pixels.square().sum(dim=2)[:, None], windows.square().sum(dim=2) + _FAR * outside
    return torch.baddbmm(own, windows, pixels.mT, beta=-0.5).sub_(0.5 * other[..., None]).exp_()


def _nearness(centres: Float[Tensor, "place"], filter_size: int) -> Float[Tensor, "block neighbour pixel"]:
    """exp(−(a − b)² / 2) for neighbours and pixels along one axis; 0 out of range and outside the image."""
    reach = filter_size // 2
    padded = F.pad(centres, (reach, reach + -len(centres) % _BLOCK), value=_FAR)
    windows = padded.unfold(0, _BLOCK + 2 * reach, _BLOCK)
    distance = windows[:, :, None] - windows[:, None, reach : reach + _BLOCK]
    return torch.exp(-0.5 * distance.square()) * _within_reach(filter_size).to(distance)


def _within_reach(filter_size: int) -> Bool[Tensor, "neighbour pixel"]:
    """True where a neighbour of a block is within the filter's range of a pixel of the block, along one axis."""
    distance = torch.arange(_BLOCK + 2 * (filter_size // 2))[:, None] - torch.arange(_BLOCK)  # from the first in range
    return (distance >= 0) & (distance < filter_size)
