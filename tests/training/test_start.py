"""Starting weights: a folded layer equals the two layers that it replaces."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from training.start import fold_batch_norm


def test_a_batch_norm_is_folded_into_the_convolution_before_it() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 3, 5, 5, generator=generator)
    scale, shift, mean = torch.randn(3, 7, generator=generator)
    variance = torch.rand(7, generator=generator) + 0.1
    x = torch.randn(2, 3, 13, 11, generator=generator)
    two = F.batch_norm(F.conv2d(x, weight), mean, variance, scale, shift, eps=1e-3)
    folded, bias = fold_batch_norm(weight, scale, shift, mean, variance)
    torch.testing.assert_close(F.conv2d(x, folded, bias), two, atol=1e-4, rtol=1e-4)
