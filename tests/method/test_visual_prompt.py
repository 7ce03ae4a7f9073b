"""The visual prompt: its two parameters, with hand-computed numbers where possible."""

from __future__ import annotations

import math

import pytest
import torch

from app.method.parameters import VisualPrompt
from app.method.visual_prompt import Prior, fit, mean_features, visual_logits

# Patches that point East, North and half-way.
PATCHES = torch.tensor([[2.0, 0], [0, 5], [1, 1]])
INSIDE, OUTSIDE = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])


def test_what_points_like_the_example_gains_and_what_points_like_its_surroundings_loses() -> None:
    outside, inside = mean_features([PATCHES], [INSIDE], [OUTSIDE])
    logits = visual_logits(PATCHES, VisualPrompt(3 * (inside - outside)[None], torch.tensor([0.5])))
    torch.testing.assert_close(logits, torch.tensor([[3.5, -2.5, 0.5]]))


def test_each_category_has_its_own_direction_and_bias() -> None:
    outside, inside = mean_features([PATCHES], [INSIDE], [OUTSIDE])
    one = VisualPrompt(3 * (inside - outside), torch.tensor(0.5))
    other = VisualPrompt(outside - inside, torch.tensor(-1.0))
    logits = visual_logits(PATCHES, VisualPrompt.stack([one, other]))
    torch.testing.assert_close(logits, torch.tensor([[3.5, -2.5, 0.5], [-2.0, 0.0, -1.0]]))


def test_an_example_of_a_few_patches_counts_as_much_as_one_of_many() -> None:
    east, north = torch.tensor([1.0, 0]).repeat(7, 1), torch.tensor([0.0, 1]).repeat(7, 1)
    few, many, none = (torch.arange(7) < 1).float(), (torch.arange(7) < 5).float(), torch.zeros(7)
    outside, inside = mean_features([east, north], [few, many], [none, none])
    torch.testing.assert_close(inside, torch.full((2,), 0.5**0.5))
    assert not outside.any()


def test_nothing_seen_changes_nothing_believed() -> None:
    nothing = [torch.zeros(5)]
    strength, bias = fit(nothing, [torch.randn(5)], nothing, nothing, Prior(likeness=4.0))
    assert (strength, bias) == pytest.approx((4.0, 0.0))


def test_the_bias_makes_up_for_words_that_are_sure_of_the_wrong_thing() -> None:
    # All patches look alike (no likeness to go by); half of the photo is the category, and the words say e⁻² : 1.
    half = [torch.tensor([1.0, 1, 0, 0])], [torch.tensor([0.0, 0, 1, 1])]
    log_odds, likeness = [torch.full((4,), -2.0)], [torch.zeros(4)]
    flat = Prior(likeness_deviation=1e-3, bias_deviation=1e3, evidence=8.0)
    assert fit(log_odds, likeness, *half, flat)[1] == pytest.approx(2.0, abs=1e-3)
    # A prior that holds on to no bias allows less: 4 · (1 − 2σ(b − 2)) = b, which is b = 1.3085.
    _, held = fit(log_odds, likeness, *half, Prior(likeness_deviation=1e-3, bias_deviation=1.0, evidence=8.0))
    assert 4 * (1 - 2 / (1 + math.exp(2 - held))) == pytest.approx(held, abs=1e-6)
    assert 1.0 < held < 2.0


def test_likeness_that_tells_object_from_background_is_trusted_more_than_likeness_that_does_not() -> None:
    sides = [torch.tensor([1.0, 1, 0, 0])], [torch.tensor([0.0, 0, 1, 1])]
    good, bad = torch.tensor([0.3, 0.3, -0.3, -0.3]), torch.tensor([0.3, -0.3, 0.3, -0.3])
    prior = Prior(likeness=1.0, likeness_deviation=3.0)
    told, untold = (fit([torch.zeros(4)], [likeness], *sides, prior)[0] for likeness in (good, bad))
    assert told > 1.0 > untold


def test_twice_the_same_example_is_the_same_example() -> None:
    generator = torch.Generator().manual_seed(0)
    z, r = torch.randn(2, 7, generator=generator)
    inside = torch.rand(7, generator=generator)
    once = fit([z], [r], [inside], [1 - inside], Prior())
    twice = fit([z, z], [r, r], [inside] * 2, [1 - inside] * 2, Prior())
    assert once == pytest.approx(twice, abs=1e-6)
