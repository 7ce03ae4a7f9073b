"""Labels of a photo, and statistics of each category in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, UInt16

from app.masks.boxes import bbox_of
from app.method.prediction import Prediction
from app.method.prompts import Query

_UNUSABLE = (
    "its adapter gives no usable scores; roll back to another version, or teach the category anew (mode=replace)."
)


@dataclass(frozen=True)
class Asked:
    """Category of a request after the look-up.

    Attributes:
        name: Name as stored, or as requested if it was not taught.
        query: Its words and, if the model can use it, its adapter.
        adapter_problem: Why its adapter was not used although it was to be; None if it was, or there is none.
    """

    name: str
    query: Query
    adapter_problem: str | None = None


@dataclass(frozen=True)
class CategoryPrediction:
    """One category in one photo.

    Attributes:
        name: Name as stored, or as requested if it was not taught.
        adapted: True if it ran under an adapter.
        adapter_version: Version of that adapter.
        presence: Probability that the photo shows it.
        match_score: Image-text score of its words and the whole photo, in [0, 1].
        mean_probability: Over the mask's pixels; 0 for an empty mask.
        area: Pixels of the mask.
        bbox: `[x, y, width, height]` of the mask.
        number: Its class in `photo`.
        photo: The photo that it belongs to.
        unusable: True if its adapter gave no usable scores.
        adapter_problem: Why an adapter that it has was not used; None if it was, or it has none.
    """

    name: str
    adapted: bool
    adapter_version: int | None
    presence: float
    match_score: float
    mean_probability: float
    area: int
    bbox: list[int]
    number: int
    photo: PhotoPrediction = field(repr=False)
    unusable: bool = False
    adapter_problem: str | None = None

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Its mask, computed at every access: the masks of all categories at once would not fit into memory."""
        labels, threshold = self.photo.labels, self.photo.threshold
        if not self.area:
            # A view of one row: a thousand empty masks take no memory, and contiguous rows are fast to read.
            return np.broadcast_to(np.zeros(labels.shape[1], bool), labels.shape)
        return np.asarray(labels == self.number if threshold is None else self.probability >= threshold)

    @property
    def probability(self) -> Float[np.ndarray, "height width"]:
        """Its probability at each pixel, computed at every access."""
        return self.photo.prediction.probability(self.number)

    @property
    def has_probability(self) -> bool:
        """False if its probability is 0 at every pixel."""
        return self.number in self.photo.prediction


@dataclass(frozen=True)
class PhotoPrediction:
    """Prediction with its labels, at the photo's size.

    Attributes:
        prediction: Class probabilities.
        threshold: Least probability of a category's pixels; None: a pixel belongs to its most probable class.
        labels: Class of each pixel; 0 is the background.
        best: Probability of that class.
    """

    prediction: Prediction
    threshold: float | None
    labels: UInt16[np.ndarray, "height width"] = field(repr=False)
    best: Float[np.ndarray, "height width"] = field(repr=False)

    @staticmethod
    def of(prediction: Prediction, threshold: float | None) -> PhotoPrediction:
        """A prediction with its labels."""
        return PhotoPrediction(prediction, threshold, *prediction.labels(threshold))

    def categories(self, asked: Sequence[Asked]) -> list[CategoryPrediction]:
        """Statistics of every requested category, in order."""
        candidates = frozenset(self.prediction.candidates(self.threshold))
        return [
            self._category(number, one, may_have_pixels=number in candidates) for number, one in enumerate(asked, 1)
        ]

    def _category(self, number: int, one: Asked, *, may_have_pixels: bool) -> CategoryPrediction:
        area, mean, bbox = 0, 0.0, [0, 0, 0, 0]
        if may_have_pixels:
            # On the pixels of a label, the best probability is that of its class.
            probability = self.best if self.threshold is None else self.prediction.probability(number)
            mask = self.labels == number if self.threshold is None else probability >= self.threshold
            area, bbox = int(mask.sum()), bbox_of(mask)
            mean = float(probability[mask].mean()) if area else 0.0
        unusable = number in self.prediction.unusable
        adapter = one.query.adapter
        if adapter and (unusable or adapter.kept == "words"):
            adapter = None
        return CategoryPrediction(
            name=one.name,
            adapted=adapter is not None,
            adapter_version=adapter.version if adapter else None,
            presence=self.prediction.presence[number - 1],
            match_score=self.prediction.match_score[number - 1],
            mean_probability=mean,
            area=area,
            bbox=bbox,
            number=number,
            photo=self,
            unusable=unusable,
            adapter_problem=_UNUSABLE if unusable else one.adapter_problem,
        )
