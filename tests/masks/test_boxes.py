"""Boxes mark the pixels whose centre they contain, as in COCO; invalid ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from app.masks.boxes import bbox_of, box_to_mask
from app.masks.rle import mask_to_rle
from tests.masks.cases import coco_decoded, small_masks


class TestBoxes:
    def test_a_whole_box_comes_back(self) -> None:
        mask = box_to_mask([3, 2, 7, 3], (7, 11))
        assert mask.sum() == 21
        assert bbox_of(mask) == [3, 2, 7, 3]

    def test_pixels_count_whose_centre_lies_inside(self) -> None:
        assert bbox_of(box_to_mask([1.4, 1.6, 2, 2], (7, 11))) == [1, 2, 2, 2]
        assert bbox_of(box_to_mask([1.5, 1.5, 2, 2], (7, 11))) == [1, 1, 2, 2]
        assert not box_to_mask([1.6, 1.6, 0.5, 0.5], (7, 11)).any()

    def test_it_is_cut_to_the_image(self) -> None:
        assert bbox_of(box_to_mask([-3, 5, 7, 7], (7, 11))) == [0, 5, 4, 2]
        assert box_to_mask([-1e308, -5, 1.7e308, 99], (7, 11)).all()
        assert not box_to_mask([1e308, 0, 1.7e308, 7], (7, 11)).any()

    def test_the_empty_mask_has_an_empty_box(self) -> None:
        assert bbox_of(np.zeros((3, 5), dtype=bool)) == [0, 0, 0, 0]

    @given(small_masks.filter(np.any))
    def test_bbox_is_that_of_pycocotools(self, mask: np.ndarray) -> None:
        assert bbox_of(mask) == coco_mask.toBbox(dict(mask_to_rle(mask))).tolist()

    @given(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5), st.integers(1, 7)))
    def test_whole_boxes_are_what_pycocotools_draws(self, box: tuple[int, int, int, int]) -> None:
        expected = coco_decoded(coco_mask.frPyObjects(np.array([box], dtype=float), 13, 11)[0])
        assert np.array_equal(box_to_mask(box, (13, 11)), expected)

    @pytest.mark.parametrize(
        "box", [None, [], [1, 2, 3], "1234", [1, 2, 3, "4"], [1, 2, 0, 4], [1, 2, 3, -4], [1e999] * 4]
    )
    def test_anything_else_is_refused(self, box: object) -> None:
        with pytest.raises(ValueError, match="expected"):
            box_to_mask(box, (7, 11))
