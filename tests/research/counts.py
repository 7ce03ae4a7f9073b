"""Counts of three photos and two categories, for the tests of protocol `open`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np

from app.research.open_metrics import Counts

# Three photos of 1,000 pixels and two categories. The first shows both: the one is marked half, the other elsewhere.
# The second shows the first category, unmarked. The third shows neither; the second category marks 30 of its pixels.
WORDS = Counts(
    hit=np.array([[500, 100, 0], [900, 0, 0], [970, 0, 0]]),
    true=np.array([[600, 200, 200], [900, 100, 0], [1000, 0, 0]]),
    predicted=np.array([[800, 100, 100], [996, 0, 4], [970, 0, 30]]),
    pixels=np.array([1000, 1000, 1000]),
    presence=np.array([[0.9, 0.35], [0.45, 0.05], [0.1, 0.35]]),
    shown=np.array([[True, True], [True, False], [False, False]]),
)
# Taught, the first category is found in the second photo too.
TAUGHT = replace(
    WORDS,
    hit=np.array([[500, 100, 0], [890, 80, 0], [970, 0, 0]]),
    predicted=np.array([[800, 100, 100], [916, 80, 4], [970, 0, 30]]),
)


def once(metric: Callable[..., np.ndarray], *counts: Counts) -> np.ndarray:
    """A metric with every photo once."""
    return metric(*counts, np.ones((1, len(counts[0].hit))))[0]


def photos_of(counts: Counts, photos: Sequence[int]) -> Counts:
    """The counts of some photos, perhaps repeated."""
    return Counts(*(getattr(counts, part.name)[list(photos)] for part in fields(counts)))
