"""The whole chain: a photo and words in, a probability per class and pixel out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from app.method.segment import class_map, crf_of, encode, refine, segment

from app.backbones.blip import Blip
from app.method.crf import CrfParameters
from app.method.evidence import Query
from app.method.visual_prompt import BIAS, DIRECTION
from tests.models import random_adapter

BACKGROUND = ("sky", "bed", "wall")
PHOTO = np.random.default_rng(0).integers(0, 256, (37, 101, 3), dtype=np.uint8)


def test_every_pixel_of_the_photo_has_a_probability_per_class(blip: Blip) -> None:
    queries = [Query(("dog", "hound")), Query(("cat",), random_adapter(blip, "cat"))]
    found = segment(blip, PHOTO, queries, background=BACKGROUND, crf=CrfParameters(iterations=3))
    assert found.shape == (3, 37, 101)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(dim=0), torch.ones(37, 101))


def test_the_steps_one_by_one_give_the_same(blip: Blip) -> None:
    queries = [Query(("dog",))]
    rgb, frame = blip.preprocess(PHOTO)
    found = class_map(blip, encode(blip, rgb), queries, background=BACKGROUND)
    refined = refine(found.probabilities, rgb, CrfParameters(iterations=3))
    at_once = segment(blip, PHOTO, queries, background=BACKGROUND, crf=CrfParameters(iterations=3))
    height, width = frame.content_hw
    back = torch.nn.functional.interpolate(refined[None, :, :height, :width], size=(37, 101), mode="bilinear")[0]
    torch.testing.assert_close(at_once, back)


def test_the_order_of_the_categories_is_the_order_of_the_answer(blip: Blip) -> None:
    dog, cat = Query(("dog",), random_adapter(blip, "dog", seed=1)), Query(("cat", "kitten"))
    one = segment(blip, PHOTO, [dog, cat], background=BACKGROUND)
    other = segment(blip, PHOTO, [cat, dog], background=BACKGROUND)
    torch.testing.assert_close(one, other[[0, 2, 1]], rtol=1e-4, atol=1e-5)


def test_an_adapter_changes_the_answer(blip: Blip) -> None:
    words = segment(blip, PHOTO, [Query(("dog",))], background=BACKGROUND)
    taught = segment(blip, PHOTO, [Query(("dog",), random_adapter(blip, "dog"))], background=BACKGROUND)
    assert (words - taught).abs().max() > 0.05


def test_a_category_leaves_the_background(blip: Blip) -> None:
    found = segment(blip, PHOTO, [Query(("Bed",))], background=BACKGROUND)
    torch.testing.assert_close(found, segment(blip, PHOTO, [Query(("Bed",))], background=("sky", "wall")))


def test_without_a_category_all_is_background(blip: Blip) -> None:
    found = class_map(blip, encode(blip, torch.rand(3, 112, 112)), [], background=BACKGROUND)
    assert torch.equal(found.probabilities, torch.ones(1, 112, 112))
    assert found.match_score.shape == (0,)


@pytest.mark.parametrize("least", [0.05, 0.24])
def test_leaving_out_what_is_nowhere_likely_changes_no_label(blip: Blip, least: float) -> None:
    """Seventeen categories, most of them far below the others at every patch."""
    tokens = encode(blip, blip.preprocess(PHOTO)[0])
    unlikely = {DIRECTION: torch.zeros(blip.feature_width), BIAS: torch.tensor(-30.0)}
    queries = []
    for number in range(17):
        adapter = random_adapter(blip, f"thing {number}", seed=number)
        shifted = {**adapter.tensors, **unlikely} if number % 5 else adapter.tensors
        queries.append(Query(adapter.prompts, replace(adapter, tensors=shifted)))
    whole = class_map(blip, tokens, queries, background=BACKGROUND)
    some = class_map(blip, tokens, queries, background=BACKGROUND, least=least)
    assert whole.classes == tuple(range(18))
    assert 1 < len(some.classes) < 10
    assert some.classes[0] == 0
    assert torch.equal(some.match_score, whole.match_score)
    torch.testing.assert_close(some.probabilities, whole.probabilities[list(some.classes)])
    numbers = torch.tensor(some.classes)
    assert torch.equal(numbers[some.probabilities.argmax(dim=0)], whole.probabilities.argmax(dim=0))
    colours = blip.preprocess(PHOTO)[0]
    few, all_ = (
        refine(maps, colours, CrfParameters()).argmax(dim=0) for maps in (some.probabilities, whole.probabilities)
    )
    assert (numbers[few] == all_).float().mean() > 0.995


def test_a_match_score_is_that_of_the_best_synonym(blip: Blip) -> None:
    tokens = encode(blip, blip.preprocess(PHOTO)[0])
    each = class_map(blip, tokens, [Query(("dog",)), Query(("hound",))], background=BACKGROUND).match_score
    both = class_map(blip, tokens, [Query(("dog", "hound"))], background=BACKGROUND).match_score
    assert both.tolist() == pytest.approx([max(each.tolist())])


def test_the_layers_read_are_those_asked_for_and_the_adapters(blip: Blip) -> None:
    tokens = encode(blip, blip.preprocess(PHOTO)[0])
    taught = Query(("dog",), random_adapter(blip, "dog", layers=(1, 2)))
    assert class_map(blip, tokens, [taught], layers=(4,), background=BACKGROUND).layers == (1, 2, 4)
    assert class_map(blip, tokens, [Query(("dog",))], background=BACKGROUND).layers == blip.default_layers == (0, 3)


def test_masks_with_edges_are_refined_thrice_and_others_as_the_authors_do(embedded, blip) -> None:
    assert [crf_of(one).iterations for one in (embedded, blip)] == [3, 20]
    assert crf_of(embedded, second_look=False) == CrfParameters()
