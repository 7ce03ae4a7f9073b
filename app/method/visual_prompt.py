"""The examples' appearance as a prompt beside the words, for a backbone without a mask decoder.

A category's patch logits get `β · (cos(x, inside) − cos(x, outside)) + b` added, where `inside` and `outside` are the
mean patch features of its examples within and without their masks. Only β and b are fitted, to their maximum a
posteriori under a prior that one photo moves only a little, so that one example cannot teach much that is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .parameters import VisualPrompt

_NEWTON_STEPS = 30


@dataclass(frozen=True)
class Prior:
    """Prior of β and b, before an example is seen.

    Attributes:
        likeness: Mean of β.
        likeness_deviation: Standard deviation of β.
        bias_deviation: Standard deviation of b, whose mean is 0.
        evidence: Independent observations that one photo amounts to, half of them object and half background: far
            fewer than its patches, since neighbours look alike and other photos don't.
    """

    likeness: float = 6.0
    likeness_deviation: float = 2.0
    bias_deviation: float = 1.0
    evidence: float = 8.0


def mean_features(
    features: Sequence[Float[Tensor, "patch width"]],
    inside: Sequence[Float[Tensor, "patch"]],
    outside: Sequence[Float[Tensor, "patch"]],
) -> Float[Tensor, "2 width"]:
    """Mean patch feature outside (row 0) and inside (row 1) the masks of one category's examples, of unit length."""
    sums = torch.zeros(2, features[0].shape[1], device=features[0].device)
    for photo, *sides in zip(features, outside, inside, strict=True):
        unit = F.normalize(photo.float(), dim=1)
        for row, weight in enumerate(sides):
            sums[row] += (weight @ unit) / weight.sum().clamp_min(1e-6)
    return F.normalize(sums, dim=1)


def visual_logits(features: Float[Tensor, "patch width"], prompts: VisualPrompt) -> Float[Tensor, "category patch"]:
    """Logits that each category's visual prompt adds to every patch.

    Args:
        features: Of the photo's patches.
        prompts: Stacked over categories.
    """
    unit = F.normalize(features.float(), dim=1)
    return prompts.direction.to(unit) @ unit.T + prompts.bias.to(unit)[:, None]


def fit(
    log_odds: Sequence[Float[Tensor, "patch"]],
    likeness: Sequence[Float[Tensor, "patch"]],
    inside: Sequence[Float[Tensor, "patch"]],
    outside: Sequence[Float[Tensor, "patch"]],
    prior: Prior,
) -> tuple[float, float]:
    """β and b that make the examples most probable under the prior, by Newton's method (the problem is convex).

    Args:
        log_odds: Of the category against everything else by the words, per example.
        likeness: `cos(x, inside) − cos(x, outside)` of each patch.
        inside: Share of each patch that the category covers.
        outside: Share of each patch that it does not cover.
        prior: Of β and b.

    Returns:
        (β, b).
    """
    z, r = torch.cat(list(log_odds)).double(), torch.cat(list(likeness)).double()
    half = prior.evidence / 2 / len(log_odds)
    yes, no = (torch.cat([half * s / s.sum().clamp_min(1e-6) for s in sides]).double() for sides in (inside, outside))
    x = torch.stack([r, torch.ones_like(r)])
    mean = torch.tensor([prior.likeness, 0.0], dtype=torch.float64, device=z.device)
    precision = torch.tensor([prior.likeness_deviation, prior.bias_deviation], dtype=torch.float64).pow(-2).to(z.device)
    theta = mean.clone()
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(z + theta @ x)
        gradient = x @ (yes * (1 - p) - no * p) - precision * (theta - mean)
        curvature = (x * ((yes + no) * p * (1 - p))) @ x.T + torch.diag(precision)
        # A far start could overshoot where the sigmoid is flat.
        theta = theta + torch.linalg.solve(curvature, gradient).clamp(-4, 4)
    return float(theta[0]), float(theta[1])
