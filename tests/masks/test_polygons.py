"""Polygons trace a mask exactly except for its holes and are drawn as in COCO; invalid ones are refused."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from app.masks.polygons import mask_to_polygons, polygons_to_mask
from tests.masks.cases import CORNERED, coco_decoded, json_values, small_masks


def drawn_by_coco(ring: list[float], image_hw: tuple[int, int]) -> np.ndarray:
    return coco_decoded(coco_mask.frPyObjects([ring], *image_hw)[0])


def with_holes_filled(mask: np.ndarray) -> np.ndarray:
    """Floods the background from outside, over corners too; what stays dry is mask or hole."""
    free = ~np.pad(mask, 1)
    wet = np.pad(np.zeros_like(mask), 1, constant_values=True)
    while True:
        padded = np.pad(wet, 1)
        height, width = wet.shape
        grown = free & np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
        if np.array_equal(grown, wet):
            return ~wet[1:-1, 1:-1]
        wet = grown


class TestPolygons:
    def test_a_box_is_its_four_corners_clockwise(self) -> None:
        mask = np.zeros((7, 11), dtype=bool)
        mask[2:5, 3:10] = True
        assert mask_to_polygons(mask) == [[3.0, 2.0, 10.0, 2.0, 10.0, 5.0, 3.0, 5.0]]

    def test_pixels_that_touch_at_a_corner_are_two_rings(self) -> None:
        assert mask_to_polygons(CORNERED) == [[3, 0, 4, 0, 4, 1, 3, 1], [2, 1, 3, 1, 3, 3, 2, 3]]

    def test_a_hole_comes_out_filled_and_an_island_in_it_keeps_its_ring(self) -> None:
        mask = np.ones((7, 7), dtype=bool)
        mask[1:6, 1:6] = False
        mask[3, 3] = True
        rings = mask_to_polygons(mask)
        assert rings == [[0, 0, 7, 0, 7, 7, 0, 7], [3, 3, 4, 3, 4, 4, 3, 4]]
        assert polygons_to_mask(rings, (7, 7)).all()

    def test_the_empty_mask_has_no_rings(self) -> None:
        assert mask_to_polygons(np.zeros((3, 5), dtype=bool)) == []

    @settings(max_examples=300)
    @given(small_masks.filter(np.any))
    def test_round_trip_is_exact_but_for_holes(self, mask: np.ndarray) -> None:
        rings = mask_to_polygons(mask)
        assert np.array_equal(polygons_to_mask(rings, mask.shape), with_holes_filled(mask))

    def test_a_disc_in_a_large_photo_comes_back(self) -> None:
        y, x = np.mgrid[:1009, :1511]
        mask = (y - 500) ** 2 + (x - 700) ** 2 < 400**2
        rings = mask_to_polygons(mask)
        assert len(rings) == 1
        assert np.array_equal(polygons_to_mask(rings, mask.shape), mask)

    def test_polygons_are_united(self) -> None:
        left, right = [0, 0, 4, 0, 4, 3, 0, 3], [2, 1, 7, 1, 7, 5, 2, 5]
        mask = polygons_to_mask([left, right], (5, 7))
        assert mask.sum() == 4 * 3 + 5 * 4 - 2 * 2

    def test_a_ring_that_crosses_itself_is_even_odd(self) -> None:
        twice = [0, 0, 5, 0, 5, 5, 0, 5] * 2
        assert not polygons_to_mask([twice], (7, 7)).any()

    @example([(3.0, 0.0), (3.25, 0.0), (5.75, 9.25)])  # a side's middle lies exactly between two pixels
    @given(st.lists(st.tuples(st.floats(0, 11), st.floats(0, 13)), min_size=3, max_size=9))
    def test_inside_the_image_it_is_what_pycocotools_draws(self, corners: list[tuple[float, float]]) -> None:
        ring = [value for corner in corners for value in corner]
        assert np.array_equal(polygons_to_mask([ring], (13, 11)), drawn_by_coco(ring, (13, 11)))

    def test_what_overhangs_is_cut_off(self) -> None:
        ring = [-4, -3, 5, -3, 5, 4, -4, 4]
        expected = np.zeros((7, 11), dtype=bool)
        expected[:4, :5] = True
        assert np.array_equal(polygons_to_mask([ring], (7, 11)), expected)

    def test_coordinates_far_out_cost_nothing(self) -> None:
        # The half-plane above the diagonal, with corners at the edge of what a float can hold.
        mask = polygons_to_mask([[-1e300, -1e300, 1e300, 1e300, 1e300, -1e300]], (7, 7))
        assert np.array_equal(np.triu(mask, 1), np.triu(np.ones((7, 7), dtype=bool), 1))
        assert not np.tril(mask, -1).any()
        assert not polygons_to_mask([[1e300, 0, 1e301, 0, 1e300, 5]], (7, 7)).any()

    def test_outlines_without_end_are_refused(self) -> None:
        zigzag = [0, 0, 5003, 5003] * 500
        with pytest.raises(ValueError, match="outlines of at most 2000000 pixels in total, got"):
            polygons_to_mask([zigzag], (5003, 5003))

    def test_more_rings_or_corners_than_anybody_draws_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at most 10000 polygons, got 10001: send run lengths"):
            polygons_to_mask([[0, 0, 1, 0, 1, 1]] * 10_001, (7, 11))
        with pytest.raises(ValueError, match="at most 1000000 coordinates, got 1000002: send run lengths"):
            polygons_to_mask([[0, 0, 1, 0, 1, 1] * 166_667], (7, 11))

    @pytest.mark.parametrize("ring", [[-3, -3, -1, -3, -1, 9], [12, 0, 15, 0, 15, 5], [0, 8, 5, 8, 5, 10]])
    def test_a_ring_outside_the_image_marks_nothing(self, ring: list[int]) -> None:
        assert not polygons_to_mask([ring], (7, 11)).any()

    @pytest.mark.parametrize(
        "polygons",
        [
            None,
            [],
            {},
            "polygon",
            [[]],
            [0, 0, 5, 0, 5, 5],
            [[0, 0, 5, 5]],  # two corners; pycocotools takes it for a box
            [[0, 0, 5, 0, 5, 5, 3]],
            [[0, 0, 5, 0, 5, None]],
            [[0, 0, 5, 0, 5, "5"]],
            [[0, 0, 5, 0, 5, True]],
            [[0, 0, 5, 0, 5, float("nan")]],
            [[0, 0, 5, 0, 5, float("inf")]],
            [[0, 0, 5, 0, 5, 10**400]],
            [[[0, 0], [5, 0], [5, 5], [1, 1], [2, 2], [3, 3]]],
        ],
    )
    def test_anything_else_is_refused(self, polygons: object) -> None:
        with pytest.raises(ValueError, match="expected"):
            polygons_to_mask(polygons, (7, 11))

    @given(json_values | st.lists(st.lists(st.floats() | st.integers(), min_size=6, max_size=8)))
    def test_any_json_is_read_or_refused(self, value: object) -> None:
        with contextlib.suppress(ValueError):
            assert polygons_to_mask(value, (7, 11)).shape == (7, 11)
