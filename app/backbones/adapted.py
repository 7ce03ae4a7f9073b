"""Layers whose parameters an adapter may replace, prompt by prompt: adapters are arguments, weights are only read."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from app.method.low_rank import LEFT, RIGHT


def linear(
    x: Float[Tensor, "prompt token in"],
    weights: Mapping[str, Tensor],
    name: str,
    adapters: Mapping[str, Tensor],
) -> Float[Tensor, "prompt token out"]:
    """A linear layer, each adapter's share of the prompts under its own parameters.

    Args:
        x: Prompts 0 … P/A − 1 belong to the first of A adapters, and so on.
        weights: The model's own parameters.
        name: Of the layer; its parameters are `{name}.weight` and, if it has one, `{name}.bias`.
        adapters: Parameters with a leading axis of A: a matrix whole, or the factors of its change
            (`app.method.low_rank`); what is missing is the model's own.
    """
    weight, bias = f"{name}.weight", f"{name}.bias"
    shift = weights.get(bias)
    own = {part: tensor for part, tensor in adapters.items() if part.startswith((weight, bias))}
    if not own:
        return F.linear(x, weights[weight], shift)
    own = {part: tensor.to(x) for part, tensor in own.items()}
    count = len(next(iter(own.values())))
    rows = x.reshape(count, -1, x.shape[-1])
    out = rows @ own[weight].mT if weight in own else F.linear(rows, weights[weight])
    if weight + LEFT in own:
        out = out + (rows @ own[weight + RIGHT].mT) @ own[weight + LEFT].mT
    if bias in own:
        out = out + own[bias][:, None]
    elif shift is not None:
        out = out + shift
    return out.view(*x.shape[:-1], -1)


def layer_norm(
    x: Float[Tensor, "prompt token width"],
    weights: Mapping[str, Tensor],
    name: str,
    adapters: Mapping[str, Tensor],
    *,
    eps: float,
) -> Float[Tensor, "prompt token width"]:
    """A layer norm, each adapter's share of the prompts under its own scale and shift; arguments as `linear`."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    if weight not in adapters:
        return F.layer_norm(x, x.shape[-1:], weights[weight], weights[bias], eps)
    scale, shift = (adapters[part].to(x)[:, None] for part in (weight, bias))
    rows = F.layer_norm(x, x.shape[-1:], eps=eps).view(len(scale), -1, x.shape[-1])
    return (rows * scale + shift).view_as(x)


def share_of(adapters: Mapping[str, Tensor], prompts: int) -> int:
    """How many adapters are stacked.

    Raises:
        ValueError: If the prompts can't be shared out evenly.
    """
    count = len(next(iter(adapters.values()))) if adapters else 1
    if prompts % count:
        raise ValueError(f"expected a multiple of {count} prompts, one share per adapter, got {prompts}")
    return count
