"""From attention to a class map, with numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from app.method.class_map import class_scores, head_max, normalise, prompt_scores, token_sum, upsample
from jaxtyping import TypeCheckError


def test_the_strongest_head_wins() -> None:
    # 1 prompt, 2 heads, 1 token and 3 patches.
    logits = torch.tensor([[[[1.0, -5, 2]], [[0, -4, 7]]]])
    assert head_max(logits).tolist() == [[[1, -4, 7]]]


def test_every_token_counts_but_padding() -> None:
    # 2 prompts, 3 tokens, 2 patches; the first prompt is one token shorter.
    strongest = torch.tensor([[[1.0, 2], [3, 4], [500, 500]], [[1, 2], [3, 4], [5, -6]]])
    assert token_sum(strongest, torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist() == [[4, 6], [9, 0]]


def test_prompts_compete_at_each_patch_and_are_weighed_by_their_match() -> None:
    logits = torch.tensor([[math.log(3), 0], [0, 0]])
    scores = prompt_scores(logits, torch.tensor([0.5, 0.1]))
    assert torch.allclose(scores, torch.tensor([[0.375, 0.25], [0.025, 0.05]]))


def test_the_background_is_a_sum_and_a_category_its_best_synonym() -> None:
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.05, 0.4], [0.2, 0.1], [0.15, 0.3]])
    classes = class_scores(scores, ((0, 2), (2, 3), (3, 5)))
    assert torch.allclose(classes, torch.tensor([[0.4, 0.3], [0.05, 0.4], [0.2, 0.3]]))


def test_corner_patches_land_on_corner_pixels() -> None:
    maps = torch.tensor([[0.0, 4, 8, 12], [1, 1, 1, 1]])  # 2 classes on a grid of 2 × 2
    large = upsample(maps, (2, 2), (3, 5))
    assert large[0].tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]]
    assert large[1].tolist() == [[1] * 5] * 3


def test_the_grid_is_filled_row_by_row() -> None:
    maps = torch.arange(6.0)[None]
    assert upsample(maps, (2, 3), (2, 3)).tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_scores_become_probabilities_and_nothing_stays_nothing() -> None:
    assert normalise(torch.tensor([[3.0, 0], [1, 0]])).tolist() == [[0.75, 0], [0.25, 0]]


def test_annotations_are_checked_here() -> None:
    with pytest.raises(TypeCheckError):
        head_max(torch.zeros(2, 3, 5))
    with pytest.raises(TypeCheckError):
        prompt_scores(torch.zeros(3, 5), torch.zeros(2))
