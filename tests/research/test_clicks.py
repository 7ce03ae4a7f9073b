"""Protocol `click`: objects, simulated clicks and their scores."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from app.errors import InvalidInputError
from app.method.backbone import Backbone
from app.method.clicks import Click
from app.method.refinement import Refinement, crf
from app.research import clicks
from app.research.clicks import CLICKS, Thing, clicked, innermost, iou, measure, next_click, sample, things_of
from app.research.dataset import Dataset, LabelledPhoto
from app.research.report import as_click_json, as_click_table
from app.research.subject import Options, Subject

HW = (29, 37)


def area(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[rows, columns] = True
    return mask


def thing(mask: np.ndarray, ignored: np.ndarray | None = None) -> Thing:
    photo = LabelledPhoto("1", Path("1.jpg"), lambda: mask.astype(np.uint8), (1,))
    return Thing(photo, 1, mask, np.zeros(HW, bool) if ignored is None else ignored)


def test_the_innermost_pixel_is_the_middle() -> None:
    assert innermost(area(slice(3, 8), slice(11, 30)))[0][1] == 5.5
    assert innermost(area(slice(3, 8), slice(11, 16))) == ((13.5, 5.5), 3)


def test_the_edge_of_the_photo_is_an_edge() -> None:
    assert innermost(np.ones((5, 7), bool))[1] == 3


def test_the_distance_is_euclidean() -> None:
    plus = area(slice(2, 9), slice(2, 9))
    for row in (2, 8):
        for column in (2, 8):
            plus[row, column] = False
    assert innermost(plus)[1] == 4


def test_each_large_part_of_a_mask_is_an_object() -> None:
    labels = (area(slice(2, 9), slice(2, 9)) | area(slice(15, 20), slice(20, 30))).astype(np.uint8)
    labels[27, 30] = 1  # too small
    photo = LabelledPhoto("1", Path("1.jpg"), lambda: labels, (1,))
    assert sorted(each.mask.sum() for each in things_of(photo)) == [49, 50]


def test_an_island_in_a_ring_is_an_object_of_its_own() -> None:
    island = area(slice(10, 15), slice(10, 15))
    ring = area(slice(2, 23), slice(2, 23)) & ~area(slice(6, 19), slice(6, 19))
    photo = LabelledPhoto("1", Path("1.jpg"), lambda: (ring | island).astype(np.uint8), (1,))
    assert sorted(each.mask.sum() for each in things_of(photo)) == [25, 21**2 - 13**2]


def test_of_objects_that_are_not_drawn_no_mask_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a photo is looked at, no more is in memory than the two that were drawn and that of the photo before."""
    made: list[weakref.ref[np.ndarray]] = []

    def noted(photo: LabelledPhoto) -> list[Thing]:
        assert sum(mask() is not None for mask in made) <= 3
        things = things_of(photo)
        made.extend(weakref.ref(each.mask) for each in things)
        return things

    monkeypatch.setattr(clicks, "things_of", noted)
    labels = area(slice(2, 20), slice(2, 20)).astype(np.uint8)
    photos = tuple(LabelledPhoto(str(number), Path("x"), lambda: labels, (1,)) for number in range(20))
    assert len(sample(Dataset(("background", "cup"), photos), count=2)) == 2


def test_the_next_click_is_in_the_largest_error() -> None:
    true = area(slice(2, 21), slice(2, 21))
    assert next_click(thing(true), true) is None
    hollow = true & ~area(slice(5, 14), slice(5, 14))
    assert next_click(thing(true), hollow) == Click(9.5, 9.5, inside=True)
    wider = hollow | area(slice(5, 18), slice(21, 34))
    assert next_click(thing(true), wider) == Click(27.5, 11.5, inside=False)
    ignored = next_click(thing(true, ignored=wider & ~true), wider)
    assert ignored == Click(9.5, 9.5, inside=True)


def test_ignored_pixels_count_nothing() -> None:
    true, wider = area(slice(0, 10), slice(0, 10)), area(slice(0, 10), slice(0, 20))
    assert iou(thing(true), wider) == 0.5
    assert iou(thing(true, ignored=area(slice(0, 10), slice(15, 20))), wider) == pytest.approx(100 / 150)


def test_scores_are_told_by_the_number_of_clicks() -> None:
    true = area(slice(2, 20), slice(2, 20))
    asked: list[int] = []

    def propose(_: LabelledPhoto, given: list[Click]) -> np.ndarray:
        asked.append(len(given))
        return true if len(given) > 2 else area(slice(2, 20), slice(2, 11))

    scores = clicked([thing(true)], propose, lambda *_: None)
    assert scores == {1: 0.5, 3: 1, 5: 1}
    assert tuple(scores) == CLICKS
    assert asked == [1, 2, 3]


def test_a_measurement_on_the_sample_photos(tiny: Backbone, dataset: Dataset) -> None:
    report = measure(Subject(tiny, dataset, Options(protocol="click"), lambda *_: None))
    assert report.photos == 4
    assert report.objects >= 4
    assert list(report.ious) == ["clicks", "clicks + CRF", "patches and colours"]
    # The random model has no mask decoder.
    assert report.ious["clicks"] == report.ious["patches and colours"]
    assert all(0 <= value <= 1 for column in report.ious.values() for value in column.values())
    table = as_click_table(report)
    assert [column.header for column in table.columns] == ["clicks", *report.ious]
    assert table.row_count == len(CLICKS)
    assert as_click_json(report)["objects"] == report.objects


def test_a_mask_of_another_size_than_its_photo_is_named(tiny: Backbone, tmp_path: Path) -> None:
    Image.new("RGB", (41, 29)).save(tmp_path / "cat.png")
    cat = LabelledPhoto("1", tmp_path / "cat.png", lambda: area(slice(2, 9), slice(2, 9)).astype(np.uint8), (1,))
    subject = Subject(tiny, Dataset(("background", "cat"), (cat,)), Options(protocol="click"), lambda *_: None)
    with pytest.raises(InvalidInputError, match=r"cat\.png has 37 × 29 pixels, the photo 41 × 29"):
        measure(subject)


def test_each_column_proposes_by_its_own_means(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []

    def propose(*_: object, refinement: Refinement, use_mask_decoder: bool) -> Tensor:
        asked.append((use_mask_decoder, refinement is crf))
        return torch.zeros(HW)

    monkeypatch.setattr(clicks, "probability_of", propose)
    Image.new("RGB", HW[::-1]).save(tmp_path / "1.png")
    photo = LabelledPhoto("1", tmp_path / "1.png", lambda: area(slice(2, 9), slice(2, 9)).astype(np.uint8), (1,))
    subject = Subject(tiny, Dataset(("background", "cat"), (photo,)), Options(protocol="click"), lambda *_: None)
    columns = clicks.proposals(subject)
    for each in columns.values():
        each(photo, [Click(3.0, 4.0)])
    assert list(columns) == ["clicks", "clicks + CRF", "patches and colours"]
    assert asked == [(True, False), (True, True), (False, False)]
