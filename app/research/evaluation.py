"""Measure segmentation quality on a folder of photos with masks: the paper's protocols, ± CRF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidInputError
from app.method.backbone import Backbone
from app.method.frame import labels_to_input, to_photo
from app.method.prediction import ClassMap
from app.method.shot import IGNORE

from .dataset import Dataset, LabelledPhoto
from .interference import interference
from .joint import joint
from .one_shot import adapters, one_shot
from .prototype import prototype
from .scores import Counts, Report, Score
from .subject import Options, Predict, Progress, Subject

PROTOTYPE = "prototype"


@dataclass(frozen=True)
class Case:
    """One photo of a measurement, to be looked at.

    Attributes:
        photo: RGB.
        score: Mean IoU of the classes asked for in this photo, in the last column, with background.
        labels: Class numbers: the true ones, then those of each column.
    """

    photo: np.ndarray
    score: float
    labels: dict[str, np.ndarray]


class Evaluation:
    """One measurement.

    Args:
        backbone: A loaded model.
        dataset: Photos with labels.
        options: Protocol and settings.
        progress: Called with (step, steps, activity) as work goes on.
    """

    def __init__(self, backbone: Backbone, dataset: Dataset, options: Options, progress: Progress) -> None:
        self.subject = Subject(backbone, dataset, options, progress)
        self.dataset, self.options = dataset, options
        self._columns: dict[str, Predict] = {}
        self._ranked: list[tuple[float, LabelledPhoto]] = []

    def run(self) -> Report:
        """Measure; the words alone are a column beside every other protocol, on the same photos.

        Raises:
            InvalidInputError: If no class can be taught, or no pixel is known that could be measured.
        """
        options, scores = self.options, dict[str, list[Score]]()
        compared, photos = [], list(self.dataset.photos)
        for seed in range(1 if options.protocol == "words" else options.seeds):
            supports = {} if options.protocol == "words" else self.subject.supports(seed)
            taught = {photo.identity for support in supports.values() for photo in support}
            photos = [photo for photo in self.dataset.photos if photo.identity not in taught]
            others = range(1, len(self.dataset.classes))
            compared.append(frozenset(others if options.protocol == "interference" else supports))
            for column, score in self._seed(seed, supports, photos).items():
                if not score.iou:
                    raise InvalidInputError(
                        "The photos that are left to measure have no pixel to compare: give more photos, and masks "
                        f"that are not all {IGNORE}, which is ignored."
                    )
                scores.setdefault(column, []).append(score)
        asked = sum(bool(self.subject.asked(photo)) for photo in photos)
        return Report(self.dataset.classes, asked, scores, compared)

    def cases(self, count: int) -> list[Case]:
        """Photos of the last seed from the best to the worst: so many at equal distances in rank."""
        ranked = sorted(self._ranked, key=lambda item: -item[0])
        chosen = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
        cases = []
        for score, photo in (ranked[index] for index in chosen):
            labels = {"truth": photo.read_labels()}
            for column, predict in self._columns.items():
                found = predict(photo, self.subject.asked(photo))
                found = self.subject.refined(found, photo, decoded=column != PROTOTYPE)
                labels[column] = self._labels_on_photo(found, photo)
            cases.append(Case(photo.read(), score, labels))
        return cases

    def _seed(
        self, seed: int, supports: dict[int, list[LabelledPhoto]], photos: Sequence[LabelledPhoto]
    ) -> dict[str, Score]:
        """Scores of one seed, per column."""
        activity = f"seed {seed}: segmenting"
        if self.options.protocol == "interference":
            taught = adapters(self.subject, supports)
            return interference(self.subject, photos, taught, self._compare, activity)
        columns: dict[str, Predict] = {"words": self.subject.predict}
        if self.options.method == "prototype":
            columns[PROTOTYPE] = prototype(self.subject, supports)
        elif self.options.protocol == "one-shot":
            columns["one-shot"] = one_shot(self.subject, supports)
        elif self.options.protocol == "joint":
            columns["joint"] = joint(self.subject, supports, seed)
        self._columns, self._ranked = columns, []
        scores = self._score(photos, columns, activity)
        if self.options.method == "prototype":
            # Without a prototype a class has no mask, where the other protocols have the words.
            return {column: score.only({0, *supports}) for column, score in scores.items()}
        return scores

    def _score(self, photos: Sequence[LabelledPhoto], columns: dict[str, Predict], activity: str) -> dict[str, Score]:
        classes = len(self.dataset.classes)
        variants = ["", " + CRF"] if self.options.crf else [""]
        counts = {column + variant: Counts(classes) for column in columns for variant in variants}
        for step, photo in enumerate(photos):
            self.subject.progress(step, len(photos), activity)
            asked = self.subject.asked(photo)
            if not asked:
                continue
            for column, predict in columns.items():
                found = predict(photo, asked)
                for variant in variants:
                    maps = self.subject.refined(found, photo, decoded=column != PROTOTYPE) if variant else found
                    compared = self._compare(maps, photo)
                    counts[column + variant].add(*compared)
            alone = Counts(classes)
            alone.add(*compared)  # the last column's, refined if any is
            if (score := alone.score()).iou:  # else none of its pixels is known, as of a crowd alone
                self._ranked.append((score.mean, photo))
        self.subject.progress(len(photos), len(photos), activity)
        return {column: count.score() for column, count in counts.items()}

    def _compare(self, found: ClassMap, photo: LabelledPhoto) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true class numbers, both at the photo's size or both at the network's input."""
        labels = self.subject.labels(photo)
        if self.options.size == "input":
            best = found.probabilities.argmax(dim=0).cpu().numpy()
            frame = self.subject.framed(photo).frame
            return np.array(found.classes)[best], labels_to_input(labels, frame, outside=IGNORE)
        return self._labels_on_photo(found, photo), labels

    def _labels_on_photo(self, found: ClassMap, photo: LabelledPhoto) -> np.ndarray:
        best = to_photo(found.probabilities, self.subject.framed(photo).frame).argmax(dim=0)
        labels: np.ndarray = np.array(found.classes)[best.cpu().numpy()]
        return labels
