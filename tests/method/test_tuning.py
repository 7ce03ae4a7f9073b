"""Tuning steps improve a copy of a few parameters and change nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from app.backbones.blip import Blip
from app.method import tuning as tuning_module
from app.method.parameters import LowRank
from app.method.pieces import finished
from app.method.pipeline import Pipeline
from app.method.prompts import Prompts, Query
from app.method.scores import ScoreMap
from app.method.selection import select
from app.method.shot import Shot
from app.method.tuning import PAPER, TUNED, CategoryTuning, Recipe

LAYERS = (0, 3)
BACKGROUND = ("sky", "wall", "railway track")
OTHERS = tuple(Query((name,)) for name in ("cat", "tree"))


@pytest.fixture(autouse=True)
def _fast_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps suffice on the small model at a higher rate."""
    monkeypatch.setattr(tuning_module, "LEARNING_RATE", 5e-3)


def tuning_of(
    blip: Blip, shots: Sequence[Shot], recipe: Recipe = TUNED, words: tuple[str, ...] = ("dog",)
) -> CategoryTuning:
    others = Prompts.of(OTHERS, BACKGROUND, taken=words)
    return CategoryTuning(blip, shots, words, others=others, layers=LAYERS, recipe=recipe)


def weights_of(blip: Blip) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in blip._model.state_dict().items()}


@pytest.mark.parametrize("recipe", [TUNED, PAPER], ids=lambda recipe: recipe.name)
def test_the_loss_falls_and_the_examples_are_marked_better(blip: Blip, shots: list[Shot], recipe: Recipe) -> None:
    tuning = tuning_of(blip, shots, recipe)
    losses = [tuning.step() for _ in range(20)]
    assert losses[-1] < losses[0]
    words = sum(tuning.iou(index, None) for index in range(3))
    assert sum(tuning.iou(index, tuning.parameters) for index in range(3)) > words


def test_before_the_first_step_nothing_is_changed(blip: Blip, shots: list[Shot]) -> None:
    tuning = tuning_of(blip, shots)
    with torch.no_grad():
        torch.testing.assert_close(tuning.scores(0, tuning.tuned()), tuning.scores(0, None))


