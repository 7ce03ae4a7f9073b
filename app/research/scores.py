"""Intersection over union per class, and the report of a measurement."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.method.shot import IGNORE

# A class is worse than the words if its IoU is lower by more than this.
WORSE = 0.005


@dataclass(frozen=True)
class Score:
    """Intersection over union per class number, over all photos of one seed together; absent classes are left out."""

    iou: dict[int, float]

    @property
    def mean(self) -> float:
        """mIoU with background."""
        return statistics.fmean(self.iou.values())

    def only(self, numbers: Collection[int]) -> Score:
        """The score of some classes."""
        return Score({number: iou for number, iou in self.iou.items() if number in numbers})


@dataclass(frozen=True)
class Report:
    """Scores per column (`words`, `one-shot`, …, each also `+ CRF`), one entry per seed.

    Attributes:
        classes: Names, the background first.
        photos: Photos of the last seed that something was asked of.
        scores: As above.
        compared: Per seed the classes that are compared with the words: those taught, in `interference` all.
    """

    classes: tuple[str, ...]
    photos: int
    scores: dict[str, list[Score]]
    compared: Sequence[frozenset[int]] = ()

    def mean(self, column: str) -> tuple[float, float]:
        """Mean over seeds of the mIoU, and its population deviation."""
        values = [score.mean for score in self.scores[column]]
        return statistics.fmean(values), statistics.pstdev(values)

    def by_class(self, column: str) -> dict[int, float]:
        """Mean IoU over the seeds in which the class occurs."""
        values: dict[int, list[float]] = {}
        for score in self.scores[column]:
            for number, iou in score.iou.items():
                values.setdefault(number, []).append(iou)
        return {number: statistics.fmean(ious) for number, ious in sorted(values.items())}

    def worse_than(self, baseline: str, column: str) -> tuple[int, int] | None:
        """How many of the compared classes score more than half a point below the baseline, and of how many.

        A class is compared in the seeds that taught it: in the others it can't be worse.
        """
        name = column.split(" + ")[0]
        if name == baseline:
            return None
        changes: dict[int, list[float]] = {}
        seeds = zip(self.compared, self.scores[baseline + column.removeprefix(name)], self.scores[column], strict=True)
        for compared, before, after in seeds:
            for number in compared & after.iou.keys():
                changes.setdefault(number, []).append(after.iou[number] - before.iou[number])
        return sum(statistics.fmean(change) < -WORSE for change in changes.values()), len(changes)

    def rows(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Per class its name and its score in each column."""
        columns = {column: self.by_class(column) for column in self.scores}
        for number in sorted({number for scores in columns.values() for number in scores}):
            yield self.classes[number], {c: scores[number] for c, scores in columns.items() if number in scores}


class Counts:
    """Pixels of intersection, of truth and of prediction per class."""

    def __init__(self, classes: int) -> None:
        self._hit, self._true, self._predicted = np.zeros((3, classes), np.int64)

    def add(self, predicted: np.ndarray, labels: np.ndarray, *, without: int | None = None) -> None:
        """Count a photo, all classes or all without one."""
        known = labels != IGNORE
        for total, numbers in (
            (self._hit, labels[known & (predicted == labels)]),
            (self._true, labels[known]),
            (self._predicted, predicted[known]),
        ):
            count = np.bincount(numbers, minlength=len(total))
            if without is not None:
                count[without] = 0
            total += count

    def score(self) -> Score:
        """Intersection over union of every class that occurs."""
        union = self._true + self._predicted - self._hit
        return Score({int(number): float(self._hit[number] / union[number]) for number in np.flatnonzero(self._true)})
