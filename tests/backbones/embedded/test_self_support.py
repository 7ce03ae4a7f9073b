"""Self-support: the confident patches of a class help to find its other patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from app.backbones.embedded.self_support import logits


def weights(
    *, likeness: float = 0.0, words: float = 1.0, background: float = 0.0, presence: float = 0.0
) -> dict[str, Tensor]:
    """Patches compared as they are, and no fact that says who is there."""
    return {
        "projection.weight": torch.eye(2),
        "projection.bias": torch.zeros(2),
        "likeness": torch.tensor(likeness),
        "words": torch.tensor(words),
        "background": torch.tensor(background),
        "presence.0.weight": torch.zeros(3, 4),
        "presence.0.bias": torch.zeros(3),
        "presence.1.weight": torch.zeros(1, 3),
        "presence.1.bias": torch.tensor([presence]),
    }


def self_support(some: dict[str, Tensor], scores: Tensor, features: Tensor) -> Tensor:
    return logits(some, scores, features).softmax(dim=0)


# Three patches of a cat, two of a wall. The words know the cat's face, and would have its tail be wall.
FEATURES = torch.tensor([[1.0, 0.0], [0.9, 0.1], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
SCORES = torch.tensor([[0.1, 0.2, 0.7, 0.9, 0.9], [0.9, 0.8, 0.3, 0.1, 0.1]])


def test_what_looks_like_the_sure_parts_is_found_too() -> None:
    before = self_support(weights(), SCORES, FEATURES)
    after = self_support(weights(likeness=5.0), SCORES, FEATURES)
    assert before.argmax(dim=0).tolist() == [1, 1, 0, 0, 0]
    assert after.argmax(dim=0).tolist() == [1, 1, 1, 0, 0]


def test_by_hand() -> None:
    scores = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
    found = self_support(weights(likeness=2.0, words=0.5, presence=0.1), scores, torch.eye(2))
    # Shares of the cubes: background 1/64 and 1/8, so 1/9 and 8/9; the class 27/64 and 8/64, so 27/35 and 8/35.
    outer, inner = math.hypot(1, 8), math.hypot(27, 8)
    first = [0.5 * math.log(0.25) + 2 / outer, 0.5 * math.log(0.75) + 2 * 27 / inner + 0.1]
    second = [0.5 * math.log(0.5) + 2 * 8 / outer, 0.5 * math.log(0.5) + 2 * 8 / inner + 0.1]
    torch.testing.assert_close(found, torch.tensor([first, second]).softmax(dim=1).T)


def test_scores_count_by_their_ratios() -> None:
    some = weights(likeness=3.0, background=0.3, presence=-0.2)
    torch.testing.assert_close(self_support(some, SCORES, FEATURES), self_support(some, 0.07 * SCORES, FEATURES))


def test_a_class_that_is_nowhere_stays_nowhere() -> None:
    nowhere = torch.cat([SCORES, torch.zeros(1, 5)])
    found = self_support(weights(likeness=5.0), nowhere, FEATURES)
    assert found[2].max() < 1e-3
    assert torch.isfinite(found).all()


def test_a_thousand_names_make_no_class_less_likely_than_eighty() -> None:
    some = weights()
    some["presence.0.weight"] = torch.tensor([[0.0, 0.0, 1.0, 0.0]] * 3)
    some["presence.1.weight"] = -torch.ones(1, 3)

    def best(names: int) -> float:
        others = torch.full((names - 1, 5), 1e-12)
        return float(self_support(some, torch.cat([SCORES, others]), FEATURES)[1].max())

    assert best(1) > best(13) > best(80)
    assert best(1009) == pytest.approx(best(80), abs=1e-5)
