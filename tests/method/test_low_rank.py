"""Low-rank factors of the changes of matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.method.low_rank import factorised, rank_of, unchanged
from app.method.parameters import LowRank, Parameters, TokenRows

BASE = Parameters({"w": torch.zeros(31, 23), "b": torch.zeros(31)}, TokenRows(torch.arange(5), torch.zeros(5, 31)))


def changed_by(rank: int) -> Parameters:
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(31, rank, generator=generator), torch.randn(rank, 23, generator=generator)
    return Parameters({"w": left @ right, "b": torch.full((31,), 2.0)}, TokenRows(torch.arange(5), torch.ones(5, 31)))


def matrix(parameters: Parameters) -> Tensor:
    change = parameters.delta["w"]
    assert isinstance(change, Tensor)
    return change


def factors(parameters: Parameters) -> LowRank:
    change = parameters.delta["w"]
    assert isinstance(change, LowRank)
    return change


@pytest.mark.parametrize("rank", [1, 3, 8, 23, 50])
def test_a_change_of_that_rank_is_kept(rank: int) -> None:
    tuned = changed_by(rank)
    left, right = factors(factorised(tuned, BASE, rank))
    assert left.shape == (31, min(rank, 23))
    assert right.shape == (min(rank, 23), 23)
    torch.testing.assert_close(left @ right, matrix(tuned), rtol=1e-4, atol=1e-4)


def test_the_factors_are_of_the_change_and_not_of_the_matrix() -> None:
    own = torch.randn(31, 23, generator=torch.Generator().manual_seed(5))
    base, change = Parameters({"w": own}, BASE.tokens), matrix(changed_by(2))
    left, right = factors(factorised(Parameters({"w": own + change}, BASE.tokens), base, 2))
    torch.testing.assert_close(left @ right, change, rtol=1e-4, atol=1e-4)


def test_of_a_larger_change_the_best_part_is_kept() -> None:
    tuned = changed_by(17)
    left, right = factors(factorised(tuned, BASE, 5))
    s = torch.linalg.svdvals(matrix(tuned))
    lost = (matrix(tuned) - left @ right).norm()
    assert float(lost) == pytest.approx(float(s[5:].norm()), rel=0.02)


def test_the_singular_values_are_shared_out_evenly() -> None:
    left, right = factors(factorised(changed_by(3), BASE, 3))
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-4, atol=1e-4)


def test_only_matrices_are_factorised_and_tokens_stay() -> None:
    tuned = changed_by(2)
    parts = factorised(tuned, BASE, 2)
    assert set(parts.delta) == {"w", "b"}
    assert isinstance(parts.delta["w"], LowRank)
    assert parts.delta["b"] is tuned.delta["b"]
    assert parts.tokens is tuned.tokens


def test_a_change_that_is_low_rank_already_stays() -> None:
    once = factorised(changed_by(3), BASE, 3)
    assert factorised(once, unchanged(BASE, 3), 2).delta["w"] is once.delta["w"]


@pytest.mark.parametrize("rank", [3, 50])
def test_no_change_has_the_same_form(rank: int) -> None:
    tuned, none = factorised(BASE, BASE, rank), unchanged(BASE, rank)
    assert tuned.form == none.form
    assert not factors(none).left.any()
    assert not factors(none).right.any()
    assert not (factors(tuned).left @ factors(tuned).right).any()
    assert none.delta["b"] is BASE.delta["b"]


def test_the_rank_is_the_largest_of_all_changes() -> None:
    assert rank_of(BASE) == 0
    assert rank_of(unchanged(BASE, 3)) == 3
    narrow = Parameters({"w": torch.zeros(31, 23), "v": torch.zeros(2, 23)}, BASE.tokens)
    assert rank_of(unchanged(narrow, 7)) == 7
    assert rank_of(unchanged(narrow, 70)) == 23
