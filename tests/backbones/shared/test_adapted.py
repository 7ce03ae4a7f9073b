"""Layers with adapters, against the same layers with the changed parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.backbones.shared.adapted import (
    cast,
    check_share,
    layer_norm,
    linear,
    low_rank,
    replace_rows,
    token_copies,
    whole,
)
from app.method.parameters import Change, LowRank, Parameters, TokenRows

ADAPTERS, SHARE = 3, 2
WEIGHTS = {"a.weight": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), "a.bias": torch.ones(5)}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["own", "low rank", "base"])
def test_a_linear_layer_runs_each_share_under_its_adapter(kind: str, bias: bool) -> None:
    x = random(ADAPTERS * SHARE, 4, 7, seed=1)
    delta: dict[str, Change] = {"other.weight": random(ADAPTERS, 2, 2, seed=2)}
    matrices = WEIGHTS["a.weight"].expand(ADAPTERS, -1, -1)
    shifts = WEIGHTS["a.bias"].expand(ADAPTERS, -1)
    if kind == "own":
        delta["a.weight"] = matrices = random(ADAPTERS, 5, 7, seed=3)
    if kind == "low rank":
        delta["a.weight"] = change = LowRank(random(ADAPTERS, 5, 2, seed=4), random(ADAPTERS, 2, 7, seed=5))
        matrices = matrices + change.left @ change.right
    if bias:
        delta["a.bias"] = shifts = random(ADAPTERS, 5, seed=6)
    out = linear(x, WEIGHTS, "a", delta)
    for prompt in range(ADAPTERS * SHARE):
        expected = F.linear(x[prompt], matrices[prompt // SHARE], shifts[prompt // SHARE])
        torch.testing.assert_close(out[prompt], expected, rtol=1e-5, atol=1e-5)


def test_a_layer_norm_runs_each_share_under_its_adapter() -> None:
    x = random(ADAPTERS * SHARE, 4, 5, seed=1)
    own = {"a.weight": random(ADAPTERS, 5, seed=2), "a.bias": random(ADAPTERS, 5, seed=3)}
    base = {"a.weight": random(5, seed=4), "a.bias": random(5, seed=5)}
    adapted, plain = layer_norm(x, base, "a", own, eps=1e-5), layer_norm(x, base, "a", {}, eps=1e-5)
    for prompt in range(ADAPTERS * SHARE):
        scale, shift = (own[f"a.{part}"][prompt // SHARE] for part in ("weight", "bias"))
        torch.testing.assert_close(adapted[prompt], F.layer_norm(x[prompt], (5,), scale, shift))
        torch.testing.assert_close(plain[prompt], F.layer_norm(x[prompt], (5,), base["a.weight"], base["a.bias"]))


def test_prompts_are_shared_out_evenly() -> None:
    adapters = Parameters({}, TokenRows(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1, 2)))
    assert (check_share(None, 7), check_share(adapters, 6)) == (1, 3)
    with pytest.raises(ValueError, match="multiple of 3 prompts"):
        check_share(adapters, 7)


def test_the_kind_of_a_change_is_checked() -> None:
    change = LowRank(torch.zeros(5, 2), torch.zeros(2, 7))
    with pytest.raises(ValueError, match="expected a whole parameter"):
        whole(change)
    with pytest.raises(ValueError, match="expected a low-rank change"):
        low_rank(torch.zeros(5, 7))


def test_changes_take_the_number_format_of_the_network() -> None:
    found = cast({"a": torch.zeros(2), "b": LowRank(torch.zeros(5, 2), torch.zeros(2, 7))}, torch.zeros(1).bfloat16())
    assert isinstance(found["b"], LowRank)
    assert {found["a"].dtype, found["b"].left.dtype, found["b"].right.dtype} == {torch.bfloat16}


def test_rows_of_the_tokens_used_are_float32_copies() -> None:
    table = torch.arange(10, dtype=torch.bfloat16).view(5, 2)
    ids, rows = token_copies(table, torch.tensor([[3, 1], [3, 0]]))
    assert ids.tolist() == [0, 1, 3]
    assert rows.tolist() == [[0, 1], [2, 3], [6, 7]]
    rows.fill_(9)
    assert (rows.dtype, table[3].tolist()) == (torch.float32, [6, 7])


def test_rows_are_replaced_where_an_adapter_s_own_prompts_use_the_token() -> None:
    # 2 adapters with a prompt of 3 tokens each; the first replaces tokens 7 and 5, the second 5 only (−1: padding).
    input_ids = torch.tensor([[5, 6, 7], [7, 5, 5]])
    words = torch.stack([input_ids, 10 * input_ids], dim=2).float()
    token_ids = torch.tensor([[7, 5], [5, -1]])
    rows = torch.tensor([[[0.7, 0], [0.5, 0]], [[-0.5, 1], [99, 99]]])
    expected = torch.tensor([[[0.5, 0], [6, 60], [0.7, 0]], [[7, 70], [-0.5, 1], [-0.5, 1]]])
    torch.testing.assert_close(replace_rows(words, input_ids, TokenRows(token_ids, rows)), expected)
