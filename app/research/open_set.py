"""Protocol `open`: some categories are taught and all of them are requested in photos that mostly lack them.

Counts are kept per photo, so that intervals come from resampling the photos (percentile bootstrap, Efron 1979,
https://doi.org/10.1214/aos/1176344552). More draws narrow what the choice of categories and examples adds, but not what
the choice of photos does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from app.errors import InvalidInputError
from app.method.adapter import Adapter
from app.method.prediction import Prediction
from app.method.shot import IGNORE

from .dataset import LabelledPhoto
from .one_shot import adapters
from .subject import Subject

# A category is marked in a photo from this share of its pixels on, and a present one is found from this IoU on.
MARKED, FOUND_IOU = 0.005, 0.1
COLUMNS = ("words", "taught")

_RESAMPLES, _INTERVAL = 1000, (2.5, 97.5)
_CALIBRATION_BINS = 10
# Photos with a category, and as many without it, that `sights` gives.
_SIGHTS = 3

Photos = Int[np.ndarray, "some"]


@dataclass(frozen=True)
class Counts:
    """Pixels per photo and class (the background first), and presence per photo and category.

    Attributes:
        hit: Pixels of the class that are predicted as it.
        true: Pixels of the class.
        predicted: Pixels predicted as the class; unlabelled pixels are in none of the three.
        pixels: Labelled pixels of the photo.
        presence: Predicted probability that the photo shows the category.
    """

    hit: Int[np.ndarray, "photo class"]
    true: Int[np.ndarray, "photo class"]
    predicted: Int[np.ndarray, "photo class"]
    pixels: Int[np.ndarray, photo]
    presence: Float[np.ndarray, "photo category"]

    @property
    def present(self) -> Bool[np.ndarray, "photo category"]:
        """True where the photo shows the category."""
        return self.true[:, 1:] > 0

    @property
    def share(self) -> Float[np.ndarray, "photo category"]:
        """Share of the photo that is predicted as the category."""
        share: np.ndarray = self.predicted[:, 1:] / self.pixels[:, None]
        return share

    @property
    def found(self) -> Bool[np.ndarray, "photo category"]:
        """True where a category is present and its mask overlaps with it."""
        union = self.true + self.predicted - self.hit
        found: np.ndarray = self.present & (self.hit >= FOUND_IOU * np.maximum(union, 1))[:, 1:]
        return found

    def of(self, photos: Photos) -> Counts:
        """The counts of some photos, perhaps repeated."""
        return Counts(*(getattr(self, part.name)[photos] for part in fields(self)))

    def iou(self) -> Float[np.ndarray, "class"]:
        """IoU per class over all photos together; NaN for a class that no photo shows."""
        hit, true, predicted = (each.sum(axis=0) for each in (self.hit, self.true, self.predicted))
        return np.where(true > 0, hit / np.maximum(true + predicted - hit, 1), np.nan)


def miou(counts: Counts) -> float:
    """Mean IoU over the classes that the photos show, background included."""
    return float(np.nanmean(counts.iou()))


def absent_marked(counts: Counts) -> float:
    """Share of the pairs of a photo and an absent category in which the category is marked."""
    return _mean(counts.share[~counts.present] > MARKED)


def present_missed(counts: Counts) -> float:
    """Share of the pairs of a photo and a present category in which the category is not found."""
    return 1 - _mean(counts.found[counts.present])


def area_in_error(counts: Counts) -> float:
    """Mean share of a photo that is marked as an absent category."""
    return _mean(counts.share[~counts.present])


def auc(counts: Counts) -> float:
    """Probability that a present pair has a higher presence than an absent one (area under the ROC curve)."""
    present, absent = counts.presence[counts.present], counts.presence[~counts.present]
    if not len(present) or not len(absent):
        return float("nan")
    absent = np.sort(absent)
    below = np.searchsorted(absent, present, side="left") + np.searchsorted(absent, present, side="right")
    return float(below.mean() / 2 / len(absent))


def calibration_error(counts: Counts) -> float:
    """Expected calibration error of presence: mean distance of probability and frequency over ten equal bins.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599.
    """
    presence, present = counts.presence.ravel(), counts.present.ravel()
    bins = np.minimum((presence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    distance = np.bincount(bins, presence - present, _CALIBRATION_BINS)
    return float(np.abs(distance).sum() / len(presence))


METRICS: dict[str, Callable[[Counts], float]] = {
    "mIoU": miou,
    "absent pairs marked": absent_marked,
    "present pairs missed": present_missed,
    "area marked in error": area_in_error,
    "presence AUC": auc,
    "presence calibration error": calibration_error,
}


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

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Per column and metric the mean over seeds."""
        return {
            column: {
                name: self._estimate(partial(_measured, column=column, metric=metric))
                for name, metric in METRICS.items()
            }
            for column in COLUMNS
        }

    def gain(self) -> Estimate:
        """mIoU of the taught categories over the words."""

        def difference(draw: Draw, photos: Photos) -> float:
            words, taught = (miou(draw.counts[column].of(photos)) for column in COLUMNS)
            return taught - words

        return self._estimate(difference)

    def missed_though_named(self) -> Estimate:
        """Share of the present pairs that the words find and the taught categories do not."""

        def share(draw: Draw, photos: Photos) -> float:
            words, taught = (draw.counts[column].of(photos).found for column in COLUMNS)
            return 1 - _mean(taught[words])

        return self._estimate(share)

    def changes(self) -> dict[str, Estimate]:
        """Per category the IoU when taught less the IoU by the words, over the seeds that drew it."""
        names = sorted({name for draw in self.draws for name in draw.categories})
        return {name: self._estimate(partial(_change, name=name)) for name in names}

    def _estimate(self, measure: Callable[[Draw, Photos], float]) -> Estimate:
        """Mean over the draws; a resample takes the same photos in every draw, which have most of them in common."""
        rng = np.random.default_rng(0)
        rows = self._rows()
        count = 1 + max(int(each.max()) for each in rows)

        def over_seeds(times: Int[np.ndarray, "all"]) -> float:
            samples = (np.repeat(np.arange(len(each)), times[each]) for each in rows)
            values = [measure(draw, photos) for draw, photos in zip(self.draws, samples, strict=True)]
            return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")

        mean = over_seeds(np.ones(count, int))
        resampled = [over_seeds(rng.multinomial(count, [1 / count] * count)) for _ in range(_RESAMPLES)]
        low, high = np.nanpercentile(resampled, _INTERVAL) if not np.isnan(resampled).all() else (mean, mean)
        return Estimate(mean, float(low), float(high))

    def _rows(self) -> list[Int[np.ndarray, "photo"]]:
        """Of each draw the numbers of its photos among those of all draws."""
        ids = dict.fromkeys(photo.id for draw in self.draws for photo in draw.photos)
        numbers = {id: number for number, id in enumerate(ids)}
        return [np.array([numbers[photo.id] for photo in draw.photos]) for draw in self.draws]


