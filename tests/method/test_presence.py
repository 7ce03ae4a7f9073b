"""Presence: facts with numbers by hand, the logistic model, and what the pipeline does with it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.backbones.blip import Blip
from app.method.adapter import Adapter
from app.method.parameters import ExampleMemory
from app.method.pipeline import Pipeline
from app.method.presence import (
    WORD_FACTS,
    LogisticModel,
    best_means,
    calibrated_bias,
    shifted,
    uncalibrated,
    word_facts,
)
from app.method.prompts import Query

PHOTO = np.random.default_rng(0).integers(0, 256, (37, 101, 3), dtype=np.uint8)
QUERIES = (Query(("dog",)), Query(("cat",)), Query(("tree",)))


class Stated:
    """A model of presence that says the same of every photo."""

    def __init__(self, *presence: float) -> None:
        self.presence = torch.tensor(presence)

    def __call__(self, *_: object) -> torch.Tensor:
        return self.presence


class Looks:
    """A model of presence to which a category looks as probable as its memory's first number, and by words as 0.9."""

    def __call__(self, scores: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.full((len(scores) - 1,), 0.9)

    def by_looks(self, _: torch.Tensor, memories: list[ExampleMemory]) -> torch.Tensor:
        return torch.stack([memory.facts[0] for memory in memories])


def taught(word: str, looks: float, *, bias: float = 0.0) -> Query:
    """A category whose examples look so probable."""
    one, share = torch.zeros(1, 5), torch.zeros(1)
    memory = ExampleMemory(one, share, one, share, one, share, torch.tensor([looks, 0, 0]))
    adapter = Adapter(
        "blip", "", word, 1, (word,), (0,), (1.0,), 0.0, 0.0, "2026-01-01T00:00:00Z", presence_bias=bias, memory=memory
    )
    return Query((word,), adapter)


@pytest.fixture
def pipeline(blip: Blip) -> Pipeline:
    return Pipeline(blip, background=("sky", "wall"), min_relative_score=0.0)


def test_the_best_patches_are_averaged_and_there_is_at_least_one() -> None:
    values = torch.tensor([[1.0, 5, 3, 7, 4], [2, 2, 2, 2, 9]])
    assert best_means(values, (0.1, 0.4)).tolist() == [[7, 6], [9, 5.5]]


def test_facts_of_a_named_category() -> None:
    # Four patches; the background has 0.2 everywhere.
    scores = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.4, 0.1, 0.1, 0.1], [0.2, 0.1, 0.1, 0.1]])
    facts = word_facts(scores, torch.tensor([0.75, 0.5]))
    first = dict(zip(WORD_FACTS, facts[0].tolist(), strict=True))
    assert first["match"] == pytest.approx(math.log(3))
    assert first["alone 0.005"] == pytest.approx(math.log(2))
    assert first["competing 0.005"] == pytest.approx(math.log(0.5))
    assert first["competing area"] == pytest.approx(math.log((0.5 + 3 * 0.25) / 4))
    assert first["competing number"] == pytest.approx(math.log(2))


def test_what_a_category_has_alone_does_not_depend_on_the_others() -> None:
    scores = torch.rand(5, 49, generator=torch.Generator().manual_seed(0))
    together, alone = word_facts(scores, torch.full((4,), 0.3)), word_facts(scores[:2], torch.tensor([0.3]))
    kept = [n for n, name in enumerate(WORD_FACTS) if not name.startswith("competing")]
    torch.testing.assert_close(together[:1, kept], alone[:, kept])


def test_a_logistic_model_by_hand() -> None:
    model = LogisticModel(
        mean=torch.tensor([1.0, 2.0]),
        deviation=torch.tensor([2.0, 4.0]),
        hidden=torch.tensor([[1.0, -1.0]]),
        hidden_bias=torch.tensor([0.5]),
        out=torch.tensor([2.0, 0.0, 3.0, -1.0]),
    )
    # Standardised (1, −1): 2 · 1 + 3 · tanh(1 + 1 + 0.5) − 1.
    logit = 2 + 3 * math.tanh(2.5) - 1
    assert model(torch.tensor([[3.0, -2.0]])).item() == pytest.approx(1 / (1 + math.exp(-logit)))


def test_without_a_model_the_image_text_score_is_the_presence_or_the_best_patches() -> None:
    scores = torch.tensor([[0.2], [0.6], [0.1]])
    assert uncalibrated(scores, torch.tensor([0.25, 0.5])).tolist() == pytest.approx([0.25, 0.5])
    assert uncalibrated(scores, torch.ones(2)).tolist() == pytest.approx([0.75, 1 / 3])


