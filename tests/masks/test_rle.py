"""Run lengths equal COCO's, every mask round-trips, and invalid ones are refused."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from app.masks import MalformedMaskError
from app.masks import rle as module
from app.masks.rle import decompressed, mask_to_rle, rle_to_mask
from tests.masks.cases import CORNERED, coco_decoded, json_values, small_masks


def plainly_decompressed(counts: str) -> list[int] | None:
    """The runs of `rleFrString` in maskApi.c, one character after the other; None for what is no such string."""
    runs: list[int] = []
    value = length = 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            return None
        value |= (digit & 0x1F) << (5 * length)
        length += 1
        if digit & 0x20:
            continue
        if length > 7:
            return None
        value -= 1 << (5 * length) if digit & 0x10 else 0
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = length = 0
    return runs if runs and not length else None


def peak_bytes(read: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestRunLengths:
    def test_counts_go_down_the_columns(self) -> None:
        assert mask_to_rle(CORNERED) == {"size": [3, 5], "counts": "735"}

    def test_both_spellings_are_read(self) -> None:
        for counts in ("735", [7, 3, 5], [7, 1, 0, 2, 5, 0], [7.0, 3.0, 5.0]):
            assert np.array_equal(rle_to_mask({"size": [3, 5], "counts": counts}), CORNERED)

    def test_a_size_of_whole_numbers_with_a_point(self) -> None:
        assert np.array_equal(rle_to_mask({"size": [3.0, 5.0], "counts": "735"}), CORNERED)

    def test_it_is_ready_for_json(self) -> None:
        assert json.loads(json.dumps(mask_to_rle(CORNERED)))["size"] == [3, 5]

    @given(small_masks)
    def test_round_trip_and_pycocotools_agree(self, mask: np.ndarray) -> None:
        rle = mask_to_rle(mask)
        assert np.array_equal(rle_to_mask(rle), mask)
        assert np.array_equal(coco_decoded(dict(rle)), mask)

    @pytest.mark.parametrize("runs", [[0, 1_000_003], [1_000_003], [500_000, 3, 500_000], [31, 32, 999_940]])
    def test_long_runs_need_several_characters(self, runs: list[int]) -> None:
        rle = coco_mask.frPyObjects({"size": [1_000_003, 1], "counts": runs}, 1_000_003, 1)
        mask = rle_to_mask({"size": [1_000_003, 1], "counts": rle["counts"].decode()})
        assert np.array_equal(mask, rle_to_mask({"size": [1_000_003, 1], "counts": runs}))
        assert mask_to_rle(mask)["counts"].encode() == rle["counts"]

    @pytest.mark.parametrize(
        "rle",
        [
            None,
            [],
            {},
            {"size": [3, 5]},
            {"counts": "735"},
            {"size": [3], "counts": "735"},
            {"size": [3, -5], "counts": "735"},
            {"size": [0, 5], "counts": []},
            {"size": [3.5, 5.0], "counts": "735"},
            {"size": [float("inf"), 5], "counts": "735"},
            {"size": [True, 15], "counts": [15]},
            {"size": [3, 5], "counts": None},
            {"size": [3, 5], "counts": b"735"},
            {"size": [3, 5], "counts": ""},
            {"size": [3, 5], "counts": []},
            {"size": [3, 5], "counts": "73"},  # one run short
            {"size": [3, 5], "counts": "736"},  # one pixel over
            {"size": [3, 5], "counts": "73\u00e9"},
            {"size": [3, 5], "counts": "73\ud800"},
            {"size": [3, 5], "counts": "73p"},  # the first character above the alphabet
            {"size": [3, 5], "counts": "73U"},  # says that it goes on, and ends
            {"size": [3, 5], "counts": "o" * 4000 + "0"},  # one number of 4,000 digits
            {"size": [3, 5], "counts": "O735"},  # a negative run
            {"size": [3, 5], "counts": [7, 3]},
            {"size": [3, 5], "counts": [7, 3, 5.5]},
            {"size": [3, 5], "counts": [7, True, 7]},
            {"size": [3, 5], "counts": [20, -5]},
            {"size": [3, 5], "counts": [2**64 + 15]},
            {"size": [10**9, 10**9], "counts": [15]},
            {"size": [10**400, 1], "counts": "735"},
        ],
    )
    def test_anything_else_is_refused_before_memory_is_touched(self, rle: object) -> None:
        with pytest.raises(ValueError, match="expected"):
            rle_to_mask(rle)

    @given(st.text(alphabet=[chr(code) for code in range(46, 114)], max_size=12))
    def test_a_string_of_its_alphabet_is_read_as_pycocotools_would_or_refused(self, counts: str) -> None:
        try:
            mask = rle_to_mask({"size": [3, 5], "counts": counts})
        except ValueError:
            return
        assert np.array_equal(mask, coco_decoded({"size": [3, 5], "counts": counts}))

    @given(st.text(alphabet=[chr(code) for code in range(47, 113)], max_size=40), st.integers(7, 20))
    def test_a_string_is_decompressed_as_character_by_character(self, counts: str, block: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_CHARACTERS_AT_ONCE", block)
            runs = decompressed(counts)
        assert (None if runs is None else runs.tolist()) == plainly_decompressed(counts)

    def test_a_long_string_is_decompressed_as_character_by_character(self) -> None:
        pixels = np.random.default_rng(5).integers(0, 40, (1009, 503)) % 7 > 3
        pixels[100:900, 100:200] = True  # runs of several characters among those of one
        counts = mask_to_rle(pixels)["counts"]
        assert len(counts) > 3 * module._CHARACTERS_AT_ONCE
        assert decompressed(counts).tolist() == plainly_decompressed(counts)

    @pytest.mark.parametrize("runs", [[1] * 15, [0] + [1] * 15, [0] + [1] * 15 + [0], [0, 15, 0], [15]])
    def test_a_mask_of_as_many_runs_as_it_may_have(self, runs: list[int]) -> None:
        pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(5, 3).T
        compressed = coco_mask.frPyObjects({"size": [3, 5], "counts": runs}, 3, 5)["counts"].decode()
        for counts in (runs, compressed):
            assert np.array_equal(rle_to_mask({"size": [3, 5], "counts": counts}), pixels)

    @pytest.mark.parametrize("counts", ["0" * 1_000_000, "PPPPPP0" * 100_000, "o" * 1_000_000, [0] * 1_000_000])
    def test_more_runs_than_pixels_are_refused_before_they_are_expanded(self, counts: str | list[int]) -> None:
        rle = {"size": [10, 10], "counts": counts}
        with pytest.raises(MalformedMaskError, match=r"at most 102 run lengths of 10 × 10|expected .counts. to be"):
            rle_to_mask(rle)
        assert peak_bytes(lambda: rle_to_mask(rle)) < 3 * len(counts) + 2_000_000

    @pytest.mark.parametrize("size", [[1000, 1001], [100_000, 100_000]], ids=["of the mask", "of a larger one"])
    def test_the_memory_of_a_string_is_known(self, size: list[int]) -> None:
        """A million runs, as long as the string: those that fit become a mask, and the others are too short."""
        counts = "1" * 3 + "0" * 1_000_997
        peak = peak_bytes(lambda: rle_to_mask({"size": size, "counts": counts}))
        assert peak < 12 * len(counts) + 2 * 1000 * 1001 + 1_000_000

    @given(json_values)
    def test_any_json_is_read_or_refused(self, value: object) -> None:
        for reader in (rle_to_mask, lambda item: rle_to_mask({"size": [3, 5], "counts": item})):
            with contextlib.suppress(ValueError):
                assert reader(value).dtype == bool
