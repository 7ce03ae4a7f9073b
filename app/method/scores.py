"""From attention logits to class scores on a grid, and from a grid to pixels (paper, section 3.2).

evidence  →  prompt_scores  →  class_scores  →  mean over layers  →  ScoreMap  →  .at(size)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ScoreMap:
    """Scores per class on a grid that covers the network's input.

    Attributes:
        values: In rows of the grid; class 0 is the background.
        grid_hw: Rows and columns.
        align_corners: True if the corner places lie on the corner pixels (the authors' patches), False if every place
            lies in the middle of its cell (a mask decoder's).
    """

    values: Float[Tensor, "class place"]
    grid_hw: tuple[int, int]
    align_corners: bool

    def at(self, size_hw: tuple[int, int]) -> Float[Tensor, "class height width"]:
        """The scores at a size, interpolated bilinearly."""
        grid = self.values.reshape(1, len(self.values), *self.grid_hw)
        return F.interpolate(grid, size=size_hw, mode="bilinear", align_corners=self.align_corners)[0]

    def probabilities(self, size_hw: tuple[int, int]) -> Float[Tensor, "class height width"]:
        """The scores at a size, divided by their sum over classes."""
        return normalise(self.at(size_hw))


@dataclass(frozen=True)
class LayerWeights:
    """Layers that a request reads, and each class's weight of each of them (rows sum to 1)."""

    layers: tuple[int, ...]
    weights: Float[Tensor, "class layer"]

    def only(self, classes: Sequence[int]) -> "LayerWeights":
        """The weights of some classes."""
        return LayerWeights(self.layers, self.weights[list(classes)])

    @staticmethod
    def mean(layers: Sequence[int], classes: int) -> "LayerWeights":
        """The same weight for every layer (the paper)."""
        return LayerWeights(tuple(layers), torch.full((classes, len(layers)), 1 / len(layers)))


def head_max(logits: Float[Tensor, "prompt head token patch"]) -> Float[Tensor, "prompt token patch"]:
    """The strongest head at each patch."""
    return logits.amax(dim=1)


def token_sum(
    strongest: Float[Tensor, "prompt token patch"], attention_mask: Int[Tensor, "prompt token"]
) -> Float[Tensor, "prompt patch"]:
    """Sum over a prompt's tokens.

    Padding counts nothing; all others stay, also `[CLS]`, "image", "of", "." and `[SEP]`.
    """
    return (strongest * attention_mask[:, :, None].to(strongest.dtype)).sum(dim=1)


def prompt_scores(
    patch_logits: Float[Tensor, "prompt patch"], match_score: Float[Tensor, "prompt"]
) -> Float[Tensor, "prompt patch"]:
    """Softmax over the prompts at every patch, times each prompt's image-text score."""
    return patch_logits.softmax(dim=0) * match_score[:, None]


def class_scores(
    scores: Float[Tensor, "prompt patch"], spans: Sequence[tuple[int, int]]
) -> Float[Tensor, "class patch"]:
    """Sum over the background's prompts (it is all of them); maximum over a category's (they are synonyms)."""
    background = scores[slice(*spans[0])].sum(dim=0, keepdim=True)
    return torch.cat([background, strongest(scores, spans[1:])])


def strongest(
    values: Float[Tensor, "prompt *place"], spans: Sequence[tuple[int, int]]
) -> Float[Tensor, "class *place"]:
    """The maximum over the prompts of each class."""
    found = values[[start for start, _ in spans]]
    # Most categories have one word: of ten thousand, only those with several are looked at one by one.
    several = [(number, span) for number, span in enumerate(spans) if span[1] - span[0] > 1]
    if several:
        numbers, prompts = zip(*several, strict=True)
        found[list(numbers)] = torch.stack([values[slice(*span)].amax(dim=0) for span in prompts])
    return found


def normalise(maps: Float[Tensor, "class *place"]) -> Float[Tensor, "class *place"]:
    """Scores divided by their sum over classes."""
    return maps / maps.sum(dim=0, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
