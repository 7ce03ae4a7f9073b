"""Brush run lengths equal Label Studio's, every mask round-trips, and invalid ones are refused.

`brush_vectors.json` was written with `label_studio_sdk.converter.brush` of label-studio-sdk 2.1.2: masks as run lengths
row by row, and what `mask2rle` makes of them; the last case has runs of single values, as `decode_rle` reads them.
"""

from __future__ import annotations

import contextlib
import json
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.masks import MalformedMaskError
from app.masks.brush import brush_to_mask, mask_to_brush
from tests.masks.cases import CORNERED, json_values, small_masks

VECTORS = json.loads(Path(__file__).with_name("brush_vectors.json").read_text())


def mask_of(vector: dict[str, Any]) -> np.ndarray:
    first = vector["runs"]["first"]
    marks = [mark for mark, _ in zip(cycle([first, not first]), vector["runs"]["lengths"], strict=False)]
    return np.repeat(marks, vector["runs"]["lengths"]).reshape(vector["size"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
class TestLabelStudiosOwn:
    def test_it_is_read(self, vector: dict[str, Any]) -> None:
        assert np.array_equal(brush_to_mask(vector["rle"], tuple(vector["size"])), mask_of(vector))

    def test_it_is_written(self, vector: dict[str, Any]) -> None:
        if vector["name"] == "single values":
            pytest.skip("the converter writes no such runs")
        written = mask_to_brush(mask_of(vector))
        assert written == vector["rle"][: len(written)]
        assert vector["rle"][len(written) :] in ([], [0])  # the converter adds a byte where none is needed


class TestRoundTrip:
    @given(small_masks)
    def test_of_small_masks(self, mask: np.ndarray) -> None:
        assert np.array_equal(brush_to_mask(mask_to_brush(mask), mask.shape), mask)

    @given(st.lists(st.integers(1, 200_000), min_size=1, max_size=7))
    def test_of_long_runs(self, lengths: list[int]) -> None:
        mask = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)[None]
        assert np.array_equal(brush_to_mask(mask_to_brush(mask), mask.shape), mask)

    def test_it_is_ready_for_json(self) -> None:
        assert json.loads(json.dumps(mask_to_brush(CORNERED))) == mask_to_brush(CORNERED)


class TestRefusals:
    @given(json_values | st.lists(st.integers(0, 255), max_size=40))
    def test_any_json_is_read_or_refused(self, value: object) -> None:
        with pytest.raises(MalformedMaskError):
            brush_to_mask(value, (3, 5))

    @given(st.data())
    def test_so_is_any_change_of_the_bytes(self, data: st.DataObject) -> None:
        rle = mask_to_brush(CORNERED)
        rle[data.draw(st.integers(0, len(rle) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(rle)))
        for damaged in (rle, rle[:cut]):
            with contextlib.suppress(MalformedMaskError):
                assert brush_to_mask(damaged, CORNERED.shape).shape == CORNERED.shape

    def test_of_another_size(self) -> None:
        with pytest.raises(MalformedMaskError, match="5 × 3"):
            brush_to_mask(mask_to_brush(CORNERED[:2]), (5, 3))
