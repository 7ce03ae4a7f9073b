"""Protocol `open`: some categories are taught and all of them are requested in photos that mostly lack them.

Counts are kept per photo, so that intervals come from resampling the photos (Bayesian bootstrap, Rubin 1981,
https://doi.org/10.1214/aos/1176345338). A resample weighs the photos at random and leaves none out: without the few
photos of a rare category, which mostly has a low IoU, the mean over the categories would be too high. More draws narrow
what the choice of categories and examples adds, but not what the choice of photos does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from jaxtyping import Bool, UInt8

from app.method.adapter import Adapter
from app.method.prediction import Prediction
from app.method.shot import IGNORE

from .dataset import LabelledPhoto
from .one_shot import adapters
from .open_metrics import METRICS, Counts, Values, Weights, mean_of_known, miou, missed_though_named
from .scores import WORSE
from .subject import Subject

COLUMNS = ("words", "taught")

_RESAMPLES, _INTERVAL = 1000, (2.5, 97.5)
# Photos that must show a category before it is compared with the words: there is no interval over one.
_COMPARED = 3
# Photos with a category, and as many without it, that `sights` gives.
_SIGHTS = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval over photos."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Draw:
    """One seed.

    Attributes:
        categories: Their names.
        counts: Of each column, on the same photos.
        photos: Those that were measured, in the order of the counts.
        numbers: Class of each category in the data set.
        taught: Adapter of each of these classes.
        supports: Photos that each was taught from.
    """

    categories: tuple[str, ...]
    counts: Mapping[str, Counts]
    photos: Sequence[LabelledPhoto] = field(repr=False)
    numbers: Sequence[int] = ()
    taught: Mapping[int, Adapter] = field(default_factory=dict, repr=False)
    supports: Mapping[int, Sequence[LabelledPhoto]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Sight:
    """A category in a photo, to be looked at.

    Attributes:
        photo: RGB.
        title: "taught", or if it is shown, and its presence.
        mask: Marked pixels.
    """

    photo: UInt8[np.ndarray, "height width 3"]
    title: str
    mask: Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class OpenReport:
    """All draws of one measurement."""

    draws: tuple[Draw, ...]

    @property
    def photos(self) -> int:
        """Photos of the last draw."""
        return len(self.draws[-1].counts["words"].hit)

    @cached_property
    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Per column and metric the mean over seeds."""
        return {
            column: {
                name: _estimate(metric(draw.counts[column], weights) for draw, weights in self._weighted)
                for name, metric in METRICS.items()
            }
            for column in COLUMNS
        }

    @cached_property
    def gain(self) -> Estimate:
        """mIoU of the taught categories over the words."""
        return _estimate(
            miou(draw.counts["taught"], weights) - miou(draw.counts["words"], weights)
            for draw, weights in self._weighted
        )

    @cached_property
    def missed_though_named(self) -> Estimate:
        """Share of the present pairs that the words find and the taught categories do not."""
        return _estimate(
            missed_though_named(draw.counts["words"], draw.counts["taught"], weights)
            for draw, weights in self._weighted
        )

    @cached_property
    def changes(self) -> dict[str, Estimate]:
        """Per category the IoU when taught less the IoU by the words, over the seeds that drew it.

        Categories that are shown by too few photos of each seed are left out.
        """
        values: dict[str, list[Values]] = {}
        for draw, weights in self._weighted:
            change = draw.counts["taught"].iou(weights) - draw.counts["words"].iou(weights)
            shown = draw.counts["words"].present.sum(axis=0)
            for number, name in enumerate(draw.categories, 1):
                if shown[number - 1] >= _COMPARED:
                    values.setdefault(name, []).append(change[:, number])
        return {name: _estimate(values[name]) for name in sorted(values)}

    @property
    def worse(self) -> list[str]:
        """Categories whose change is a loss of more than half a point, however the photos are weighed."""
        return [name for name, change in self.changes.items() if change.high < -WORSE]

    @cached_property
    def _weighted(self) -> list[tuple[Draw, Weights]]:
        """Each draw with its photos' weights in the measurement itself, where all are 1, and in every resample.

        A photo has the same weight in every draw of a resample: the draws have most photos in common.
        """
        ids = dict.fromkeys(photo.id for draw in self.draws for photo in draw.photos)
        numbers = {id: number for number, id in enumerate(ids)}
        resamples = len(ids) * np.random.default_rng(0).dirichlet(np.ones(len(ids)), size=_RESAMPLES)
        weights = np.concatenate([np.ones((1, len(ids))), resamples])
        return [(draw, weights[:, [numbers[photo.id] for photo in draw.photos]]) for draw in self.draws]


def _estimate(draws: Iterable[Values]) -> Estimate:
    """Mean over the draws; the first value of each is the measurement itself."""
    values = mean_of_known(np.stack(list(draws)), axis=0)
    resampled = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(resampled, _INTERVAL) if len(resampled) else (values[0], values[0])
    return Estimate(float(values[0]), float(low), float(high))


def open_set(subject: Subject) -> OpenReport:
    """Measure; one draw of categories and of the photos they are taught from per seed.

    Raises:
        InvalidInputError: If no category can be taught.
    """
    return OpenReport(tuple(_draw(subject, seed) for seed in range(subject.options.seeds)))


