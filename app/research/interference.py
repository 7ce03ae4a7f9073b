"""Protocol `interference`: effect of teaching one category on the others, itself not scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from app.method.adapter import Adapter
from app.method.prediction import ClassMap

from .dataset import LabelledPhoto
from .scores import Counts, Score
from .subject import Subject

Compare = Callable[[ClassMap, LabelledPhoto], tuple[np.ndarray, np.ndarray]]


def interference(
    subject: Subject,
    photos: Sequence[LabelledPhoto],
    adapters: Mapping[int, Adapter],
    compare: Compare,
    activity: str,
) -> dict[str, Score]:
    """Scores of the other classes, with each class of each photo taught alone and with none taught."""
    counts = {column: Counts(len(subject.dataset.classes)) for column in ("words", "another taught")}
    for step, photo in enumerate(photos):
        subject.progress(step, len(photos), activity)
        asked = subject.asked(photo)
        for number in {number for number in asked if number in adapters}:
            for column, count in counts.items():
                taught = {number: adapters[number]} if column != "words" else {}
                count.add(*compare(subject.predict(photo, asked, taught), photo), without=number)
    subject.progress(len(photos), len(photos), activity)
    return {column: count.score() for column, count in counts.items()}
