"""Regions hold the masks that they were written from, and what is no region is refused."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import AppError, InvalidInputError
from app.masks import MalformedMaskError
from app.services.labelling.config import Control, Label, categories_of, controls_of
from app.services.labelling.regions import FORMS, mask_of, regions_of
from app.storage.names import CategoryName
from tests.masks.cases import json_values, small_masks

LABEL = Label(CategoryName("cat"), "cat")


def control(kind: str) -> Control:
    return Control("mark", "photo", kind, "image", (LABEL,))


@pytest.mark.parametrize("kind", ["brushlabels", "bitmasklabels"])
@given(mask=small_masks.filter(lambda mask: mask.any() and min(mask.shape) > 1))
def test_pixels_round_trip(kind: str, mask: np.ndarray) -> None:
    (region,) = regions_of(control(kind), LABEL, mask, score=0.5)
    assert np.array_equal(mask_of(region, kind, mask.shape), mask)
    assert region["value"][kind] == ["cat"]


class TestOutlines:
    # Two parts: 12 × 9 pixels, and one of a single pixel, which is less than 2 % of the mask.
    mask = np.zeros((31, 47), dtype=bool)
    mask[5:14, 10:22] = mask[30, 46] = True
    large = mask.copy()
    large[30, 46] = False

    @pytest.mark.parametrize("kind", ["polygonlabels", "rectanglelabels"])
    def test_a_part_that_is_large_enough_is_one_region(self, kind: str) -> None:
        (region,) = regions_of(control(kind), LABEL, self.mask, score=0.5)
        assert np.array_equal(mask_of(region, kind, self.mask.shape), self.large)

    @pytest.mark.parametrize("kind", ["polygonlabels", "rectanglelabels"])
    def test_of_small_parts_alone_there_is_one_at_least(self, kind: str) -> None:
        specks = np.zeros((31, 47), dtype=bool)
        specks[::3, ::3] = True
        assert regions_of(control(kind), LABEL, specks, score=0.5)

    def test_a_box_is_in_percent(self) -> None:
        (region,) = regions_of(control("rectanglelabels"), LABEL, self.large, score=0.5)
        expected = {"x": 1000 / 47, "y": 500 / 31, "width": 1200 / 47, "height": 900 / 31, "rotation": 0}
        for name, number in expected.items():
            assert math.isclose(region["value"][name], number, abs_tol=1e-4)

    def test_a_box_is_turned_clockwise_around_its_first_corner(self) -> None:
        value = {"x": 50, "y": 0, "width": 30, "height": 20, "rotation": 90}
        mask = mask_of({"value": value}, "rectanglelabels", (100, 100))
        expected = np.zeros((100, 100), dtype=bool)
        expected[0:30, 30:50] = True
        assert np.array_equal(mask, expected)


@pytest.mark.parametrize("kind", FORMS)
@given(
    value=st.dictionaries(st.sampled_from(["rle", "points", "x", "y", "width", "height", "imageDataURL"]), json_values)
)
def test_any_json_is_read_or_refused(kind: str, value: dict[str, Any]) -> None:
    with contextlib.suppress(MalformedMaskError, AppError):
        assert mask_of({"value": value}, kind, (3, 5)).shape == (3, 5)


class TestConfig:
    def test_controls_of_photos_are_found_and_others_left_out(self) -> None:
        found = controls_of(
            '<View><Image name="a" value="$one"/><Text name="t" value="$text"/><!-- <Image/> -->'
            '<View><PolygonLabels name="p" toName="a"><Label value="cat"/><Label value=" Cat"/></PolygonLabels></View>'
            '<Labels name="l" toName="t"><Label value="x"/></Labels>'
            '<BrushLabels name="b" toName="t"><Label value="y"/></BrushLabels></View>'
        )
        assert [(one.name, one.photo, one.kind, one.data) for one in found] == [("p", "a", "polygonlabels", "one")]
        assert [name.text for name in categories_of(found)] == ["cat"]

    def test_a_control_inside_another_is_refused(self) -> None:
        """Of 400 of them, each would have all labels."""
        depth = 400
        nested = '<PolygonLabels name="p" toName="a">' * depth + '<Label value="cat"/>' + "</PolygonLabels>" * depth
        with pytest.raises(InvalidInputError, match="'p' of the label config stands inside another"):
            controls_of(f'<View><Image name="a" value="$one"/>{nested}</View>')

    @pytest.mark.parametrize(
        ("data", "address"),
        [
            ({"a.b": "x"}, "x"),
            ({"a": {"b": "x"}}, "x"),
            ({"a": "x"}, None),
            ({"a": {"b": 3}}, None),
            ({"a": {"b": ""}}, None),
            ({}, None),
        ],
    )
    def test_the_address_of_a_photo(self, data: dict[str, Any], address: str | None) -> None:
        assert Control("m", "p", "brushlabels", "a.b", ()).address(data) == address
