"""Intersection over union, with hand-counted pixels."""

from __future__ import annotations

import numpy as np
import pytest

from app.research.scores import Counts, Report, Score


def test_iou_is_counted_over_all_photos_together() -> None:
    counts = Counts(3)
    # Background: 3 hits, 1 taken by class 1, 1 taken from class 2. Class 1: 2 hits, 1 false. Class 2: 1 hit, 1 missed.
    counts.add(np.array([[0, 0, 0, 1], [1, 1, 2, 0]]), np.array([[0, 0, 0, 0], [1, 1, 2, 2]]))
    assert counts.score().iou == {0: 3 / 5, 1: 2 / 3, 2: 1 / 2}
    counts.add(np.array([[2, 2]]), np.array([[2, 255]]))
    assert counts.score().iou[2] == 2 / 3, "an ignored pixel counts for nobody"


def test_a_class_can_be_left_out_of_the_count() -> None:
    counts = Counts(3)
    # Of class 1 nothing counts; class 2: 1 hit, 1 false (on class 1), 1 missed (to class 1).
    counts.add(np.array([[0, 1, 2], [2, 1, 1]]), np.array([[0, 1, 2], [1, 1, 2]]), without=1)
    assert counts.score().iou == pytest.approx({0: 1.0, 2: 1 / 3})


def test_mean_spread_and_share_of_worse_classes() -> None:
    report = Report(
        ("background", "a", "b"),
        photos=2,
        scores={
            "words": [Score({0: 0.5, 1: 0.1, 2: 0.3}), Score({0: 0.7, 1: 0.3, 2: 0.5})],
            "one-shot": [Score({0: 0.5, 1: 0.4, 2: 0.3}), Score({0: 0.7, 1: 0.4, 2: 0.3})],
        },
        compared=[frozenset({1, 2})] * 2,
    )
    assert report.mean("words") == pytest.approx((0.4, 0.1))
    assert report.by_class("one-shot") == pytest.approx({0: 0.6, 1: 0.4, 2: 0.3})
    assert report.worse_than("words", "one-shot") == (1, 2)
    assert report.worse_than("words", "words") is None


def test_a_class_that_was_not_taught_is_neither_better_nor_worse() -> None:
    """The first class is taught by the first seed alone, where it gains, and the second and third by none."""
    report = Report(
        ("background", "a", "b", "c"),
        photos=2,
        scores={
            "words + CRF": [Score({0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5})] * 2,
            "one-shot + CRF": [Score({0: 0.5, 1: 0.6, 2: 0.4}), Score({0: 0.5, 1: 0.1, 2: 0.4})],
        },
        compared=[frozenset({1}), frozenset()],
    )
    assert report.worse_than("words", "one-shot + CRF") == (0, 1)


def test_the_score_of_some_classes_is_a_mean_of_theirs() -> None:
    assert Score({0: 0.9, 1: 0.5, 2: 0.0}).only({0, 1, 3}).mean == pytest.approx(0.7)
