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

    def test_an_interval_contains_the_mean_and_repeats(self) -> None:
        gain = self.REPORT.gain
        assert gain == self.REPORT.gain
        assert gain.mean == pytest.approx(once(miou, TAUGHT) - once(miou, WORDS))
        assert gain.low <= gain.mean <= gain.high
        assert gain.low < gain.high

    def test_an_interval_is_that_of_plain_resampling(self) -> None:
        """Words and taught are compared on the same photos, and 95 % of the resamples are inside."""
        plain = []
        for times in np.random.default_rng(0).multinomial(3, [1 / 3] * 3, size=1000):
            sample = np.repeat(np.arange(3), times).tolist()
            words, taught = (once(miou, photos_of(counts, sample)) for counts in (WORDS, TAUGHT))
            plain.append(taught - words)
        gain = self.REPORT.gain
        assert (gain.low, gain.high) == pytest.approx(np.percentile(plain, (2.5, 97.5)).tolist())

    def test_draws_of_the_same_photos_do_not_narrow_the_interval(self) -> None:
        single, repeated = (OpenReport((self.DRAW,) * draws) for draws in (1, 5))
        assert astuple(repeated.gain) == pytest.approx(astuple(single.gain))
        for metric, estimate in single.estimates["taught"].items():
            assert astuple(repeated.estimates["taught"][metric]) == pytest.approx(astuple(estimate))

    def test_a_draw_without_a_photo_takes_the_others_as_often_as_the_draw_that_has_it(self) -> None:
        """The second draw is taught from the third photo; in the others both draws measured the same."""
        without = replace(
            self.DRAW,
            counts={column: photos_of(counts, [0, 1]) for column, counts in self.DRAW.counts.items()},
            photos=self.DRAW.photos[:2],
        )
        # The first category has no pixel in the third photo, so that its IoU is the same without it in every resample.
        alone = OpenReport((self.DRAW,)).changes["cup"]
        both = OpenReport((self.DRAW, without)).changes["cup"]
        assert (both.low, both.high) == pytest.approx((alone.low, alone.high))

    def test_of_what_the_words_find_nothing_is_missed(self) -> None:
        assert self.REPORT.missed_though_named.mean == 0

    def test_changes_by_category(self) -> None:
        changes = self.REPORT.changes
        assert changes["cup"].mean == pytest.approx(180 / 300 - 100 / 300)
        assert changes["bowl"].mean == 0

    def test_a_category_that_is_worse_in_every_sample_is_named(self) -> None:
        counts = {"words": TAUGHT, "taught": replace(WORDS, hit=0 * WORDS.hit)}
        worse = OpenReport((replace(self.DRAW, counts=counts),))
        told = as_open_table(worse)
        assert "50 % of 2: cup" in list(told.columns[-1].cells)[-1]

    def test_a_category_that_is_not_worse_in_every_sample_is_not_named(self) -> None:
        """The first category is lost in the second photo, which some resamples lack."""
        lost = OpenReport((replace(self.DRAW, counts={"words": TAUGHT, "taught": WORDS}),))
        assert lost.changes["cup"].mean < 0
        assert list(as_open_table(lost).columns[-1].cells)[-1] == "0 % of 2"

    def test_a_category_that_no_photo_shows_is_not_counted(self) -> None:
        counts = {column: photos_of(each, [1, 2]) for column, each in self.DRAW.counts.items()}
        report = OpenReport((replace(self.DRAW, counts=counts, photos=self.DRAW.photos[1:]),))
        assert list(report.changes) == ["cup"]
        assert list(as_open_table(report).columns[-1].cells)[-1] == "0 % of 1"

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
