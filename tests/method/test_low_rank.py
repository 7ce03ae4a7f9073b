"""Matrices as factors of their change."""

from __future__ import annotations

import pytest
import torch

from app.method.adapter import TOKEN_IDS, TOKEN_ROWS
from app.method.low_rank import LEFT, RIGHT, factorised, unchanged

BASE = {"w": torch.zeros(31, 23), "b": torch.zeros(31), TOKEN_IDS: torch.arange(5), TOKEN_ROWS: torch.zeros(5, 31)}


def changed_by(rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(31, rank, generator=generator), torch.randn(rank, 23, generator=generator)
    return {**BASE, "w": left @ right, TOKEN_ROWS: torch.ones(5, 31)}


@pytest.mark.parametrize("rank", [1, 3, 8, 23, 50])
def test_a_change_of_that_rank_is_kept(rank: int) -> None:
    tuned = changed_by(rank)
    parts = factorised(tuned, BASE, rank)
    assert parts["w" + LEFT].shape == (31, min(rank, 23))
    assert parts["w" + RIGHT].shape == (min(rank, 23), 23)
    torch.testing.assert_close(parts["w" + LEFT] @ parts["w" + RIGHT], tuned["w"], rtol=1e-4, atol=1e-4)


def test_of_a_larger_change_the_best_part_is_kept() -> None:
    tuned = changed_by(17)
    parts = factorised(tuned, BASE, 5)
    s = torch.linalg.svdvals(tuned["w"])
    lost = (tuned["w"] - parts["w" + LEFT] @ parts["w" + RIGHT]).norm()
    assert float(lost) == pytest.approx(float(s[5:].norm()), rel=0.02)


def test_only_matrices_are_factorised_and_tokens_stay() -> None:
    parts = factorised(changed_by(2), BASE, 2)
    assert set(parts) == {"w" + LEFT, "w" + RIGHT, "b", TOKEN_IDS, TOKEN_ROWS}
    assert torch.equal(parts[TOKEN_ROWS], torch.ones(5, 31))


def test_no_change_has_the_same_form() -> None:
    tuned = factorised(BASE, BASE, 3)
    for name, tensor in unchanged(BASE, 3).items():
        assert tuned[name].shape == tensor.shape
        assert not (tuned[name] - tensor).any()
