"""Run lengths are decoded as pycocotools does, and refused where it would crash."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from exemplar_client.errors import Invalid
from exemplar_client.rle import decode

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 23), st.integers(1, 29)))
# Long runs too: their numbers have several characters, and their differences are negative.
BLOCKS = st.builds(lambda mask, scale: np.kron(mask, np.ones((scale, scale), bool)), MASKS, st.integers(1, 40))


@given(BLOCKS)
def test_decodes_what_pycocotools_encodes(mask: np.ndarray) -> None:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert (decode(encoded) == mask).all()
    assert (decode(encoded | {"counts": encoded["counts"].decode()}) == mask).all()


@given(MASKS)
def test_decodes_lists_of_counts(mask: np.ndarray) -> None:
    column_by_column = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(column_by_column)) + 1
    counts = np.diff([0, *ends, mask.size])
    counts = [0, *counts.tolist()] if column_by_column[0] else counts.tolist()
    decoded = decode({"size": list(mask.shape), "counts": counts})
    assert decoded.dtype == bool
    assert (decoded == mask).all()
    packed = coco_mask.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape)
    assert (decode(packed) == mask).all()


@pytest.mark.parametrize(
    ("rle", "told"),
    [
        ({}, '"size"'),
        ({"size": [2], "counts": [4]}, '"size"'),
        ({"size": [0, 2], "counts": []}, '"size"'),
        ({"size": [True, 2], "counts": [2]}, '"size"'),
        ({"size": [2, 3]}, '"counts"'),
        ({"size": [2, 3], "counts": ""}, '"counts"'),
        ({"size": [2, 3], "counts": "\x01"}, '"counts"'),
        ({"size": [2, 3], "counts": "é"}, '"counts"'),
        ({"size": [2, 3], "counts": [1.5, 4.5]}, '"counts"'),
        ({"size": [2, 3], "counts": [-1, 7]}, '"counts"'),
        ({"size": [2, 3], "counts": [5]}, "2 × 3 = 6 pixels, got 5"),
        ({"size": [2, 3], "counts": "7"}, "2 × 3 = 6 pixels, got 7"),
    ],
)
def test_refuses_what_is_no_mask(rle: dict[str, object], told: str) -> None:
    with pytest.raises(Invalid, match=told.replace('"', '"')):
        decode(rle)


@given(st.text(alphabet=st.characters(min_codepoint=48, max_codepoint=112), max_size=40))
def test_any_text_is_decoded_or_refused(counts: str) -> None:
    with contextlib.suppress(Invalid):
        assert decode({"size": [3, 5], "counts": counts}).shape == (3, 5)
