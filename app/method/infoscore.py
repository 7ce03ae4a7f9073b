"""InfoScore: selection of the layers to read, without labels (paper, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .scores import ScoreMap

_EPSILON = 1e-12


@dataclass(frozen=True)
class LayerStatistics:
    """Running sums over unlabelled images, from which InfoScore is computed; adding an image returns a new object.

    Per layer, where q[n, p] is the share of prompt p on image n (`prompt_shares`):

    Attributes:
        images: Number of images seen.
        entropy_sum: Σ_n H(q[n]).
        share_sum: Σ_n q[n].
        share_square_sum: Σ_n q[n]².
    """

    images: int
    entropy_sum: Float[Tensor, "layer"]
    share_sum: Float[Tensor, "layer prompt"]
    share_square_sum: Float[Tensor, "layer prompt"]

    @staticmethod
    def empty(layer_count: int, prompt_count: int) -> "LayerStatistics":
        """Statistics of zero images."""
        zeros = torch.zeros(layer_count, prompt_count, dtype=torch.float64)
        return LayerStatistics(0, zeros[:, 0].clone(), zeros, zeros.clone())

    def add(self, shares: Float[Tensor, "layer prompt"]) -> "LayerStatistics":
        """The statistics with one more image; float64, because the deviation is a difference of large sums."""
        q = shares.double().to(self.share_sum.device)
        return LayerStatistics(
            images=self.images + 1,
            entropy_sum=self.entropy_sum + _entropy(q),
            share_sum=self.share_sum + q,
            share_square_sum=self.share_square_sum + q**2,
        )

    def merge(self, other: "LayerStatistics") -> "LayerStatistics":
        """The statistics of both sets of images, for the same layers and prompts."""
        return LayerStatistics(
            images=self.images + other.images,
            entropy_sum=self.entropy_sum + other.entropy_sum,
            share_sum=self.share_sum + other.share_sum,
            share_square_sum=self.share_square_sum + other.share_square_sum,
        )


@dataclass(frozen=True)
class LayerScores:
    """InfoScore and its two factors, per layer."""

    infoscore: Float[Tensor, "layer"]
    entropy_ratio: Float[Tensor, "layer"]
    cov: Float[Tensor, "layer"]


def prompt_shares(
    scores: Float[Tensor, "prompt patch"], grid_hw: tuple[int, int], size_hw: tuple[int, int]
) -> Float[Tensor, "prompt"]:
    """Share of an image that each prompt gets at one layer: the mean over pixels of the normalised map.

    Every prompt counts as a class of its own here, background words too.
    """
    return ScoreMap(scores, grid_hw, align_corners=True).probabilities(size_hw).mean(dim=(1, 2))


def infoscore(statistics: LayerStatistics) -> LayerScores:
    """InfoScore = H_data / H_img · CoV.

    A good layer is certain about each image (low H_img), but not always in favour of the same prompts (high H_data),
    and its shares vary between images (high CoV: the sum over prompts of population standard deviation over mean).

    Raises:
        ValueError: If the statistics are those of zero images.
    """
    if statistics.images < 1:
        raise ValueError("expected statistics of at least one image, got none")
    count = statistics.images
    mean = statistics.share_sum / count
    variance = (statistics.share_square_sum / count - mean**2).clamp_min(0)
    entropy_ratio = _entropy(mean) / (statistics.entropy_sum / count).clamp_min(_EPSILON)
    cov = (variance.sqrt() / mean.clamp_min(_EPSILON)).sum(dim=1)
    return LayerScores(infoscore=entropy_ratio * cov, entropy_ratio=entropy_ratio, cov=cov)


def best_layers(scores: Float[Tensor, "layer"], count: int = 2) -> tuple[int, ...]:
    """The `count` layers with the highest scores, in network order (the authors keep 2 of 12)."""
    chosen: Sequence[int] = scores.topk(min(count, len(scores))).indices.tolist()
    return tuple(sorted(chosen))


def _entropy(shares: Float[Tensor, "layer prompt"]) -> Float[Tensor, "layer"]:
    return -(shares * shares.clamp_min(_EPSILON).log()).sum(dim=1)
