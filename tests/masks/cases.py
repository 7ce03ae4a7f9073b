"""Masks and JSON values that the tests of `app.masks` share, and pycocotools as the reference."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

# 3 rows, 5 columns; marked are (row, column) (1, 2), (2, 2) and (0, 3): numbers 7, 8 and 9 column by column.
CORNERED = np.zeros((3, 5), dtype=bool)
CORNERED[1:, 2] = CORNERED[0, 3] = True

small_masks = hnp.arrays(bool, st.tuples(st.integers(1, 13), st.integers(1, 11)))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner),
    max_leaves=12,
)


def coco_decoded(rle: dict[str, object]) -> np.ndarray:
    with warnings.catch_warnings():  # of pycocotools 2.0.11 under NumPy 2
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco_mask.decode(rle).astype(bool)
