"""ConvCRF: mask edges follow the photo's edges (Teichmann & Cipolla 2018, https://arxiv.org/abs/1805.04777)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


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
    prediction = evidence
    for _ in range(p.iterations):
        message = blurred(prediction, p.blur, lambda coarse: pass_messages(coarse, weights))
        prediction = ((1 - p.message_weight) * evidence + p.message_weight * message).softmax(dim=0)
    return prediction


def neighbour_weights(colours: Float[Tensor, "3 height width"], p: CrfParameters) -> Float[Tensor, "neighbour y x"]:
    """The merged kernel at every blurred pixel: position and colour, summed and not normalised.

    A neighbour outside the image has weight 0.
    """
    height, width = colours.shape[1:]
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=colours.dtype, device=colours.device),
        torch.arange(width, dtype=colours.dtype, device=colours.device),
        indexing="ij",
    )
    position = _pool(torch.stack([rows, columns]) / p.position_deviation, p.blur)
    colour = _pool(colours / p.colour_deviation, p.blur)
    return p.position_weight * _gaussian(position, p.filter_size) + p.colour_weight * _gaussian(colour, p.filter_size)


def pass_messages(
    prediction: Float[Tensor, "class y x"], weights: Float[Tensor, "neighbour y x"]
) -> Float[Tensor, "class y x"]:
    """Σ over neighbours of weight × the neighbour's prediction, one shift of the image at a time."""
    size = round(weights.shape[0] ** 0.5)
    height, width = prediction.shape[1:]
    padded = F.pad(prediction, (size // 2,) * 4)
    message = torch.zeros_like(prediction)
    for index, weight in enumerate(weights):
        row, column = divmod(index, size)
        message.addcmul_(padded[:, row : row + height, column : column + width], weight)
    return message


def blurred(
    maps: Float[Tensor, "class height width"], blur: int, function: Callable[[Tensor], Tensor]
) -> Float[Tensor, "class height width"]:
    """Apply a function at 1/blur of the resolution: average pooling down, bilinear up."""
    height, width = maps.shape[1:]
    top, left = (-height % blur + 1) // 2, (-width % blur + 1) // 2
    coarse = function(_pool(maps, blur))
    fine = F.interpolate(coarse[None], scale_factor=blur, mode="bilinear", align_corners=False)[0]
    return fine[:, top : top + height, left : left + width]


def _pool(maps: Float[Tensor, "channel height width"], blur: int) -> Float[Tensor, "channel y x"]:
    height, width = maps.shape[1:]
    padding = ((-height % blur + 1) // 2, (-width % blur + 1) // 2)
    return F.avg_pool2d(maps[None], blur, padding=padding, count_include_pad=False)[0]


def _gaussian(features: Float[Tensor, "channel y x"], size: int) -> Float[Tensor, "neighbour y x"]:
    height, width = features.shape[1:]
    reach = size // 2
    padded = F.pad(features, (reach,) * 4)
    inside = F.pad(features.new_ones(height, width), (reach,) * 4)
    rows = []
    for row in range(size):
        for column in range(size):
            window = (slice(row, row + height), slice(column, column + width))
            distance = (padded[:, window[0], window[1]] - features).square().sum(dim=0)
            rows.append(torch.exp(-0.5 * distance) * inside[window])
    return torch.stack(rows)