def _draw(subject: Subject, seed: int) -> Draw:
    supports = subject.supports(seed)
    wanted = subject.options.categories or len(supports)
    numbers = sorted(random.Random(seed).sample(sorted(supports), min(wanted, len(supports))))
    taught = adapters(subject, {number: supports[number] for number in numbers})
    teaching = {photo.identity for number in numbers for photo in supports[number]}
    photos = [photo for photo in subject.dataset.photos if photo.identity not in teaching]
    rows: dict[str, list[Counts]] = {column: [] for column in COLUMNS}
    for step, photo in enumerate(photos):
        subject.progress(step, len(photos), f"seed {seed}: segmenting")
        for column, known in zip(COLUMNS, ({}, taught), strict=True):
            rows[column].append(_count(subject, photo, numbers, known))
    subject.progress(len(photos), len(photos), f"seed {seed}: segmenting")
    counts = {column: _together(each) for column, each in rows.items()}
    names = tuple(subject.dataset.classes[number] for number in numbers)
    return Draw(names, counts, photos, numbers, taught, {number: supports[number] for number in numbers})


def sights(subject: Subject, draw: Draw, count: int) -> dict[str, list[Sight]]:
    """Per category, of so many: its example, photos that show it, and the absent ones with the highest presence."""
    found: dict[str, list[Sight]] = {}
    for row, (name, number) in enumerate(zip(draw.categories[:count], draw.numbers, strict=False)):
        counts = draw.counts["taught"]
        presence, present, absent = counts.presence[:, row], counts.present[:, row], counts.absent[:, row]
        # Photos that show it in the order of its area there, and the others in the order of their presence.
        order = np.argsort(
            -np.where(present, counts.true[:, row + 1] / np.maximum(counts.pixels, 1), presence), kind="stable"
        )
        chosen = [*order[present[order]][:_SIGHTS], *order[absent[order]][:_SIGHTS]]
        example = draw.supports[number][0]
        found[name] = [Sight(example.read(), "taught", example.read_labels() == number)]
        for index in chosen:
            title = f"{'shown' if present[index] else 'absent'}, presence {presence[index]:.2f}"
            photo = draw.photos[index]
            found[name].append(Sight(photo.read(), title, _labels(subject, photo, draw, number) == row + 1))
    return found


def _labels(subject: Subject, photo: LabelledPhoto, draw: Draw, number: int) -> np.ndarray:
    """Labels of a photo, requested as it was measured."""
    request = [number] if subject.options.single else list(draw.numbers)
    predicted, _ = _segment(subject, photo, request, draw.taught)
    places = np.zeros(256, np.uint8)
    places[number] = draw.numbers.index(number) + 1
    marked: np.ndarray = places[predicted]
    return marked


def _segment(
    subject: Subject, photo: LabelledPhoto, request: Sequence[int], taught: Mapping[int, Adapter]
) -> tuple[np.ndarray, np.ndarray]:
    """Classes of the data set at each pixel, and the presence of the requested ones."""
    found = subject.refined(subject.predict(photo, request, taught), photo)
    predicted, _ = Prediction(found.cpu(), subject.framed(photo).frame).labels()
    return predicted, found.presence.cpu().numpy()


def _count(subject: Subject, photo: LabelledPhoto, numbers: Sequence[int], taught: Mapping[int, Adapter]) -> Counts:
    """Counts of one photo; requested together, or each category alone."""
    requests = [[number] for number in numbers] if subject.options.single else [list(numbers)]
    true = subject.labels(photo)
    shown = {*photo.classes, *photo.crowds}
    parts = []
    for request in requests:
        predicted, presence = _segment(subject, photo, request, taught)
        here = np.array([number in shown for number in request])
        parts.append(_compared(_renumbered(predicted, request), _renumbered(true, request), presence, here))
    if not subject.options.single:
        return parts[0]
    # Every request has a background of its own: there is none of all of them.
    none = np.zeros((1, 1), int)
    hit, true_, predicted_ = (
        np.concatenate([none, *(getattr(part, name)[:, 1:] for part in parts)], axis=1)
        for name in ("hit", "true", "predicted")
    )
    presence, here = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("presence", "shown"))
    return Counts(hit, true_, predicted_, parts[0].pixels, presence, here)


def _renumbered(labels: np.ndarray, request: Sequence[int]) -> np.ndarray:
    """Labels in the order of a request, from 1; other classes are background."""
    places = np.zeros(256, np.uint8)
    places[list(request)] = np.arange(1, len(request) + 1)
    places[IGNORE] = IGNORE
    renumbered: np.ndarray = places[labels]
    return renumbered


def _compared(predicted: np.ndarray, true: np.ndarray, presence: np.ndarray, shown: np.ndarray) -> Counts:
    known, classes = true != IGNORE, len(presence) + 1
    hit, true_, predicted_ = (
        np.bincount(labels, minlength=classes)[None]
        for labels in (true[known & (predicted == true)], true[known], predicted[known])
    )
    return Counts(hit, true_, predicted_, known.sum()[None], presence[None].astype(np.float64), shown[None])


def _together(counts: Sequence[Counts]) -> Counts:
    return Counts(*(np.concatenate([getattr(each, part.name) for each in counts]) for part in fields(Counts)))