class TestBias:
    """Posterior mode: bias / 4 = number of examples with the category, less the sum of their probabilities."""

    @pytest.mark.parametrize(
        ("logits", "present"),
        [([0.0], [False]), ([3.0, 2.0, -1.0], [False] * 3), ([4.0, 1.0], [True, False]), ([-2.0], [True])],
    )
    def test_it_solves_the_equation(self, logits: list[float], present: list[bool]) -> None:
        bias = calibrated_bias(torch.tensor(logits), torch.tensor(present))
        expected = sum(present) - sum(1 / (1 + math.exp(-logit - bias)) for logit in logits)
        assert bias / 4 == pytest.approx(expected, abs=1e-3)

    def test_more_photos_without_it_move_it_further(self) -> None:
        one, five = (calibrated_bias(torch.full((n,), 2.0), torch.zeros(n, dtype=torch.bool)) for n in (1, 5))
        assert five < one < -1

    def test_it_shifts_log_odds_and_without_one_nothing_changes(self) -> None:
        found = shifted(torch.tensor([0.5, 0.2]), torch.tensor([-math.log(3), 0.0]))
        assert found.tolist() == pytest.approx([0.25, 0.2])
        assert found[1] == torch.tensor(0.2)


class TestPipeline:
    def test_an_improbable_category_has_no_mask_and_the_others_are_as_without_it(
        self, pipeline: Pipeline, blip: Blip, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blip, "presence", Stated(0.9, 0.1, 0.5))
        found = replace(pipeline, min_presence=0.5).run(PHOTO, QUERIES).class_map
        assert found.classes == (0, 1, 3)
        assert found.presence.tolist() == pytest.approx([0.9, 0.1, 0.5])
        monkeypatch.setattr(blip, "presence", Stated(1.0, 1.0))
        without = pipeline.run(PHOTO, [QUERIES[0], QUERIES[2]]).class_map
        torch.testing.assert_close(found.probabilities, without.probabilities, rtol=0, atol=1e-5)

    def test_a_bound_of_zero_keeps_every_category(
        self, pipeline: Pipeline, blip: Blip, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blip, "presence", Stated(0.0, 0.0, 0.0))
        assert pipeline.run(PHOTO, QUERIES).class_map.classes == (0, 1, 2, 3)

    def test_nothing_is_left_where_all_are_improbable(
        self, pipeline: Pipeline, blip: Blip, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blip, "presence", Stated(0.1, 0.1, 0.1))
        found = replace(pipeline, min_presence=0.5, use_tiles=True).run(PHOTO, QUERIES)
        assert found.class_map.classes == (0,)
        assert not found.labels()[0].any()
        assert found.presence == pytest.approx([0.1] * 3)


class TestManyTaught:
    """Of more taught categories than are read, the likeliest by their looks are."""

    QUERIES = (taught("dog", 0.3), Query(("sky",)), taught("cat", 0.8), taught("tree", 0.5), taught("wall", 0.4))

    @pytest.fixture
    def pipeline(self, pipeline: Pipeline, blip: Blip, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
        monkeypatch.setattr(blip, "presence", Looks())
        return replace(pipeline, min_presence=0.35, most_read=2)

    def test_the_others_have_no_pixel_and_presence_by_their_looks(self, pipeline: Pipeline) -> None:
        found = pipeline.run(PHOTO, self.QUERIES).class_map
        assert found.classes == (0, 2, 3, 4)
        assert found.presence.tolist() == pytest.approx([0.3, 0.9, 0.9, 0.9, 0.4])
        assert found.match_score[[0, 4]].tolist() == [0, 0]

    def test_those_read_are_as_if_the_others_had_not_been_asked_for(self, pipeline: Pipeline) -> None:
        found = replace(pipeline, background=("sky", "wall", "sea")).run(PHOTO, self.QUERIES).class_map
        some = [self.QUERIES[number - 1] for number in (2, 3, 4)]
        # "wall" names a category of the request: it stays out of the background although that category is not read.
        alone = replace(pipeline, background=("sea",)).run(PHOTO, some).class_map
        torch.testing.assert_close(found.probabilities, alone.probabilities, rtol=0, atol=0)
        torch.testing.assert_close(found.match_score[1:4], alone.match_score, rtol=0, atol=0)

    def test_its_own_examples_shift_how_probable_a_category_looks(self, pipeline: Pipeline) -> None:
        shifted = [*self.QUERIES[:3], taught("tree", 0.5, bias=-9.0), taught("wall", 0.4, bias=0.1)]
        assert pipeline.run(PHOTO, shifted).class_map.classes == (0, 2, 3, 5)

    def test_all_are_read_where_every_mask_is_wanted_or_there_are_few(self, pipeline: Pipeline) -> None:
        for every in (replace(pipeline, min_presence=0.0), replace(pipeline, most_read=4)):
            assert every.run(PHOTO, self.QUERIES).class_map.classes == (0, 1, 2, 3, 4, 5)

    def test_the_pieces_of_a_long_photo_may_show_different_ones(self, pipeline: Pipeline) -> None:
        long = np.concatenate([PHOTO] * 5, axis=1)
        assert pipeline.run(long, self.QUERIES).class_map.classes == (0, 2, 3, 4)
