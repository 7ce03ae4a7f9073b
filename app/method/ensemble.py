"""Which layers speak for which class, and how loud."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .adapter import Adapter
from .class_map import class_scores, prompt_scores
from .evidence import Evidence


@dataclass(frozen=True)
class LayerWeights:
    """The layers read for a request, and each class's weight of each of them (rows sum to 1)."""

    layers: tuple[int, ...]
    weights: Float[Tensor, "class layer"]


def layer_weights(adapters: Sequence[Adapter | None], chosen: Sequence[int]) -> LayerWeights:
    """A class without an adapter averages the chosen layers (the paper); an adapter brings its own layers and weights.

    So categories taught before a new ranking of the layers and after it work side by side.
    """
    layers = tuple(sorted({*chosen, *(layer for adapter in adapters if adapter for layer in adapter.layers)}))
    column = {layer: index for index, layer in enumerate(layers)}
    weights = torch.zeros(len(adapters), len(layers))
    for row, adapter in enumerate(adapters):
        own = (
            zip(adapter.layers, adapter.ensemble, strict=True)
            if adapter
            else ((layer, 1 / len(chosen)) for layer in chosen)
        )
        for layer, weight in own:
            weights[row, column[layer]] = weight
    return LayerWeights(layers, weights)


def weighted_scores(evidence: Evidence, weights: LayerWeights) -> Float[Tensor, "class patch"]:
    """Class scores on the patch grid, mixed over layers (before upsampling: both are linear, so the order is free)."""
    per_layer = [
        class_scores(prompt_scores(logits, evidence.match_score), evidence.spans) for logits in evidence.patch_logits
    ]
    mix = weights.weights.to(per_layer[0])
    return torch.stack([mix[:, [index]] * scores for index, scores in enumerate(per_layer)]).sum(dim=0)
