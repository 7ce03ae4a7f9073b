"""Class probabilities of one photo: on the network's input, and back on the photo."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt16
from torch import Tensor

from .frame import Frame, to_photo
from .scores import ScoreMap


@dataclass(frozen=True)
class ClassMap:
    """Class probabilities on the network's input.

    Attributes:
        classes: Numbers of the classes that are in `probabilities`: 0 is the background, 1 the first query.
        probabilities: Per class and input pixel; sum 1 over classes, less the share of the classes left out.
        match_score: Per query the best image-text score of its prompts, in [0, 1].
        presence: Per query the probability that the photo shows it.
        layers: The layers that were read.
        unusable: Classes whose adapter gave no usable numbers, so that their words were read.
    """

    classes: tuple[int, ...]
    probabilities: Float[Tensor, "class size size"]
    match_score: Float[Tensor, "category"]
    presence: Float[Tensor, "category"]
    layers: tuple[int, ...]
    unusable: tuple[int, ...] = ()

    @staticmethod
    def of(
        scores: ScoreMap,
        *,
        size: int,
        min_relative_score: float,
        numbers: Sequence[int],
        match_score: Float[Tensor, "category"],
        presence: Float[Tensor, "category"],
        layers: tuple[int, ...],
        unusable: tuple[int, ...] = (),
    ) -> "ClassMap":
        """Probabilities of the classes that have enough of the best class's score somewhere.

        Args:
            scores: The background first.
            size: Side of the network's input.
            min_relative_score: Share of the best class's score that a class must have at one place at least.
            numbers: Number of each class of `scores`.
            match_score: As above.
            presence: As above.
            layers: As above.
            unusable: As above.
        """
        values = scores.values
        kept = (values >= min_relative_score * values.amax(dim=0)).any(dim=1)
        kept[0] = True
        classes = kept.nonzero().flatten()
        # The sum over all classes is upsampled beside those kept, so that those left out keep their share of it.
        with_total = replace(scores, values=torch.cat([values[classes], values.sum(dim=0, keepdim=True)]))
        *_, total = maps = with_total.at((size, size))
        probabilities = maps[:-1] / total.clamp_min(torch.finfo(maps.dtype).tiny)
        shown = tuple(numbers[row] for row in classes.tolist())
        return ClassMap(shown, probabilities, match_score, presence, layers, unusable)

    def cpu(self) -> "ClassMap":
        """The same values in the processor's memory."""
        return replace(
            self,
            probabilities=self.probabilities.cpu(),
            match_score=self.match_score.cpu(),
            presence=self.presence.cpu(),
        )

    def only_shown(self) -> "ClassMap":
        """The background and the classes with a probability above zero somewhere."""
        shown = self.probabilities.flatten(1).any(dim=1)
        shown[0] = True
        classes = tuple(number for number, keep in zip(self.classes, shown.tolist(), strict=True) if keep)
        return replace(self, classes=classes, probabilities=self.probabilities[shown])


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of one photo, brought to the photo's size one class at a time.

    All at once they don't fit: 1,000 categories on a photo of 12 megapixels are 48 GB.

    Attributes:
        class_map: On the network's input, in the processor's memory.
        frame: Place of the photo in the input.
    """

    class_map: ClassMap
    frame: Frame

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were read."""
        return self.class_map.layers

    @property
    def unusable(self) -> tuple[int, ...]:
        """Classes whose adapter gave no usable numbers, so that their words were read."""
        return self.class_map.unusable

    @cached_property
    def match_score(self) -> list[float]:
        """Per query the best image-text score of its prompts, in [0, 1]."""
        scores: list[float] = self.class_map.match_score.tolist()
        return scores

    @cached_property
    def presence(self) -> list[float]:
        """Per query the probability that the photo shows it."""
        presence: list[float] = self.class_map.presence.tolist()
        return presence

    @property
    def photo_hw(self) -> tuple[int, int]:
        """Height and width of the photo in pixels."""
        return self.frame.photo_hw

    def __contains__(self, number: int) -> bool:
        """False if the class has a probability of 0 at every pixel."""
        return number in self._rows

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {number: row for row, number in enumerate(self.class_map.classes)}

    def probability(self, number: int) -> Float[np.ndarray, "height width"]:
        """Probability of one class at every pixel of the photo."""
        if number not in self:
            return np.zeros(self.photo_hw, np.float32)
        row = self._rows[number]
        probability: np.ndarray = to_photo(self.class_map.probabilities[row : row + 1], self.frame)[0].numpy()
        return probability

    def candidates(self, threshold: float | None = None) -> list[int]:
        """The categories that may have a pixel: above the background, or at or above the threshold.

        Interpolation keeps order and bounds: a class that is nowhere above the background (or the threshold) on the
        input is nowhere above it on the photo. Most of a thousand categories are not in a photo and cost nothing more.
        """
        maps = self.class_map.probabilities
        above = maps > maps[:1] if threshold is None else maps >= threshold
        somewhere = above.flatten(1).any(dim=1).tolist()
        return [number for number, found in zip(self.class_map.classes, somewhere, strict=True) if found and number]

    def labels(
        self, threshold: float | None = None
    ) -> tuple[UInt16[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
        """The most probable class of each pixel, and its probability.

        Args:
            threshold: A pixel whose best probability is below it belongs to the background; None for no bound.
        """
        labels = np.zeros(self.photo_hw, np.uint16)
        best = self.probability(0).copy() if threshold is None else np.full(labels.shape, -1, np.float32)
        for number in self.candidates(threshold):
            probability = self.probability(number)
            better = probability > best
            np.copyto(best, probability, where=better)
            np.copyto(labels, np.uint16(number), where=better)
        if threshold is not None:
            labels[best < threshold] = 0
        return labels, best
