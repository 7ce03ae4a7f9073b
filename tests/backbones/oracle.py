"""Comparison with another implementation of the same network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from app.method.parameters import LowRank, Parameters


def assert_gradients(free: Parameters, named: Callable[[str], Tensor], table: Tensor) -> None:
    """The gradients of trainable parameters are those of the other network, within 1e-5 of their size.

    Args:
        free: Parameters after the backward pass.
        named: Gives the other network's parameter of a name.
        table: The other network's word embeddings.
    """
    pairs = [("token rows", free.tokens.rows.grad, table.grad[free.tokens.ids])]
    for name, change in free.delta.items():
        assert not isinstance(change, LowRank)
        pairs.append((name, change.grad, named(name).grad))
    for name, got, expected in pairs:
        assert (got - expected).norm() < 1e-5 * expected.norm(), name
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max(), name
