"""Protocol `open`: intervals over photos, and a run on the sample photos."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from app.errors import InvalidInputError
from app.method.tuning import TUNED
from app.research.dataset import Dataset, LabelledPhoto
from app.research.open_metrics import Counts, miou
from app.research.open_set import Draw, OpenReport, open_set, sights
from app.research.report import as_open_json, as_open_picture, as_open_table
from app.research.subject import Options, Subject
from tests.research.conftest import read_photos, write_photos
from tests.research.counts import TAUGHT, WORDS, once, photos_of

OPTIONS = Options(crf=False, recipe=replace(TUNED, steps=2))


def photos(*ids: str) -> tuple[LabelledPhoto, ...]:
    """Photos of these ids, which nobody reads."""
    return tuple(LabelledPhoto(id, Path(id), lambda: np.zeros((1, 1), np.uint8), ()) for id in ids)


def quiet(step: int, steps: int, activity: str) -> None:
    """No bar."""


class TestReport:
    DRAW = Draw(("cup", "bowl"), {"words": WORDS, "taught": TAUGHT}, photos("1", "2", "3"))
    REPORT = OpenReport((DRAW,) * 2)
    # Three times the same photos: six show cups, three bowls.
    NINE = Draw(
        DRAW.categories,
        {column: photos_of(counts, [0, 1, 2] * 3) for column, counts in DRAW.counts.items()},
        photos(*"123456789"),
    )

    def test_an_interval_contains_the_mean_and_repeats(self) -> None:
        gain = self.REPORT.gain
        assert gain == self.REPORT.gain
        assert gain.mean == pytest.approx(once(miou, TAUGHT) - once(miou, WORDS))
        assert gain.low <= gain.mean <= gain.high
        assert gain.low < gain.high

    def test_an_interval_holds_95_percent_of_the_resamples(self) -> None:
        """Words and taught are compared under the same weights of the photos."""
        weights = np.random.default_rng(0).dirichlet(np.ones(3), size=1000)

        def iou(hit: list[int], true: list[int], predicted: list[int]) -> np.ndarray:
            return weights @ hit / (weights @ true + weights @ predicted - weights @ hit)

        background = iou([500, 890, 970], [600, 900, 1000], [800, 916, 970])
        background -= iou([500, 900, 970], [600, 900, 1000], [800, 996, 970])
        cup = iou([100, 80, 0], [200, 100, 0], [100, 80, 0]) - iou([100, 0, 0], [200, 100, 0], [100, 0, 0])
        gain = self.REPORT.gain  # that of bowls is 0
        expected = np.percentile((background + cup) / 3, (2.5, 97.5))
        assert (gain.low, gain.high) == pytest.approx(expected.tolist())

    def test_the_mean_of_the_resamples_is_the_measurement_where_categories_are_rare(self) -> None:
        """Each of 12 categories is in two of 24 photos, and found in neither; a common one is found in all.

        Resamples without the photos of a rare category would have a higher mean over the others.
        """
        photo, rare = np.arange(24), 12
        true = np.zeros((24, 2 + rare), int)
        true[:, :2], true[photo, 2 + photo // 2] = 400, 200
        hit = np.where(np.arange(2 + rare) < 2, true, 0)
        shown = true[:, 1:] > 0
        counts = Counts(hit, true, hit, true.sum(axis=1), np.where(shown, 0.9, 0.1), shown)
        names = tuple(f"category {number}" for number in range(1 + rare))
        draw = Draw(names, {"words": counts, "taught": counts}, photos(*map(str, photo)))
        miou = OpenReport((draw,)).estimates["words"]["mIoU"]
        assert astuple(miou) == pytest.approx((2 / 14, 2 / 14, 2 / 14))

    def test_draws_of_the_same_photos_do_not_narrow_the_interval(self) -> None:
        single, repeated = (OpenReport((self.DRAW,) * draws) for draws in (1, 5))
        assert astuple(repeated.gain) == pytest.approx(astuple(single.gain))
        for metric, estimate in single.estimates["taught"].items():
            assert astuple(repeated.estimates["taught"][metric]) == pytest.approx(astuple(estimate))

    def test_a_draw_without_a_photo_takes_the_others_as_often_as_the_draw_that_has_it(self) -> None:
        """The second draw is taught from every third photo; in the others both draws measured the same."""
        without = replace(
            self.NINE,
            counts={column: photos_of(counts, [0, 1] * 3) for column, counts in self.DRAW.counts.items()},
            photos=[photo for photo in self.NINE.photos if photo.id not in ("3", "6", "9")],
        )
        # The first category has no pixel in these photos, so that its IoU is the same without them in every resample.
        alone = OpenReport((self.NINE,)).changes["cup"]
        both = OpenReport((self.NINE, without)).changes["cup"]
        assert (both.low, both.high) == pytest.approx((alone.low, alone.high))

    def test_of_what_the_words_find_nothing_is_missed(self) -> None:
        assert self.REPORT.missed_though_named.mean == 0

    def test_changes_by_category(self) -> None:
        changes = OpenReport((self.NINE,)).changes
        assert changes["cup"].mean == pytest.approx(180 / 300 - 100 / 300)
        assert changes["bowl"].mean == 0

    def test_a_category_that_is_worse_in_every_sample_is_named(self) -> None:
        counts = {"words": self.NINE.counts["taught"], "taught": self.NINE.counts["words"]}
        worse = OpenReport((replace(self.NINE, counts=counts),))
        assert worse.worse == ["cup"]
        assert list(as_open_table(worse).columns[-1].cells)[-1] == "50 % of 2: cup"

    def test_a_loss_of_a_hair_is_not_worse(self) -> None:
        """Taught, one pixel less is found in every third photo."""
        words, hit = self.NINE.counts["taught"], self.NINE.counts["taught"].hit.copy()
        hit[::3, 1] -= 1
        lost = OpenReport((replace(self.NINE, counts={"words": words, "taught": replace(words, hit=hit)}),))
        assert lost.changes["cup"].high < 0
        assert lost.worse == []

    def test_a_category_in_fewer_than_three_photos_is_not_compared(self) -> None:
        """Two photos show cups, one shows bowls: no interval over so few says anything."""
        report = OpenReport((replace(self.DRAW, counts={"words": TAUGHT, "taught": WORDS}),))
        assert report.changes == {}
        assert list(as_open_table(report).columns[-1].cells)[-1] == "–"

    def test_json_has_every_estimate(self) -> None:
        written = as_open_json(self.REPORT)
        assert written["columns"]["taught"]["mIoU"]["mean"] == pytest.approx(once(miou, TAUGHT))
        assert written["draws"] == [("cup", "bowl")] * 2

    def test_what_is_undefined_is_null_in_json_and_a_dash_in_the_table(self) -> None:
        """Both photos show the one category: none is absent."""
        cat = Counts(
            *(getattr(WORDS, name)[:2, :2] for name in ("hit", "true", "predicted")),
            WORDS.pixels[:2],
            *(getattr(WORDS, name)[:2, :1] for name in ("presence", "shown")),
        )
        report = OpenReport((Draw(("cup",), {"words": cat, "taught": cat}, photos("1", "2")),))
        written = json.loads(json.dumps(as_open_json(report), allow_nan=False))
        assert written["columns"]["words"]["presence AUC"] == {"mean": None, "low": None, "high": None}
        assert list(as_open_table(report).columns[1].cells)[4] == "–"


@pytest.fixture(scope="module", params=[False, True], ids=["together", "single"])
def measured(request, tmp_path_factory, embedded) -> tuple[Subject, Draw]:
    """A run on the sample photos, whose categories are requested together or each alone."""
    options = replace(OPTIONS, protocol="open", categories=None, single=request.param)
    dataset = read_photos(write_photos(tmp_path_factory.mktemp("photos")))
    subject = Subject(embedded, dataset, options, quiet)
    (draw,) = open_set(subject).draws
    return subject, draw


def test_the_sample_photos(measured: tuple[Subject, Draw]) -> None:
    """Person and cat are taught from a photo each; the other two photos show one of them."""
    subject, draw = measured
    assert draw.categories == ("person", "cat")
    for counts in draw.counts.values():
        assert counts.present.tolist() in ([[True, False], [False, True]], [[False, True], [True, False]])
        assert once(Counts.iou, counts)[1:].min() > 0.5
        assert (counts.predicted.sum(axis=1) <= 2 * counts.pixels).all()
        assert ((counts.presence >= 0) & (counts.presence <= 1)).all()
    assert np.isnan(once(Counts.iou, draw.counts["words"])[0]) == subject.options.single, (
        "requests for one category have no common background"
    )


@pytest.mark.parametrize("single", [False, True])
def test_a_crowd_is_not_absent(dataset: Dataset, embedded, single: bool) -> None:
    """A photo that shows a crowd of cats, in ignored pixels, is no photo without cats."""
    photos = [replace(photo, crowds=(2,) if photo.classes == (1,) else ()) for photo in dataset.photos]
    options = replace(OPTIONS, protocol="open", categories=None, single=single)
    (draw,) = open_set(Subject(embedded, Dataset(dataset.classes, tuple(photos)), options, quiet)).draws
    people = [photo.classes == (1,) for photo in draw.photos]
    assert draw.counts["words"].present[people].tolist() == [[True, False]]
    assert draw.counts["words"].absent[people].tolist() == [[False, False]]


def test_as_many_categories_as_asked_for_are_drawn(dataset: Dataset, embedded) -> None:
    options = replace(OPTIONS, protocol="open", categories=1, seeds=2)
    report = open_set(Subject(embedded, dataset, options, quiet))
    assert [len(draw.categories) for draw in report.draws] == [1, 1]


def test_a_set_without_a_second_photo_of_any_category_is_refused(dataset: Dataset, embedded) -> None:
    alone = Dataset(dataset.classes, dataset.photos[:1])
    with pytest.raises(InvalidInputError, match="No category has a photo to be taught from"):
        open_set(Subject(embedded, alone, replace(OPTIONS, protocol="open"), quiet))


def test_categories_are_drawn_in_photos_that_show_them_and_in_photos_that_do_not(
    measured: tuple[Subject, Draw],
) -> None:
    drawn = sights(*measured, 10)
    assert list(drawn) == ["person", "cat"]
    for example, shown, absent in drawn.values():
        assert example.title == "taught"
        assert shown.title.startswith("shown, presence ")
        assert absent.title.startswith("absent, presence ")
        assert shown.mask.mean() > 0.1
        assert shown.mask.shape == shown.photo.shape[:2]
    assert as_open_picture(drawn, height=60).height == 2 * 60
