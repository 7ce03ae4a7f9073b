"""From attention to scores on a grid and to pixels, with hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from app.method.scores import (
    LayerWeights,
    ScoreMap,
    class_scores,
    head_max,
    normalise,
    prompt_scores,
    token_sum,
)


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
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.05, 0.4], [0.2, 0.1], [0.15, 0.3], [0.7, 0.6]])
    classes = class_scores(scores, ((0, 2), (2, 3), (3, 5), (5, 6)))
    assert torch.allclose(classes, torch.tensor([[0.4, 0.3], [0.05, 0.4], [0.2, 0.3], [0.7, 0.6]]))


def test_the_background_alone() -> None:
    assert class_scores(torch.tensor([[0.1, 0.2], [0.3, 0.1]]), ((0, 2),)).tolist() == [pytest.approx([0.4, 0.3])]


def test_every_layer_has_the_same_weight_if_none_was_learned() -> None:
    found = LayerWeights.mean([3, 5, 7, 11], 3)
    assert found.layers == (3, 5, 7, 11)
    assert found.weights.tolist() == [[0.25] * 4] * 3


def test_corner_patches_land_on_corner_pixels() -> None:
    maps = torch.tensor([[0.0, 4, 8, 12], [1, 1, 1, 1]])  # 2 classes on a grid of 2 × 2
    large = ScoreMap(maps, (2, 2), align_corners=True).at((3, 5))
    assert large[0].tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]]
    assert large[1].tolist() == [[1] * 5] * 3


def test_the_places_of_a_mask_decoder_lie_in_the_middle_of_their_cells() -> None:
    large = ScoreMap(torch.tensor([[0.0, 8]]), (1, 2), align_corners=False).at((1, 4))
    assert large.tolist() == [[[0, 2, 6, 8]]]


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_grid_is_filled_row_by_row(align_corners: bool) -> None:
    maps = ScoreMap(torch.arange(6.0)[None], (2, 3), align_corners=align_corners)
    assert maps.at((2, 3)).tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_scores_become_probabilities_and_nothing_stays_nothing() -> None:
    assert normalise(torch.tensor([[3.0, 0], [1, 0]])).tolist() == [[0.75, 0], [0.25, 0]]


def test_scores_are_interpolated_before_they_become_probabilities() -> None:
    # In the middle the scores are (2, 3/2), so 4/7; the mean of the probabilities 1/4 and 1 would be 5/8.
    maps = ScoreMap(torch.tensor([[1.0, 3], [3, 0]]), (1, 2), align_corners=True)
    assert maps.probabilities((1, 3))[0].flatten().tolist() == pytest.approx([1 / 4, 4 / 7, 1])


def test_annotations_are_checked_here() -> None:
    with pytest.raises(TypeCheckError):
        head_max(torch.zeros(2, 3, 5))
    with pytest.raises(TypeCheckError):
        prompt_scores(torch.zeros(3, 5), torch.zeros(2))
