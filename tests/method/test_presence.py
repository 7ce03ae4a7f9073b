"""Presence: facts with numbers by hand, the logistic model, and what the pipeline does with it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.backbones.blip import Blip
from app.method.backbone import EncodedImage
from app.method.pipeline import Pipeline, backbone_presence
from app.method.presence import (
    WORD_FACTS,
    LogisticModel,
    best_means,
    calibrated_bias,
    shifted,
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


def test_of_one_layer_what_a_category_has_alone_does_not_depend_on_the_others() -> None:
    scores = torch.rand(5, 49, generator=torch.Generator().manual_seed(0))
    together, alone = word_facts(scores, torch.full((4,), 0.3)), word_facts(scores[:2], torch.tensor([0.3]))
    kept = [n for n, name in enumerate(WORD_FACTS) if not name.startswith("competing")]
    torch.testing.assert_close(together[:1, kept], alone[:, kept])


def test_a_thousand_competing_names_count_as_a_hundred() -> None:
    number = WORD_FACTS.index("competing number")
    counted = {names: word_facts(torch.ones(1 + names, 7), torch.ones(names))[0, number].item() for names in (99, 1000)}
    assert counted == {99: pytest.approx(math.log(99)), 1000: pytest.approx(math.log(100))}


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


@pytest.mark.parametrize(
    ("scored", "expected"), [("match head", [0.25, 1.0]), ("yes/no question", [0.25, 1.0]), ("none", [0.75, 1 / 3])]
)
def test_without_a_model_the_image_text_score_is_the_presence_or_the_best_patches(
    blip: Blip, monkeypatch: pytest.MonkeyPatch, scored: str, expected: list[float]
) -> None:
    """A score that float32 rounds to 1 is a sure one."""
    monkeypatch.setattr(blip, "image_text_score", scored)
    scores, match = torch.tensor([[0.2], [0.6], [0.1]]), torch.tensor([0.25, 1.0])
    image = EncodedImage(torch.zeros(50, 24))
    found = backbone_presence(blip, image, scores, match, [("dog",), ("cat",)], [None, None])
    assert found.tolist() == pytest.approx(expected)


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