def open_set(subject: Subject) -> OpenReport:
    """Measure; one draw of categories and of the photos they are taught from per seed.

    Raises:
        InvalidInputError: If no category has two photos, or every photo is a support.
    """
    return OpenReport(tuple(_draw(subject, seed) for seed in range(subject.options.seeds)))


def _draw(subject: Subject, seed: int) -> Draw:
    supports = subject.supports(seed)
    if not supports:
        raise InvalidInputError("No category has a photo to be taught from and another to be measured on.")
    wanted = subject.options.categories or len(supports)
    numbers = sorted(random.Random(seed).sample(sorted(supports), min(wanted, len(supports))))
    taught = adapters(subject, {number: supports[number] for number in numbers})
    teaching = {photo.id for number in numbers for photo in supports[number]}
    photos = [photo for photo in subject.dataset.photos if photo.id not in teaching]
    if not photos:
        raise InvalidInputError("No photo is left to evaluate on: every one is a support. Give more photos.")
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
        presence, present = counts.presence[:, row], counts.present[:, row]
        # Photos that show it in the order of its area there, and the others in the order of their presence.
        order = np.argsort(-np.where(present, counts.true[:, row + 1] / counts.pixels, presence), kind="stable")
        chosen = [*order[present[order]][:_SIGHTS], *order[~present[order]][:_SIGHTS]]
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
    predicted, _ = Prediction(found.cpu(), subject.see(photo).frame).labels()
    return predicted, found.presence.cpu().numpy()


def _count(subject: Subject, photo: LabelledPhoto, numbers: Sequence[int], taught: Mapping[int, Adapter]) -> Counts:
    """Counts of one photo; requested together, or each category alone."""
    requests = [[number] for number in numbers] if subject.options.single else [list(numbers)]
    true = photo.read_labels()
    parts = []
    for request in requests:
        predicted, presence = _segment(subject, photo, request, taught)
        parts.append(_compared(_renumbered(predicted, request), _renumbered(true, request), presence))
    if not subject.options.single:
        return parts[0]
    # Every request has a background of its own: there is none of all of them.
    none = np.zeros((1, 1), int)
    hit, true_, predicted_ = (
        np.concatenate([none, *(getattr(part, name)[:, 1:] for part in parts)], axis=1)
        for name in ("hit", "true", "predicted")
    )
    return Counts(hit, true_, predicted_, parts[0].pixels, np.concatenate([part.presence for part in parts], axis=1))


def _renumbered(labels: np.ndarray, request: Sequence[int]) -> np.ndarray:
    """Labels in the order of a request, from 1; other classes are background."""
    places = np.zeros(256, np.uint8)
    places[list(request)] = np.arange(1, len(request) + 1)
    places[IGNORE] = IGNORE
    renumbered: np.ndarray = places[labels]
    return renumbered


def _compared(predicted: np.ndarray, true: np.ndarray, presence: np.ndarray) -> Counts:
    known, classes = true != IGNORE, len(presence) + 1
    hit, true_, predicted_ = (
        np.bincount(labels, minlength=classes)[None]
        for labels in (true[known & (predicted == true)], true[known], predicted[known])
    )
    return Counts(hit, true_, predicted_, known.sum()[None], presence[None].astype(np.float64))


def _together(counts: Sequence[Counts]) -> Counts:
    return Counts(*(np.concatenate([getattr(each, part.name) for each in counts]) for part in fields(Counts)))


def _measured(draw: Draw, photos: Photos, *, column: str, metric: Callable[[Counts], float]) -> float:
    return metric(draw.counts[column].of(photos))


def _change(draw: Draw, photos: Photos, *, name: str) -> float:
    if name not in draw.categories:
        return float("nan")
    number = draw.categories.index(name) + 1
    words, taught = (draw.counts[column].of(photos).iou()[number] for column in COLUMNS)
    return float(taught - words)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
