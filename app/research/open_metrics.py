"""Metrics of protocol `open`: counts of each photo, added up over the photos of many resamples at once.

A resample is a weight per photo, so that one matrix product counts all classes of all resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

# A category is marked in a photo from this share of its pixels on, and a present one is found from this IoU on.
MARKED, FOUND_IOU = 0.005, 0.1

_CALIBRATION_BINS = 10

Weights = Float[np.ndarray, "resample photo"]
Values = Float[np.ndarray, "resample"]


@dataclass(frozen=True)
class Counts:
    """Pixels per photo and class (the background first), and presence per photo and category.

    Attributes:
        hit: Pixels of the class that are predicted as it.
        true: Pixels of the class.
        predicted: Pixels predicted as the class; unlabelled pixels are in none of the three.
        pixels: Labelled pixels of the photo.
        presence: Predicted probability that the photo shows the category.
        shown: True where the data say that the photo shows the category, be it in ignored pixels alone.
    """

    hit: Int[np.ndarray, "photo class"]
    true: Int[np.ndarray, "photo class"]
    predicted: Int[np.ndarray, "photo class"]
    pixels: Int[np.ndarray, photo]
    presence: Float[np.ndarray, "photo category"]
    shown: Bool[np.ndarray, "photo category"]

    @property
    def present(self) -> Bool[np.ndarray, "photo category"]:
        """True where labelled pixels of the photo show the category."""
        return self.true[:, 1:] > 0

    @property
    def absent(self) -> Bool[np.ndarray, "photo category"]:
        """True where the photo does not show the category.

        A category that only ignored pixels show, such as a crowd, is neither present nor absent, and of a photo
        without labelled pixels nothing is known.
        """
        absent: np.ndarray = ~self.present & ~self.shown & (self.pixels > 0)[:, None]
        return absent

    @property
    def share(self) -> Float[np.ndarray, "photo category"]:
        """Share of the photo that is predicted as the category."""
        share: np.ndarray = self.predicted[:, 1:] / np.maximum(self.pixels, 1)[:, None]
        return share

    @property
    def found(self) -> Bool[np.ndarray, "photo category"]:
        """True where a category is present and its mask overlaps with it."""
        union = self.true + self.predicted - self.hit
        found: np.ndarray = self.present & (self.hit >= FOUND_IOU * np.maximum(union, 1))[:, 1:]
        return found

    def iou(self, weights: Weights) -> Float[np.ndarray, "resample class"]:
        """IoU per class over all photos together; NaN for a class that no photo shows."""
        hit, true, predicted = (weights @ each for each in (self.hit, self.true, self.predicted))
        return _ratio(hit, np.where(true > 0, true + predicted - hit, 0))


def miou(counts: Counts, weights: Weights) -> Values:
    """Mean IoU over the classes that the photos show, background included."""
    return mean_of_known(counts.iou(weights), axis=1)


def absent_marked(counts: Counts, weights: Weights) -> Values:
    """Share of the pairs of a photo and an absent category in which the category is marked."""
    return _mean_over(counts.absent, counts.share > MARKED, weights)


def present_missed(counts: Counts, weights: Weights) -> Values:
    """Share of the pairs of a photo and a present category in which the category is not found."""
    return 1 - _mean_over(counts.present, counts.found, weights)


def area_in_error(counts: Counts, weights: Weights) -> Values:
    """Mean share of a photo that is marked as an absent category."""
    return _mean_over(counts.absent, counts.share, weights)


def auc(counts: Counts, weights: Weights) -> Values:
    """Probability that a present pair has a higher presence than an absent one (area under the ROC curve)."""
    shown_in, _ = np.nonzero(counts.present)
    presence = counts.presence[counts.present]
    ordered = np.zeros((len(counts.presence),) * 2)  # [photo of a present pair, photo of an absent one]
    for number, (own, absent) in enumerate(zip(counts.presence, counts.absent, strict=True)):
        lower = np.sort(own[absent])
        below = np.searchsorted(lower, presence, side="left") + np.searchsorted(lower, presence, side="right")
        ordered[:, number] = np.bincount(shown_in, below / 2, len(ordered))  # a tie is half in order
    pairs = (weights @ counts.present.sum(axis=1)) * (weights @ counts.absent.sum(axis=1))
    return _ratio((weights @ ordered * weights).sum(axis=1), pairs)


def calibration_error(counts: Counts, weights: Weights) -> Values:
    """Expected calibration error of presence: mean distance of probability and frequency over ten equal bins.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599.
    """
    bins = np.minimum((counts.presence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    known = counts.present | counts.absent
    distance = np.zeros((len(counts.presence), _CALIBRATION_BINS))
    np.add.at(distance, (np.arange(len(bins))[:, None], bins), np.where(known, counts.presence - counts.present, 0))
    return _ratio(np.abs(weights @ distance).sum(axis=1), weights @ known.sum(axis=1))


METRICS: dict[str, Callable[[Counts, Weights], Values]] = {
    "mIoU": miou,
    "absent pairs marked": absent_marked,
    "present pairs missed": present_missed,
    "area marked in error": area_in_error,
    "presence AUC": auc,
    "presence calibration error": calibration_error,
}


def missed_though_named(words: Counts, taught: Counts, weights: Weights) -> Values:
    """Share of the present pairs that the words find and the taught categories do not."""
    return 1 - _mean_over(words.found, taught.found, weights)


def mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=axis), known.sum(axis=axis))


def _mean_over(pairs: Bool[np.ndarray, "photo category"], values: np.ndarray, weights: Weights) -> Values:
    """Mean of the values of some pairs of a photo and a category; NaN without any."""
    return _ratio(weights @ np.where(pairs, values, 0).sum(axis=1), weights @ pairs.sum(axis=1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio
