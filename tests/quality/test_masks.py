"""Quality of the embedded model's masks on a dozen photos: a change that makes them clearly worse fails.

Each bound is the measured value minus 0.05. So few photos only show that nothing broke; `python -m app evaluate`
measures quality (docs/quality.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from app.method.prompts import Query
from app.research.open_metrics import MARKED
from tests.quality.photos import PHOTOS, SHOWN, mask


def iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / (found | true).sum())


def test_there_are_a_dozen_photos() -> None:
    assert len(PHOTOS) == 12


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("astronaut", 0.78),
        ("grace_hopper", 0.90),
        ("kitten", 0.74),
        ("chelsea", 0.93),
        ("giraffes", 0.69),
        ("giraffe_head", 0.88),
        ("teacup", 0.71),
        ("coffee", 0.74),
        ("dog", 0.89),
    ],
)
def test_a_named_category(marked: Callable, name: str, bound: float) -> None:
    assert iou(marked(name, Query((SHOWN[name],))), mask(name)) > bound


@pytest.mark.parametrize(
    ("example", "name", "bound"),
    [
        ("kitten", "chelsea", 0.93),
        ("astronaut", "grace_hopper", 0.90),
        ("giraffe_head", "giraffes", 0.66),
        ("coffee", "teacup", 0.71),
    ],
)
def test_a_category_taught_from_one_example(
    marked: Callable, taught: Callable, example: str, name: str, bound: float
) -> None:
    assert iou(marked(name, taught(SHOWN[example], example)), mask(name)) > bound


@pytest.mark.parametrize(("example", "name", "bound"), [("coffee", "teacup", 0.74), ("kitten", "chelsea", 0.91)])
def test_a_word_that_means_nothing_is_taught_by_its_example(
    marked: Callable, taught: Callable, example: str, name: str, bound: float
) -> None:
    assert iou(marked(name, Query(("gribble",))), mask(name)) == 0
    assert iou(marked(name, taught("gribble", example)), mask(name)) > bound


@pytest.mark.parametrize(("word", "photos"), [("airplane", 0), ("zebra", 2)])
def test_a_named_category_that_no_photo_shows_is_marked_in_few(marked: Callable, word: str, photos: int) -> None:
    shares = [marked(name, Query((word,))).mean() for name in PHOTOS]
    assert sum(share > MARKED for share in shares) <= photos


@pytest.mark.parametrize(("example", "photos"), [("giraffes", 1), ("kitten", 1), ("teacup", 1)])
def test_a_taught_category_is_marked_in_few_photos_without_it(
    marked: Callable, taught: Callable, example: str, photos: int
) -> None:
    """None is; a look-alike comes near the bound, as the dog to the cat."""
    category = SHOWN[example]
    others = [name for name in PHOTOS if SHOWN.get(name) != category]
    shares = [marked(name, taught(category, example)).mean() for name in others]
    assert sum(share > MARKED for share in shares) <= photos


def test_a_look_alike_that_is_shown_as_absent_is_less_present_and_the_category_is_still_found(
    found: Callable, marked: Callable, taught: Callable
) -> None:
    """The one of a cat, and the one of an animal whose word says nothing."""
    for name, falls_to in (("cat", 0.9), ("Mia", 0.5)):
        before, after = (
            found("dog", query).presence[0] for query in (taught(name, "kitten"), taught(name, "kitten", "dog"))
        )
        assert after < falls_to * before, name
    corrected = taught("cat", "kitten", "dog")
    assert iou(marked("chelsea", corrected), mask("chelsea")) > 0.9
    assert iou(marked("kitten", corrected), mask("kitten")) > 0.74
