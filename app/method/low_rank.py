"""An adapter's matrices as low-rank changes: what a photo teaches fits into a few directions.

As in Hu et al. 2021 (https://arxiv.org/abs/2106.09685), W + left · right; but tuned whole and factorised afterwards. So
a category costs a fraction of the memory, and the model's own projections serve all categories at once.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .adapter import TOKEN_IDS, TOKEN_ROWS

# Behind the name of a matrix: the factors of its change.
LEFT, RIGHT = ".left", ".right"

# Directions tried beyond those kept, and rounds of refining them (Halko et al. 2011, https://arxiv.org/abs/0909.4061).
_SPARE, _ROUNDS = 8, 2


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a parameter is one whose change is factorised; some models tune factors from the start."""
    return tensor.ndim == 2 and name not in (TOKEN_IDS, TOKEN_ROWS) and not name.endswith((LEFT, RIGHT))


def factorised(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Parameters with each matrix replaced by the factors of its change, `[out, rank]` and `[rank, in]`.

    Args:
        tuned: Parameters by name.
        base: The model's own.
        rank: At most so many directions; a smaller matrix has no more than it has rows or columns.
    """
    result = {}
    for name, tensor in tuned.items():
        if _is_matrix(name, tensor):
            result[name + LEFT], result[name + RIGHT] = _factors(tensor - base[name], rank)
        else:
            result[name] = tensor
    return result


def unchanged(base: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The form that `factorised` gives, of no change at all."""
    result = {}
    for name, tensor in base.items():
        if _is_matrix(name, tensor):
            kept = min(rank, *tensor.shape)
            result[name + LEFT] = tensor.new_zeros(tensor.shape[0], kept)
            result[name + RIGHT] = tensor.new_zeros(kept, tensor.shape[1])
        else:
            result[name] = tensor
    return result


def _factors(change: Float[Tensor, "out in"], rank: int) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    """The best product of that rank, the singular values shared out evenly so that half precision holds both."""
    kept = min(rank, *change.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(change.shape[1], min(rank + _SPARE, *change.shape), generator=generator).to(change)
    found = change @ start
    for _ in range(_ROUNDS):
        found = change @ (change.T @ torch.linalg.qr(found).Q)
    basis = torch.linalg.qr(found).Q
    u, s, v = torch.linalg.svd(basis.T @ change, full_matrices=False)
    root = s[:kept].sqrt()
    return (basis @ u[:, :kept]) * root, root[:, None] * v[:kept]
