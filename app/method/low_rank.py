"""Change of each tuned matrix as a product of two thin factors.

As in Hu et al. 2021 (https://arxiv.org/abs/2106.09685), W + left · right, but the matrix is tuned whole and factorised
afterwards. A category then costs a fraction of the memory, and the model's own projections serve all categories at
once.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .parameters import Change, LowRank, Parameters

# Randomised SVD (Halko et al. 2011, https://arxiv.org/abs/0909.4061): directions tried beyond those kept, and power
# iterations that sharpen them.
_OVERSAMPLING, _POWER_ITERATIONS = 8, 2


def factorised(tuned: Parameters, base: Parameters, rank: int) -> Parameters:
    """Parameters with each matrix replaced by the factors of its change.

    Vectors (biases, layer norms) and changes that are low-rank already stay as they are.

    Args:
        tuned: Parameters after tuning.
        base: The model's own.
        rank: Most directions; a smaller matrix has no more than it has rows or columns.
    """
    delta: dict[str, Change] = {}
    for name, change in tuned.delta.items():
        own = base.delta[name]
        if isinstance(change, LowRank) or isinstance(own, LowRank) or change.ndim != 2:
            delta[name] = change
        else:
            delta[name] = _factors(change - own, rank)
    return Parameters(delta, tuned.tokens)


def unchanged(base: Parameters, rank: int) -> Parameters:
    """The form that `factorised` gives, with a change of zero."""
    delta: dict[str, Change] = {}
    for name, change in base.delta.items():
        if isinstance(change, LowRank) or change.ndim != 2:
            delta[name] = change
        else:
            kept = min(rank, *change.shape)
            delta[name] = LowRank(change.new_zeros(change.shape[0], kept), change.new_zeros(kept, change.shape[1]))
    return Parameters(delta, base.tokens)


def rank_of(parameters: Parameters) -> int:
    """Largest rank of the low-rank changes; 0 if there is none."""
    changes = (change for change in parameters.delta.values() if isinstance(change, LowRank))
    return max((change.left.shape[-1] if change.left.ndim else 0 for change in changes), default=0)


def _factors(change: Float[Tensor, "out in"], rank: int) -> LowRank:
    """The best product of that rank; the singular values are shared out evenly, so that float16 holds both factors."""
    kept = min(rank, *change.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(change.shape[1], min(rank + _OVERSAMPLING, *change.shape), generator=generator).to(change)
    found = change @ start
    for _ in range(_POWER_ITERATIONS):
        found = change @ (change.T @ torch.linalg.qr(found).Q)
    basis = torch.linalg.qr(found).Q
    u, s, v = torch.linalg.svd(basis.T @ change, full_matrices=False)
    root = s[:kept].sqrt()
    return LowRank((basis @ u[:, :kept]) * root, root[:, None] * v[:kept])
