"""The baseline that one-shot tuning must beat: masked-average prototypes of the frozen patch features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .class_map import upsample
from .tuning import Shot
from .visual_prompt import mean_features


def prototypes(shots: Sequence[Shot], grid_hw: tuple[int, int]) -> Float[Tensor, "2 width"]:
    """Mean patch feature outside (row 0) and inside (row 1) the masks of one category's examples, of unit length."""
    inside, outside = zip(*(example.sides(grid_hw) for example in shots), strict=True)
    return mean_features([example.features for example in shots], inside, outside)


def prototype_map(
    features: Float[Tensor, "patch width"],
    categories: Sequence[Float[Tensor, "2 width"]],
    *,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    temperature: float = 0.05,
) -> Float[Tensor, "class y x"]:
    """Class probabilities by cosine similarity; the background is as similar as its nearest "outside" prototype."""
    tokens = F.normalize(features.float(), dim=1)
    similarity = torch.stack([tokens @ rows.T for rows in categories])  # [category, patch, 2]
    maps = torch.cat([similarity[:, :, 0].amax(dim=0, keepdim=True), similarity[:, :, 1]])
    return upsample(maps / temperature, grid_hw, size_hw).softmax(dim=0)
