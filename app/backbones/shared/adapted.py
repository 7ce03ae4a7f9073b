"""Linear layer, layer norm and word embeddings that an adapter may replace for its share of the prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor
from torch.nn import functional as F

from app.method.parameters import Change, LowRank, Parameters, TokenRows


def linear(
    x: Float[Tensor, "prompt token in"],
    weights: Mapping[str, Tensor],
    name: str,
    delta: Mapping[str, Change],
) -> Float[Tensor, "prompt token out"]:
    """Linear layer, each adapter's share of the prompts under its own parameters.

    Args:
        x: Prompts 0 … P/A − 1 belong to the first of A adapters, and so on.
        weights: The model's own parameters; only read.
        name: Name of the layer; its parameters are `{name}.weight` and, if it has one, `{name}.bias`.
        delta: Changed parameters with a leading axis of A; the model's own are used for all others.
    """
    weight, bias = f"{name}.weight", f"{name}.bias"
    shift = weights.get(bias)
    own = cast({part: change for part, change in delta.items() if part in (weight, bias)}, x)
    if not own:
        return F.linear(x, weights[weight], shift)
    changed, own_shift = own.get(weight), own.get(bias)
    rows = x.reshape(count_of(own), -1, x.shape[-1])
    if isinstance(changed, Tensor):
        out = rows @ changed.mT
    else:
        out = F.linear(rows, weights[weight])
        if changed is not None:
            out = out + (rows @ changed.right.mT) @ changed.left.mT
    if isinstance(own_shift, Tensor):
        out = out + own_shift[:, None]
    elif shift is not None:
        out = out + shift
    return out.view(*x.shape[:-1], -1)


def layer_norm(
    x: Float[Tensor, "prompt token width"],
    weights: Mapping[str, Tensor],
    name: str,
    delta: Mapping[str, Change],
    *,
    eps: float,
) -> Float[Tensor, "prompt token width"]:
    """Layer norm, each adapter's share of the prompts under its own scale and shift; arguments as of `linear`."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    if weight not in delta:
        return F.layer_norm(x, x.shape[-1:], weights[weight], weights[bias], eps)
    scale, shift = (whole(delta[part]).to(x)[:, None] for part in (weight, bias))
    rows = F.layer_norm(x, x.shape[-1:], eps=eps).view(len(scale), -1, x.shape[-1])
    return (rows * scale + shift).view_as(x)


def replace_rows(
    words: Float[Tensor, "prompt token hidden"],
    input_ids: Int[Tensor, "prompt token"],
    tokens: TokenRows,
) -> Float[Tensor, "prompt token hidden"]:
    """Word embeddings with each adapter's rows in place of those tokens in its own prompts."""
    token_ids, rows = tokens.ids, tokens.rows.to(words)
    count = len(token_ids)
    ids = input_ids.reshape(count, -1)
    hit = ids[:, :, None] == token_ids[:, None, :]
    own = torch.bmm(hit.to(rows.dtype), rows).view_as(words)
    return torch.where(hit.any(dim=2).view(*input_ids.shape, 1), own, words)


def check_share(adapters: Parameters | None, prompts: int) -> int:
    """Number of stacked adapters; 1 for none.

    Raises:
        ValueError: If the number of prompts is not a multiple of it.
    """
    count = adapters.count if adapters else 1
    if prompts % count:
        raise ValueError(f"expected a multiple of {count} prompts, one share per adapter, got {prompts}")
    return count


def delta_of(adapters: Parameters | None) -> Mapping[str, Change]:
    """Changed parameters of a stack; empty without adapters."""
    return adapters.delta if adapters else {}


def with_prefix(delta: Mapping[str, Change], prefix: str) -> dict[str, Change]:
    """The changes whose names have a prefix, with the prefix removed."""
    return {name[len(prefix) :]: change for name, change in delta.items() if name.startswith(prefix)}


def cast(delta: Mapping[str, Change], like: Tensor) -> dict[str, Change]:
    """The changes in the number format and on the device of another tensor."""
    return {
        name: LowRank(change.left.to(like), change.right.to(like)) if isinstance(change, LowRank) else change.to(like)
        for name, change in delta.items()
    }


def count_of(delta: Mapping[str, Change]) -> int:
    """Length of the adapter axis."""
    change = next(iter(delta.values()))
    return len(change.left if isinstance(change, LowRank) else change)


def whole(change: Change) -> Tensor:
    """A parameter's new value.

    Raises:
        ValueError: If the change is low-rank.
    """
    if isinstance(change, LowRank):
        raise ValueError("expected a whole parameter, got a low-rank change")
    return change


def low_rank(change: Change) -> LowRank:
    """The factors of a matrix's change.

    Raises:
        ValueError: If the matrix is replaced as a whole; all matrices of a layer must be of one kind.
    """
    if not isinstance(change, LowRank):
        raise ValueError("expected a low-rank change, got a whole parameter")
    return change


def copies(weights: Mapping[str, Tensor], names: list[str], *, prefix: str = "") -> dict[str, Change]:
    """Float32 copies of some parameters, for tuning."""
    return {prefix + name: weights[name].detach().clone().float() for name in names}


@dataclass(frozen=True)
class Int8Rows:
    """A matrix that is read by rows and kept as int8, in a quarter of the memory of float32.

    Attributes:
        values: The rows divided by their scales.
        scale: Of each row.
        dtype: Number format in which rows are read.
    """

    values: Int8[Tensor, "row hidden"]
    scale: Float[Tensor, "row"]
    dtype: torch.dtype

    def __getitem__(self, rows: Int[Tensor, "*place"]) -> Float[Tensor, "*place hidden"]:
        return (self.values[rows].float() * self.scale[rows].float()[..., None]).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes + self.scale.nbytes


def token_copies(table: Tensor | Int8Rows, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of the tokens used, and float32 copies of their embedding rows."""
    ids = torch.unique(input_ids)
    return ids, table[ids].detach().clone().float()
