"""Connected parts of a mask, against a flood fill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.masks.boxes import bbox_of
from app.masks.parts import parts_of
from app.masks.rle import mask_to_rle


def by_flood_fill(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Pixels of each 4-connected part, in the order of their first pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = []
    for start in sorted(left):
        if start not in left:
            continue
        part, waiting = set(), [start]
        while waiting:
            y, x = waiting.pop()
            if (y, x) in left:
                left.remove((y, x))
                part.add((y, x))
                waiting += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        parts.append(part)
    return parts


def pixels(part: np.ndarray) -> set[tuple[int, int]]:
    return {(int(y), int(x)) for y, x in np.argwhere(part)}


@given(arrays(bool, st.tuples(st.integers(1, 13), st.integers(1, 17))))
def test_the_parts_are_those_of_a_flood_fill(mask: np.ndarray) -> None:
    parts = parts_of(mask)
    found = [pixels(part.on(mask.shape)) for part in parts]
    for part in parts:
        whole = part.on(mask.shape)
        assert part.rle(mask.shape) == mask_to_rle(whole)
        assert (part.area, part.bbox) == (whole.sum(), bbox_of(whole))
    assert sorted(map(sorted, found)) == sorted(map(sorted, by_flood_fill(mask)))
    assert [min(y for y, _ in part) for part in found] == sorted(min(y for y, _ in part) for part in found)


def test_an_island_in_a_ring_that_is_in_a_ring() -> None:
    """Frames of 25 to 4 pixels' side, one in the other: by hand 96, 32 and 16 pixels."""
    mask = np.zeros((31, 29), bool)
    for inset in (0, 4, 8):
        mask[1 + inset : 26 - inset, 2 + inset : 27 - inset] = True
        mask[2 + inset : 25 - inset, 3 + inset : 26 - inset] = False
    mask[11:15, 12:16] = True
    assert sorted(part.area for part in parts_of(mask)) == [16, 32, 64, 96]


@pytest.mark.parametrize(("least", "areas"), [(0.0, [1, 6, 4]), (4.0, [6, 4]), (5.0, [6]), (7.0, [6])])
def test_small_parts_are_left_out_but_never_the_largest(least: float, areas: list[int]) -> None:
    mask = np.zeros((11, 13), bool)
    mask[0, 5] = mask[2:4, 2:5] = mask[7:9, 7:9] = True
    assert [part.area for part in parts_of(mask, min_area=least)] == areas


def test_a_mask_without_a_pixel_has_no_part() -> None:
    assert parts_of(np.zeros((3, 5), bool), min_area=2.0) == []


def test_an_outline_that_no_caller_may_send_is_a_part() -> None:
    """A comb of 12 million pixels, whose outline is longer than polygons of requests may be."""
    comb = np.zeros((3000, 4000), bool)
    comb[:, ::2] = comb[0] = True
    (part,) = parts_of(comb)
    assert part.area == comb.sum()
    assert part.rle(comb.shape) == mask_to_rle(comb)
