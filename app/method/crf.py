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
# Numbers of a band of rows of all classes, a megabyte.
_BAND_VALUES = 2**18
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


@torch.no_grad()
def conv_crf(
    class_map: Float[Tensor, "class height width"],
    colours: Float[Tensor, "3 height width"],
    parameters: CrfParameters | None = None,
) -> Float[Tensor, "class height width"]:
    """Refine class probabilities along the image's edges.

    Args:
        class_map: Probabilities that sum to 1 over classes.
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
    grid = _Grid(height, width, p.blur)
    coarse = grid.pool(evidence)
    alive = torch.arange(len(class_map), device=class_map.device)
    for _ in range(p.iterations - 1):
        message = pass_messages(coarse, weights, p.filter_size)
        for rows, band in grid.bands(len(evidence)):
            coarse[:, rows] = grid.pool(_answer(evidence[:, band], grid.upsample(message, rows), p), rows)
        # 4. Only those classes go on that still are somewhere.
        left = (coarse.flatten(1).amax(dim=1) > _LOST).nonzero().flatten()
        if len(left) < len(coarse):
            coarse, evidence, alive = coarse[left], evidence[left], alive[left]
    message = pass_messages(coarse, weights, p.filter_size)
    refined = torch.zeros_like(class_map)
    for rows, band in grid.bands(len(evidence)):
        refined[:, band].index_copy_(0, alive, _answer(evidence[:, band], grid.upsample(message, rows), p))
    return refined


def _answer(
    evidence: Float[Tensor, "class height width"], message: Float[Tensor, "class height width"], p: CrfParameters
) -> Float[Tensor, "class height width"]:
    return message.lerp_(evidence, 1 - p.message_weight).softmax(dim=0)


@dataclass(frozen=True)
class _Grid:
    """The blurred image: 1/blur of the resolution, average pooling down and bilinear interpolation up.

    Between two messages the full resolution is passed through in bands of rows that fit into the processor's cache:
    main memory sees the evidence alone.

    Attributes:
        height: Pixels.
        width: Pixels.
        blur: Pixels of a blurred one, along a side; those of the first row and column may be fewer.
    """

    height: int
    width: int
    blur: int

    @property
    def padding(self) -> tuple[int, int]:
        """Pixels that are missing in the first row and column."""
        return (-self.height % self.blur + 1) // 2, (-self.width % self.blur + 1) // 2

    @property
    def shape(self) -> tuple[int, int]:
        """Blurred rows and columns."""
        return -(-self.height // self.blur), -(-self.width // self.blur)

    def bands(self, classes: int) -> Iterator[tuple[slice, slice]]:
        """Blurred rows, and the rows of pixels in them."""
        rows, top = self.shape[0], self.padding[0]
        step = max(1, _BAND_VALUES // (classes * self.width * self.blur))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield slice(start, stop), slice(max(0, start * self.blur - top), min(self.height, stop * self.blur - top))

    def pool(
        self, maps: Float[Tensor, "class height width"], rows: slice = slice(0, None)
    ) -> Float[Tensor, "class y x"]:
        """Average pooling of the pixels in some blurred rows; what is missing doesn't count."""
        top, left = self.padding
        padding = (top if rows.start == 0 else 0, left)
        pooled = F.avg_pool2d(maps[None], self.blur, padding=padding, ceil_mode=True, count_include_pad=False)[0]
        stop = self.shape[0] if rows.stop is None else rows.stop
        return pooled[:, : stop - rows.start, : self.shape[1]]

    def upsample(self, coarse: Float[Tensor, "class y x"], rows: slice) -> Float[Tensor, "class height width"]:
        """The pixels in some blurred rows; their neighbours above and below have a part in them."""
        (top, left), above = self.padding, max(0, rows.start - 1)
        near = coarse[None, :, above : rows.stop + 1]
        fine = F.interpolate(near, scale_factor=self.blur, mode="bilinear", align_corners=False)[0]
        start, stop = max(rows.start * self.blur, top), min(rows.stop * self.blur, top + self.height)
        return fine[:, start - above * self.blur : stop - above * self.blur, left : left + self.width]


