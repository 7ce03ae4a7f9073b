"""The parts of the text tower with numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from app.backbones.blip_text import (
    adapted_cross_attention,
    cross_attention,
    low_rank_cross_attention,
    replace_rows,
    revision_of,
)
from torch import Tensor
from torch.nn import functional as F

from app.method.low_rank import LEFT, RIGHT


def weights(hidden: int, width: int, *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    made = {f"self.{part}.weight": random(hidden, width) for part in ("key", "value")}
    made |= {f"{part}.weight": random(hidden, hidden) for part in ("self.query", "output.dense")}
    made |= {f"self.{part}.bias": random(hidden) for part in ("query", "key", "value")}
    made |= {f"output.{part}": random(hidden) for part in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")}
    return made


def by_hand(x: Tensor, image: Tensor, w: dict[str, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """One prompt, one head after the other."""
    size = x.shape[1] // heads
    q = x @ w["self.query.weight"].T + w["self.query.bias"]
    k = image @ w["self.key.weight"].T + w["self.key.bias"]
    v = image @ w["self.value.weight"].T + w["self.value.bias"]
    logits, contexts = [], []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        logits.append(q[:, own] @ k[:, own].T / math.sqrt(size))
        contexts.append(logits[-1].softmax(dim=1) @ v[:, own])
    y = x + torch.cat(contexts, dim=1) @ w["output.dense.weight"].T + w["output.dense.bias"]
    y = (y - y.mean(dim=1, keepdim=True)) / (y.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    return y * w["output.LayerNorm.weight"] + w["output.LayerNorm.bias"], torch.stack(logits)


def test_cross_attention_by_hand() -> None:
    torch.manual_seed(0)
    x, image = torch.randn(5, 7, 6), torch.randn(13, 11)
    w = weights(6, 11, seed=1)
    out, logits = cross_attention(x, image, w, heads=3, eps=1e-5)
    assert logits.shape == (5, 3, 7, 13)
    without, none = cross_attention(x, image, w, heads=3, eps=1e-5, wanted=False)
    assert none is None
    torch.testing.assert_close(without, out, rtol=1e-4, atol=1e-5)
    for prompt in range(5):
        expected_out, expected_logits = by_hand(x[prompt], image, w, heads=3)
        torch.testing.assert_close(logits[prompt], expected_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out[prompt], expected_out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("adapters", "prompts"), [(1, 1), (1, 5), (5, 1), (3, 2)])
def test_folding_keys_and_values_into_the_text_changes_no_number(adapters: int, prompts: int) -> None:
    torch.manual_seed(0)
    x, image = torch.randn(adapters * prompts, 7, 6), torch.randn(13, 11)
    own = [weights(6, 11, seed=seed) for seed in range(adapters)]
    stacked = {name: torch.stack([w[name] for w in own]) for name in own[0]}
    out, logits = adapted_cross_attention(x, image, stacked, heads=3, eps=1e-5)
    assert logits.shape == (adapters * prompts, 3, 7, 13)
    for prompt in range(adapters * prompts):
        expected_out, expected_logits = by_hand(x[prompt], image, own[prompt // prompts], heads=3)
        torch.testing.assert_close(logits[prompt], expected_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out[prompt], expected_out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("adapters", "prompts"), [(1, 1), (1, 5), (5, 1), (3, 2)])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_low_rank_change_is_the_base_plus_the_product_of_its_factors(adapters: int, prompts: int, rank: int) -> None:
    torch.manual_seed(0)
    x, image = torch.randn(adapters * prompts, 7, 6), torch.randn(13, 11)
    base = weights(6, 11, seed=99)
    parts, whole = [], []
    for seed in range(adapters):
        own = weights(6, 11, seed=seed)
        factors = {
            name + suffix: torch.randn(shape)
            for name, tensor in own.items()
            if tensor.ndim == 2
            for suffix, shape in ((LEFT, (tensor.shape[0], rank)), (RIGHT, (rank, tensor.shape[1])))
        }
        parts.append({**{name: tensor for name, tensor in own.items() if tensor.ndim == 1}, **factors})
        changed = {n: base[n] + factors[n + LEFT] @ factors[n + RIGHT] for n in own if own[n].ndim == 2}
        whole.append({**own, **changed})
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    out, logits = low_rank_cross_attention(x, image, base, stacked, heads=3, eps=1e-5)
    assert logits.shape == (adapters * prompts, 3, 7, 13)
    for prompt in range(adapters * prompts):
        expected_out, expected_logits = by_hand(x[prompt], image, whole[prompt // prompts], heads=3)
        torch.testing.assert_close(logits[prompt], expected_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out[prompt], expected_out, rtol=1e-4, atol=1e-4)


def test_rows_are_replaced_where_an_adapter_s_own_prompts_use_the_token() -> None:
    # 2 adapters with a prompt of 3 tokens each; the first replaces tokens 7 and 5, the second 5 only (−1: padding).
    input_ids = torch.tensor([[5, 6, 7], [7, 5, 5]])
    words = torch.stack([input_ids, 10 * input_ids], dim=2).float()
    token_ids = torch.tensor([[7, 5], [5, -1]])
    rows = torch.tensor([[[0.7, 0], [0.5, 0]], [[-0.5, 1], [99, 99]]])
    expected = torch.tensor([[[0.5, 0], [6, 60], [0.7, 0]], [[7, 70], [-0.5, 1], [-0.5, 1]]])
    torch.testing.assert_close(replace_rows(words, input_ids, token_ids, rows), expected)


class TestRevision:
    TENSORS = (("a", torch.tensor([[1.0, 2, 3]])), ("b", torch.tensor(5)))

    def test_it_is_sixteen_digits_whatever_the_order(self) -> None:
        found = revision_of(self.TENSORS, "kind")
        assert found == revision_of(self.TENSORS[::-1], "kind")
        assert int(found, 16) >= 0
        assert len(found) == 16

    @pytest.mark.parametrize(
        "tensors",
        [
            (("a", torch.tensor([[1.0, 2, 4]])), ("b", torch.tensor(5))),
            (("a", torch.tensor([[1.0, 2, 3]])), ("b", torch.tensor(6))),
            (("a", torch.tensor([[1.0], [2], [3]])), ("b", torch.tensor(5))),
            (("a", torch.tensor([[1.0, 2, 3]])), ("c", torch.tensor(5))),
            (("a", torch.tensor([[1.0, 2, 3]])),),
        ],
        ids=["a value", "a number alone", "a shape", "a name", "one less"],
    )
    def test_it_changes_with(self, tensors: tuple[tuple[str, Tensor], ...]) -> None:
        assert revision_of(tensors, "kind") != revision_of(self.TENSORS, "kind")

    def test_it_changes_with_what_else_decides_the_output(self) -> None:
        assert revision_of(self.TENSORS, "kind", "512") != revision_of(self.TENSORS, "kind", "384")

    def test_the_layout_in_memory_does_not_matter(self) -> None:
        tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
        assert revision_of([("a", tensor.mT.contiguous().mT)]) == revision_of([("a", tensor)])


def test_padding_is_masked_from_real_tokens_in_any_number_format() -> None:
    """−10,000 before the softmax is nothing after it, in bfloat16 too."""
    weight = F.softmax(torch.tensor([0.5, -1e4], dtype=torch.bfloat16), dim=0)
    assert weight.tolist() == [1, 0]
