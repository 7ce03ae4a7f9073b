"""The whole pipeline: from a photo and words to a probability per class and pixel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from app.backbones.blip import Blip
from app.method.backbone import EncodedImage
from app.method.parameters import VisualPrompt
from app.method.pipeline import Pipeline, encode_one
from app.method.prediction import Prediction
from app.method.prompts import Query
from app.method.refinement import crf
from tests.models import random_adapter

BACKGROUND = ("sky", "bed", "wall")
PHOTO = np.random.default_rng(0).integers(0, 256, (37, 101, 3), dtype=np.uint8)


@pytest.fixture
def pipeline(blip: Blip) -> Pipeline:
    """Every class is kept."""
    return Pipeline(blip, background=BACKGROUND, min_relative_score=0.0)


@pytest.fixture(scope="module")
def encoded(blip: Blip) -> EncodedImage:
    return encode_one(blip, blip.preprocess(PHOTO)[0])


def maps(found: Prediction, classes: int) -> np.ndarray:
    """The categories' probabilities on the photo."""
    return np.stack([found.probability(number) for number in range(1, classes + 1)])


def test_every_pixel_of_the_photo_has_a_probability_per_class(blip: Blip, pipeline: Pipeline) -> None:
    queries = [Query(("dog", "hound")), Query(("cat",), random_adapter(blip, "cat"))]
    found = replace(pipeline, refinement=crf).run(PHOTO, queries)
    torch.testing.assert_close(found.class_map.probabilities.sum(dim=0), torch.ones(112, 112))
    on_photo = maps(found, 2)
    assert on_photo.shape == (2, 37, 101)
    assert on_photo.min() >= 0
    assert on_photo.sum(axis=0).max() <= 1 + 1e-5
    labels, best = found.labels(None)
    # A pixel is the background's where the background has more than every category.
    background = 1 - on_photo.sum(axis=0)
    assert np.array_equal(labels, np.stack([background, *on_photo]).argmax(axis=0))
    assert best.min() >= 1 / 3 - 1e-5


def test_the_steps_one_by_one_give_the_same(pipeline: Pipeline) -> None:
    pipeline, queries = replace(pipeline, refinement=crf), [Query(("dog",))]
    image = pipeline.see(PHOTO)
    by_steps = pipeline.refine(pipeline.class_map(image.encoded, queries), image.rgb)
    assert torch.equal(by_steps.probabilities, pipeline.run(PHOTO, queries).class_map.probabilities)


def test_an_encoder_and_a_clock_from_outside_are_used(blip: Blip, pipeline: Pipeline) -> None:
    encoded, timed = [], []

    def encode(rgb: Tensor, number: int) -> EncodedImage:
        encoded.append(number)
        return encode_one(blip, rgb)

    @contextmanager
    def stage(name: str):
        yield timed.append(name)

    replace(pipeline, use_tiles=True, refinement=crf).run(PHOTO, [Query(("dog",))], encode=encode, stage=stage)
    assert encoded == [0, 1, 2, 3, 4], "the photo, then its tiles"
    assert timed == ["preprocess", "encode_image", "attend", "tiles", "refine"]


def test_the_order_of_the_categories_is_the_order_of_the_answer(blip: Blip, pipeline: Pipeline) -> None:
    dog, cat = Query(("dog",), random_adapter(blip, "dog", seed=1)), Query(("cat", "kitten"))
    one, other = (maps(pipeline.run(PHOTO, queries), 2) for queries in ([dog, cat], [cat, dog]))
    np.testing.assert_allclose(one, other[::-1], rtol=1e-4, atol=1e-5)


def test_an_adapter_changes_the_answer(blip: Blip, pipeline: Pipeline) -> None:
    words = maps(pipeline.run(PHOTO, [Query(("dog",))]), 1)
    taught = maps(pipeline.run(PHOTO, [Query(("dog",), random_adapter(blip, "dog"))]), 1)
    assert np.abs(words - taught).max() > 0.05


def test_a_category_leaves_the_background(pipeline: Pipeline, encoded: EncodedImage) -> None:
    found = pipeline.class_map(encoded, [Query(("Bed",))]).probabilities
    without = replace(pipeline, background=("sky", "wall")).class_map(encoded, [Query(("Bed",))]).probabilities
    torch.testing.assert_close(found, without)


