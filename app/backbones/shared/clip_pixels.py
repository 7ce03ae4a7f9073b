"""Pixels as CLIP's image towers expect them, and those of models that were trained on the same statistics."""

from jaxtyping import Float
from torch import Tensor

# Of the pictures that CLIP learned from (Radford et al. 2021, https://arxiv.org/abs/2103.00020), by channel.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_normalise(rgb: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Values in [0, 1] to CLIP's zero mean and unit deviation."""
    mean = rgb.new_tensor(CLIP_MEAN)[:, None, None]
    std = rgb.new_tensor(CLIP_STD)[:, None, None]
    return (rgb - mean) / std
