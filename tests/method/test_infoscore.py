"""InfoScore with hand-computed numbers, and its running sums against the formula."""

from __future__ import annotations

import pytest
import torch

from app.method.infoscore import LayerStatistics, best_layers, infoscore, prompt_shares

# Shares of 2 prompts on 3 images.
MOVING = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]])
STILL = torch.tensor([[0.75, 0.25]] * 3)


def statistics(shares: torch.Tensor) -> LayerStatistics:
    """Of shares `[image, layer, prompt]`, one image after the other."""
    running = LayerStatistics.empty(*shares.shape[1:])
    for image in shares:
        running = running.add(image)
    return running


def test_two_prompts_on_three_images_by_hand() -> None:
    scores = infoscore(statistics(torch.stack([MOVING, STILL], dim=1)))
    # Moving: H_img = (ln 2 + 2 · 0.562335) / 3 = 0.605939, H_data = ln 2, CoV = 2 · 0.204124 / 0.5.
    # Still: H_img = H_data = 0.562335, no deviation.
    assert scores.entropy_ratio.tolist() == pytest.approx([1.143922, 1], abs=1e-6)
    assert scores.cov.tolist() == pytest.approx([0.816497, 0], abs=1e-6)
    assert scores.infoscore.tolist() == pytest.approx([0.934008, 0], abs=1e-6)


def test_running_sums_equal_the_formula_over_all_images_at_once() -> None:
    shares = torch.randn(11, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(dim=2)
    entropy_image = -(shares * shares.log()).sum(dim=2).mean(dim=0)
    overall = shares.mean(dim=0)
    entropy_all = -(overall * overall.log()).sum(dim=1)
    cov = (shares.std(dim=0, correction=0) / overall).sum(dim=1)
    scores = infoscore(statistics(shares))
    assert torch.allclose(scores.entropy_ratio, entropy_all / entropy_image)
    assert torch.allclose(scores.cov, cov)
    assert torch.allclose(scores.infoscore, entropy_all / entropy_image * cov)


def test_statistics_of_two_sets_merge_into_those_of_both() -> None:
    shares = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(1)).softmax(dim=2)
    merged, together = statistics(shares[:2]).merge(statistics(shares[2:])), statistics(shares)
    assert merged.images == together.images == 7
    for name in ("entropy_sum", "share_sum", "share_square_sum"):
        assert torch.allclose(getattr(merged, name), getattr(together, name))


def test_adding_an_image_leaves_the_old_value_alone() -> None:
    empty = LayerStatistics.empty(2, 2)
    empty.add(torch.stack([MOVING[1], STILL[1]]))
    assert empty.images == 0
    assert float(empty.share_sum.sum() + empty.share_square_sum.sum() + empty.entropy_sum.sum()) == 0


def test_an_image_that_one_prompt_fills_gives_a_number() -> None:
    scores = infoscore(statistics(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])))
    assert scores.cov.tolist() == pytest.approx([2])
    assert bool(torch.isfinite(scores.infoscore).all())


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        infoscore(LayerStatistics.empty(3, 5))


def test_a_share_is_the_mean_over_pixels_of_the_normalised_map() -> None:
    # 2 prompts on a grid of 1 × 2, 1 × 3 pixels: (1, 1, 1) and (3, 1.5, 0), so the first holds 1/4, 1/2.5 and 1.
    shares = prompt_shares(torch.tensor([[1.0, 1], [3, 0]]), (1, 2), (1, 3))
    assert shares.tolist() == pytest.approx([0.55, 0.45])


def test_the_best_layers_come_in_the_order_of_the_network() -> None:
    assert best_layers(torch.tensor([0.1, 0.3, 0.2, 0.9, 0.0])) == (1, 3)
    assert best_layers(torch.tensor([0.5, 0.7]), count=3) == (0, 1)