def test_masks_of_some_classes_are_those_of_a_request_for_them_alone(
    blip: Blip, pipeline: Pipeline, encoded: EncodedImage
) -> None:
    """Decoding again without the cat against reading again without it."""
    queries = [Query(("cat",)), Query(("dog",), random_adapter(blip, "dog")), Query(("tree", "oak"))]
    pipeline = replace(pipeline, min_relative_score=0.0, background=("wall", "floor"))
    some, alone = pipeline.decode(pipeline.read(encoded, queries), [0, 2, 3]), pipeline.class_map(encoded, queries[1:])
    assert some.classes == (0, 2, 3)
    torch.testing.assert_close(some.probabilities, alone.probabilities)


def test_without_a_category_all_is_background(pipeline: Pipeline, encoded: EncodedImage) -> None:
    found = pipeline.class_map(encoded, [])
    assert torch.equal(found.probabilities, torch.ones(1, 112, 112))
    assert found.match_score.shape == (0,)


@pytest.mark.parametrize("least", [0.05, 0.24])
def test_leaving_out_what_is_nowhere_likely_changes_no_label(
    blip: Blip, pipeline: Pipeline, encoded: EncodedImage, least: float
) -> None:
    """Seventeen categories, most of them far below the others at every patch."""
    unlikely = VisualPrompt(torch.zeros(blip.feature_width), torch.tensor(-30.0))
    queries = []
    for number in range(17):
        adapter = random_adapter(blip, f"thing {number}", seed=number)
        queries.append(Query(adapter.prompts, replace(adapter, visual_prompt=unlikely) if number % 5 else adapter))
    whole = pipeline.class_map(encoded, queries)
    some = replace(pipeline, min_relative_score=least).class_map(encoded, queries)
    assert whole.classes == tuple(range(18))
    assert 1 < len(some.classes) < 10
    assert some.classes[0] == 0
    assert torch.equal(some.match_score, whole.match_score)
    torch.testing.assert_close(some.probabilities, whole.probabilities[list(some.classes)])
    numbers = torch.tensor(some.classes)
    assert torch.equal(numbers[some.probabilities.argmax(dim=0)], whole.probabilities.argmax(dim=0))
    refined, rgb = replace(pipeline, refinement=crf), blip.preprocess(PHOTO)[0]
    few, all_ = (refined.refine(each, rgb).probabilities.argmax(dim=0) for each in (some, whole))
    assert (numbers[few] == all_).float().mean() > 0.995


def test_a_match_score_is_that_of_the_best_synonym(pipeline: Pipeline, encoded: EncodedImage) -> None:
    each = pipeline.class_map(encoded, [Query(("dog",)), Query(("hound",))]).match_score
    both = pipeline.class_map(encoded, [Query(("dog", "hound"))]).match_score
    assert both.tolist() == pytest.approx([max(each.tolist())])


def test_the_layers_read_are_those_asked_for_and_the_adapters(
    blip: Blip, pipeline: Pipeline, encoded: EncodedImage
) -> None:
    taught = Query(("dog",), random_adapter(blip, "dog", layers=(1, 2)))
    assert replace(pipeline, layers=(4,)).class_map(encoded, [taught]).layers == (1, 2, 4)
    assert pipeline.class_map(encoded, [Query(("dog",))]).layers == blip.default_layers == (0, 3)


def test_decoded_masks_are_refined_thrice_and_others_as_the_authors_do(
    embedded, blip: Blip, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []

    def noted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(probabilities: Tensor, rgb: Tensor, parameters) -> Tensor:
            rounds.append(parameters.iterations)
            return function(probabilities, rgb, parameters)

        return run

    monkeypatch.setattr("app.method.refinement.conv_crf", noted(lambda probabilities, *_: probabilities))
    for backbone, use_mask_decoder in ((embedded, True), (embedded, False), (blip, True)):
        Pipeline(backbone, refinement=crf, use_mask_decoder=use_mask_decoder).run(PHOTO, [Query(("dog",))])
    assert rounds == [3, 20, 20]
