"""Pixel normalisation of CLIP's image towers and of models trained with the same statistics."""

from jaxtyping import Float
from torch import Tensor

# Per channel, over CLIP's training images (Radford et al. 2021, https://arxiv.org/abs/2103.00020).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_normalise(rgb: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Normalise values in [0, 1] to zero mean and unit deviation over CLIP's training images."""
    mean = rgb.new_tensor(CLIP_MEAN)[:, None, None]
    std = rgb.new_tensor(CLIP_STD)[:, None, None]
    return (rgb - mean) / std
