"""Metrics of protocol `open`, with numbers by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from app.research.open_metrics import (
    METRICS,
    Counts,
    absent_marked,
    area_in_error,
    auc,
    calibration_error,
    miou,
    missed_though_named,
    present_missed,
)
from tests.research.counts import TAUGHT, WORDS, once, photos_of


def test_iou_is_over_all_photos_together() -> None:
    background, first, second = 2370 / (2500 + 2766 - 2370), 100 / (300 + 100 - 100), 0
    assert once(Counts.iou, WORDS).tolist() == pytest.approx([background, first, second])
    assert once(miou, WORDS) == pytest.approx((background + first + second) / 3)


def test_a_class_that_no_photo_shows_is_left_out() -> None:
    assert once(miou, photos_of(WORDS, [2])) == pytest.approx(0.97)


def test_pairs_of_photo_and_category() -> None:
    # Absent: the second category in photos two (4 pixels, below the bound) and three, the first in photo three.
    assert once(absent_marked, WORDS) == pytest.approx(1 / 3)
    assert once(area_in_error, WORDS) == pytest.approx((0.004 + 0.03 + 0) / 3)
    # Present: two in photo one, of which the second is missed, and one in photo two.
    assert once(present_missed, WORDS) == pytest.approx(2 / 3)
    assert once(present_missed, TAUGHT) == pytest.approx(1 / 3)


def test_presence_is_ranked_and_calibrated() -> None:
    # Present 0.9, 0.35, 0.45 against absent 0.05, 0.1, 0.35: eight pairs in order and one tie.
    assert once(auc, WORDS) == pytest.approx(8.5 / 9)
    # Bins: 0.05 absent; 0.1 absent; 0.35 present and 0.35 absent; 0.45 present; 0.9 present.
    assert once(calibration_error, WORDS) == pytest.approx((0.05 + 0.1 + 0.3 + 0.55 + 0.1) / 6)


def test_without_absent_or_present_pairs_a_metric_is_undefined() -> None:
    first = photos_of(WORDS, [0])
    assert all(np.isnan(once(metric, first)) for metric in (absent_marked, area_in_error, auc))


@pytest.mark.parametrize("metric", [*METRICS.values(), Counts.iou])
def test_a_weighted_photo_counts_as_one_that_is_repeated(metric: Callable[..., np.ndarray]) -> None:
    samples = [[0, 1, 2], [0, 0, 2], [1, 1, 1], [2, 2, 0]]
    weights = np.array([np.bincount(sample, minlength=3) for sample in samples], float)
    plain = [once(metric, photos_of(WORDS, sample)) for sample in samples]
    assert np.allclose(metric(WORDS, weights), plain, equal_nan=True)


def test_what_the_words_find_and_the_taught_do_not_is_missed() -> None:
    assert once(missed_though_named, WORDS, TAUGHT) == 0
    # In the first photo both find the first category, in the second only the taught do.
    assert once(missed_though_named, TAUGHT, WORDS) == pytest.approx(1 / 2)
    assert np.isnan(once(missed_though_named, photos_of(WORDS, [2]), photos_of(TAUGHT, [2])))


class TestIgnored:
    """The second category in the third photo is a crowd, which the data leave open."""

    CROWD = replace(WORDS, shown=np.array([[True, True], [True, False], [False, True]]))

    def test_a_crowd_is_neither_present_nor_absent(self) -> None:
        assert once(absent_marked, self.CROWD) == 0
        assert once(area_in_error, self.CROWD) == pytest.approx((0.004 + 0) / 2)
        assert once(present_missed, self.CROWD) == once(present_missed, WORDS)
        assert once(auc, self.CROWD) == 1
        # As above, without the 0.35 in the bin of the present 0.35.
        assert once(calibration_error, self.CROWD) == pytest.approx((0.05 + 0.1 + 0.65 + 0.55 + 0.1) / 5)

    def test_a_photo_that_is_ignored_as_a_whole_tells_nothing(self) -> None:
        nothing = replace(
            WORDS,
            **{name: getattr(WORDS, name) * [[1], [1], [0]] for name in ("hit", "true", "predicted")},
            pixels=np.array([1000, 1000, 0]),
        )
        for metric in METRICS.values():
            assert once(metric, nothing) == pytest.approx(once(metric, photos_of(WORDS, [0, 1])), nan_ok=True)