def neighbour_weights(
    colours: Float[Tensor, "3 height width"], p: CrfParameters
) -> Float[Tensor, "block neighbour pixel"]:
    """The merged kernel, position and colour, summed and not normalised: what each pixel of a block takes of each
    neighbour of the block.

    Pixels are blurred ones, blocks squares of `_BLOCK`, row by row; a block's neighbours are the pixels at most
    filter_size // 2 rows and columns away from it. One out of a pixel's reach or outside the image has weight 0.
    """
    height, width = colours.shape[1:]
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=colours.dtype, device=colours.device),
        torch.arange(width, dtype=colours.dtype, device=colours.device),
        indexing="ij",
    )
    grid = _Grid(height, width, p.blur)
    position = grid.pool(torch.stack([rows, columns]) / p.position_deviation)
    colour = grid.pool(colours / p.colour_deviation)
    kernel = p.position_weight * _gaussian(position, p.filter_size)
    kernel += p.colour_weight * _gaussian(colour, p.filter_size)
    inside = _windows(torch.ones_like(colour[:1]), p.filter_size).mT
    return kernel.mul_(inside).mul_(_within_reach(p.filter_size).to(kernel))


def pass_messages(
    prediction: Float[Tensor, "class y x"], weights: Float[Tensor, "block neighbour pixel"], filter_size: int
) -> Float[Tensor, "class y x"]:
    """Σ over neighbours of weight × the neighbour's prediction."""
    height, width = prediction.shape[1:]
    down, across = -(-height // _BLOCK), -(-width // _BLOCK)
    blocks = _windows(prediction, filter_size) @ weights
    maps = blocks.view(down, across, -1, _BLOCK, _BLOCK).permute(2, 0, 3, 1, 4)
    return maps.reshape(-1, down * _BLOCK, across * _BLOCK)[:, :height, :width]


def _windows(maps: Float[Tensor, "channel y x"], filter_size: int) -> Float[Tensor, "block channel neighbour"]:
    """Each block's neighbours; 0 outside the image."""
    reach = filter_size // 2
    side = _BLOCK + 2 * reach
    height, width = maps.shape[1:]
    padded = F.pad(maps, (reach, reach + -width % _BLOCK, reach, reach + -height % _BLOCK))
    return padded.unfold(1, side, _BLOCK).unfold(2, side, _BLOCK).permute(1, 2, 0, 3, 4).flatten(3).flatten(0, 1)


def _gaussian(features: Float[Tensor, "channel y x"], filter_size: int) -> Float[Tensor, "block neighbour pixel"]:
    windows = _windows(features, filter_size)
    reach = filter_size // 2
    side = _BLOCK + 2 * reach
    inner = slice(reach, reach + _BLOCK)
    pixels = windows.view(*windows.shape[:2], side, side)[..., inner, inner].flatten(2)
    # From the block's own mean, since the products below lose the digits that all features share.
    mean = pixels.mean(dim=2, keepdim=True)
    windows, pixels = windows - mean, pixels - mean
    # exp(−|a − b|² / 2) = exp(a·b − |a|² / 2 − |b|² / 2).
    own, other = pixels.square().sum(dim=1, keepdim=True), windows.square().sum(dim=1)[..., None]
    return torch.baddbmm(own, windows.mT, pixels, beta=-0.5).sub_(0.5 * other).exp_()


def _within_reach(filter_size: int) -> Bool[Tensor, "neighbour pixel"]:
    """Whether a block's neighbour is in the filter's square around a pixel of the block."""
    side = _BLOCK + 2 * (filter_size // 2)
    distance = torch.arange(side)[:, None] - torch.arange(_BLOCK)  # of a row (or column) to the filter's first one
    near = (distance >= 0) & (distance < filter_size)
    return (near[:, None, :, None] & near[None, :, None, :]).flatten(2).flatten(0, 1)