def test_every_trainable_parameter_gets_a_gradient_and_the_model_none(blip: Blip, shots: list[Shot]) -> None:
    tuning = tuning_of(blip, shots)
    before, model = [tensor.detach().clone() for tensor in tuning.parameters.trained], weights_of(blip)
    tuning.step()
    assert tuning.parameters.form == blip.trainable(LAYERS, blip.tokenize(["dog"])).form
    for tensor, old in zip(tuning.parameters.trained, before, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0
        assert not torch.equal(tensor, old)
    assert torch.equal(tuning.parameters.tokens.ids, blip.trainable(LAYERS, blip.tokenize(["dog"])).tokens.ids)
    assert all(p.grad is None and not p.requires_grad for p in blip._model.parameters())
    assert all(torch.equal(tensor, model[name]) for name, tensor in blip._model.state_dict().items())


@pytest.mark.parametrize("words", [("dog",), ("dog", "hound", "a small white puppy")])
def test_the_constant_part_equals_a_pass_over_all_prompts(
    blip: Blip, shots: list[Shot], words: tuple[str, ...]
) -> None:
    tuning = tuning_of(blip, shots, words=words)
    tuning.step()
    pipeline = Pipeline(blip, layers=LAYERS, background=BACKGROUND, min_relative_score=0.0)
    for index, shot in enumerate(shots):
        at_once = pipeline.class_map(shot.image, [*OTHERS, Query(words)])
        with torch.no_grad():
            in_parts = ScoreMap(tuning.scores(index, None), (7, 7), align_corners=True).probabilities((112, 112))
        torch.testing.assert_close(in_parts, at_once.probabilities, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", [TUNED, PAPER], ids=lambda recipe: recipe.name)
def test_a_request_sees_what_tuning_saw(blip: Blip, shots: list[Shot], recipe: Recipe) -> None:
    tuning = tuning_of(blip, shots, recipe)
    for _ in range(5):
        tuning.step()
    outcome = finished(select(tuning))
    adapter = replace(outcome, example_iou=1.0, zero_shot_example_iou=0.0).adapter(
        tuning, "dog", version=1, created_at=""
    )
    pipeline = Pipeline(blip, layers=LAYERS, background=BACKGROUND, min_relative_score=0.0)
    found = pipeline.class_map(shots[0].image, [*OTHERS, Query(("dog",), adapter)])
    with torch.no_grad():
        scores = tuning.scores(0, outcome.parameters, outcome.visual_prompt)
    seen = ScoreMap(scores, (7, 7), align_corners=True).probabilities((112, 112))
    torch.testing.assert_close(found.probabilities, seen, rtol=0, atol=2e-3)  # the adapter is kept in float16


@pytest.mark.parametrize("rank", [7, 50])
def test_low_rank_factors_do_what_the_whole_matrices_do(blip: Blip, shots: list[Shot], rank: int) -> None:
    """Few steps change few directions: seven of 21 hold nearly all, and 50 are cut to what there is."""
    whole, factors = (tuning_of(blip, shots, replace(TUNED, rank=each)) for each in (None, rank))
    for _ in range(3):
        assert whole.step() == factors.step()
    assert any(isinstance(change, LowRank) for change in factors.tuned().delta.values())
    with torch.no_grad():
        expected, found = (each.scores(0, each.tuned()) for each in (whole, factors))
        words = whole.scores(0, None)
    assert (found - expected).abs().max() < (0.1 if rank == 7 else 1e-3) * (words - expected).abs().max()


@pytest.mark.parametrize("interpolation", [0.0, 0.25, 1.0])
def test_the_adapter_goes_a_part_of_the_way(blip: Blip, shots: list[Shot], interpolation: float) -> None:
    tuning = tuning_of(blip, shots, replace(TUNED, interpolation=interpolation, rank=None))
    base = blip.trainable(LAYERS, blip.tokenize(["dog"])).trained
    tuning.step()
    for own, tuned, kept in zip(base, tuning.parameters.trained, tuning.tuned().trained, strict=True):
        torch.testing.assert_close(kept, own + interpolation * (tuned.detach() - own))


def test_what_tuning_hands_out_does_not_change_with_further_steps(blip: Blip, shots: list[Shot]) -> None:
    tuning = tuning_of(blip, shots)
    tuning.step()
    kept = tuning.tuned().trained
    copies = [tensor.clone() for tensor in kept]
    tuning.step()
    assert not any(tensor.requires_grad for tensor in kept)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize(
    ("shows", "turns"),
    [
        ([True] * 6, [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]),
        ([True] * 3, [[0, 1, 2], [0, 1, 2]]),
        ([False, True, False, False], [[1, 0], [1, 2], [1, 3], [1, 0]]),
        ([True, True, False], [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_examples_take_turns_four_at_a_time_and_no_more_without_the_category(
    shows: list[bool], turns: list[list[int]]
) -> None:
    assert list(itertools.islice(tuning_module._turns(shows), len(turns))) == turns


def test_the_same_example_gives_the_same_losses(blip: Blip, shots: list[Shot]) -> None:
    first, second = tuning_of(blip, shots), tuning_of(blip, shots)
    assert [first.step() for _ in range(3)] == [second.step() for _ in range(3)]


def test_a_step_pauses_between_examples_and_changes_nothing_before_its_end(blip: Blip, shots: list[Shot]) -> None:
    whole, paused = tuning_of(blip, shots), tuning_of(blip, shots)
    for pauses in (5, 2):  # the first step also reads the other names on each of the three examples
        losses, pieces = whole.step(), paused.step_in_pieces()
        before = [tensor.clone() for tensor in paused.parameters.trained]
        for _ in range(pauses):
            assert next(pieces) is None
            assert all(map(torch.equal, before, paused.parameters.trained))
        assert finished(pieces) == losses
        assert all(map(torch.equal, whole.parameters.trained, paused.parameters.trained))


def test_a_word_far_behind_the_others_is_learned(
    blip: Blip, shots: list[Shot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By 60 nats: its probability is 1e-26, of which float32 can hold the logarithm."""
    read = tuning_module.patch_logits
    monkeypatch.setattr(tuning_module, "patch_logits", lambda *args: read(*args) - 60)
    tuning = tuning_of(blip, shots)
    tuning._loss(0).backward()
    assert max(tensor.grad.abs().max() for tensor in tuning.parameters.trained if tensor.grad is not None) > 1e-3


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("recipe", [TUNED, PAPER], ids=lambda recipe: recipe.name)
def test_a_mask_of_everything_and_a_photo_without_the_category_give_numbers(
    blip: Blip, shots: list[Shot], share: float, recipe: Recipe
) -> None:
    shot = replace(shots[0], target=torch.full_like(shots[0].target, share))
    tuning = tuning_of(blip, [shots[1], shot], recipe)
    tuning.step()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tuning.parameters.trained)


def test_no_example_is_refused(blip: Blip) -> None:
    with pytest.raises(ValueError, match="at least one shot"):
        tuning_of(blip, [])


def test_photos_without_the_category_alone_are_refused(blip: Blip, shots: list[Shot]) -> None:
    with pytest.raises(ValueError, match="shows the category"):
        tuning_of(blip, [replace(shots[0], target=torch.zeros_like(shots[0].target))])
