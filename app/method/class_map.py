"""From attention logits to a map of class scores on the patch grid (paper, section 3.2)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


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
    """Let the prompts compete at every patch, and weigh each by how well it describes the whole image."""
    return patch_logits.softmax(dim=0) * match_score[:, None]


def class_scores(
    scores: Float[Tensor, "prompt patch"], spans: Sequence[tuple[int, int]]
) -> Float[Tensor, "class patch"]:
    """Background is the sum over its prompts (it is all of them), a category the best of them (they are synonyms)."""
    background, *categories = [scores[start:stop] for start, stop in spans]
    return torch.stack([background.sum(dim=0), *(prompts.amax(dim=0) for prompts in categories)])


def upsample(
    maps: Float[Tensor, "class patch"], grid_hw: tuple[int, int], size_hw: tuple[int, int], *, corners: bool = True
) -> Float[Tensor, "class height width"]:
    """Patch grid to pixels, corner patches on corner pixels (the authors'), or every patch where it lies."""
    grid = maps.reshape(1, maps.shape[0], *grid_hw)
    return F.interpolate(grid, size=size_hw, mode="bilinear", align_corners=corners)[0]


def normalise(maps: Float[Tensor, "class *place"]) -> Float[Tensor, "class *place"]:
    """Scores to probabilities: divide by the sum over classes."""
    return maps / maps.sum(dim=0, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
