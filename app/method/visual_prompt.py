"""Visual prompt: the appearance of the examples, used beside the words on a backbone without a mask decoder.

`β · (cos(x, inside) − cos(x, outside)) + b` is added to the category's logit at a patch with feature x; `inside` and
`outside` are the mean patch features of the examples inside and outside their masks. Only β and b are fitted, as the
maximum a posteriori under a prior that one photo changes only a little, which limits the harm of a bad example.
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
    """Prior of β and b, before any example.

    Attributes:
        likeness: Mean of β.
        likeness_deviation: Standard deviation of β.
        bias_deviation: Standard deviation of b, whose mean is 0.
        evidence: Number of independent observations that one photo counts as, half of them object and half
            background: far fewer than its patches, because neighbouring patches are alike and other photos differ.
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
    """Mean patch features outside (row 0) and inside (row 1) the masks of a category's examples, of unit length."""
    sums = torch.zeros(2, features[0].shape[1], device=features[0].device)
    for photo, *sides in zip(features, outside, inside, strict=True):
        unit = F.normalize(photo.float(), dim=1)
        for row, weight in enumerate(sides):
            sums[row] += (weight @ unit) / weight.sum().clamp_min(1e-6)
    return F.normalize(sums, dim=1)


def visual_logits(features: Float[Tensor, "patch width"], prompts: VisualPrompt) -> Float[Tensor, "category patch"]:
    """Logits that the visual prompt of each category adds at every patch.

    Args:
        features: Features of the photo's patches.
        prompts: Visual prompts, stacked over categories.
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
    """Fit β and b: the maximum a posteriori, by Newton's method (the problem is convex).

    Args:
        log_odds: Log-odds of the category against all other classes by the words alone, per example.
        likeness: `cos(x, inside) − cos(x, outside)` of each patch.
        inside: Share of each patch that the category covers.
        outside: Share of each patch that it does not cover.
        prior: Prior of β and b.

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
        # The step is limited, because it could overshoot where the sigmoid is flat.
        theta = theta + torch.linalg.solve(curvature, gradient).clamp(-4, 4)
    return float(theta[0]), float(theta[1])
