"""Measure segmentation quality on a folder of photos with masks: the paper's protocols, at original size, ± CRF."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from app.errors import InvalidInputError
from app.method.adapter import Adapter
from app.method.backbone import Backbone
from app.method.class_map import normalise, upsample
from app.method.crf import THREE_ROUNDS, CrfParameters
from app.method.evidence import Query
from app.method.frame import Frame, labels_to_input, to_photo
from app.method.mask_decoder import finest_scores
from app.method.prompts import free_background, prompt_set
from app.method.prototype import prototype_map, prototypes
from app.method.segment import class_map, encode, refine
from app.method.tiles import SeenTile, look_closer, see_tiles
from app.method.tuning import IGNORE, CategoryTuning, JointTuning, Recipe, Shot, shot
from app.services.segmentation import LEAST

Protocol = Literal["words", "one-shot", "joint", "interference"]
Prompts = Literal["present", "all"]
# Of a photo and the classes asked for: probabilities on the network's input, and the class number of each map.
Predict = Callable[["Photo", "Sequence[int]"], "tuple[Tensor, tuple[int, ...]]"]

# A support must show its class: at least this share of the photo.
_SUPPORT_AREA = 0.005
# Image tokens and inputs that are kept for the next seeds; a photo's are megabytes, with a large model tens of them.
_MAX_KEPT_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Photo:
    """A photo of the data set; `labels` are class numbers on it, 255 to be ignored."""

    id: str
    image: Path
    labels: Path
    classes: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The photo, RGB uint8 [height, width, 3]."""
        with Image.open(self.image) as image:
            return np.array(image.convert("RGB"))

    def read_labels(self) -> np.ndarray:
        """The labels, uint8 [height, width]."""
        with Image.open(self.labels) as image:
            return np.array(image)


@dataclass(frozen=True)
class Dataset:
    """A folder of photos with masks: `index.json`, `images/<id>.jpg`, `masks/<id>.png`."""

    classes: tuple[str, ...]
    photos: tuple[Photo, ...]


@dataclass(frozen=True)
class Options:
    """What is measured; see `python -m app evaluate --help`.

    Attributes:
        crf: Measure also with this refinement; interference is measured without.
        joint_epochs: Passes of `joint` over its supports (the authors: 5 on PASCAL, 2 on COCO).
    """

    protocol: Protocol = "words"
    method: Literal["attention", "prototype"] = "attention"
    prompts: Prompts = "present"
    seeds: int = 1
    shots: int = 1
    joint_epochs: int = 2
    size: Literal["original", "input"] = "original"
    crf: CrfParameters | None = THREE_ROUNDS
    second_look: bool = True
    tiles: bool = False
    layers: tuple[int, ...] | None = None
    background: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class Score:
    """Intersection over union per class number, over all photos of one seed together; absent classes are left out."""

    iou: dict[int, float]

    @property
    def mean(self) -> float:
        """mIoU with background."""
        return statistics.fmean(self.iou.values())


@dataclass(frozen=True)
class Report:
    """Scores per column (`words`, `one-shot`, …, each also `+ CRF`), one entry per seed."""

    classes: tuple[str, ...]
    photos: int
    scores: dict[str, list[Score]]

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

    def worse_than(self, baseline: str, column: str) -> float | None:
        """Share of the classes (background aside) that score more than half a point below the baseline."""
        if column.split(" + ")[0] == baseline:
            return None
        base = self.by_class(baseline + column.removeprefix(column.split(" + ")[0]))
        pairs = [(iou, base[number]) for number, iou in self.by_class(column).items() if number]
        return sum(iou < before - 0.005 for iou, before in pairs) / max(1, len(pairs))


def read_dataset(folder: Path, *, split: str | None, ids: Path | None, limit: int | None) -> Dataset:
    """Read the index of a data set.

    Args:
        folder: Holds `index.json`, `images/` and `masks/`.
        split: Only photos of this split; None for all.
        ids: A JSON list of photo ids to keep; None for all.
        limit: At most this many photos.

    Raises:
        InvalidInputError: If the folder is not of this form, or nothing is left of it.
    """
    try:
        index = json.loads((folder / "index.json").read_text())
        keep = None if ids is None else {str(item) for item in json.loads(ids.read_text())}
        photos = [
            Photo(
                id=item["id"],
                image=folder / "images" / f"{item['id']}.jpg",
                labels=folder / "masks" / f"{item['id']}.png",
                classes=tuple(item["classes"]),
            )
            for item in index["images"]
            if (split is None or item.get("split") == split) and (keep is None or str(item["id"]) in keep)
        ]
        classes = tuple(str(name) for name in index["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{folder} is not a data set: it needs index.json with classes and images, images/<id>.jpg and "
            f"masks/<id>.png ({type(error).__name__}: {error})."
        ) from error
    if not photos:
        raise InvalidInputError(f"No photo is left of {folder}: check --split and --ids.")
    return Dataset(classes, tuple(photos[:limit]))


@dataclass(frozen=True)
class Case:
    """One photo of a measurement, to be looked at.

    Attributes:
        photo: RGB.
        score: Mean IoU of the classes asked for in this photo, in the last column, with background.
        labels: Class numbers: what is true, then what each column found.
    """

    photo: np.ndarray
    score: float
    labels: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Encoded:
    """A photo as the network takes it: its image tokens, the input (RGB, uint8) and where the photo lies in it."""

    tokens: Tensor
    rgb: Tensor
    frame: Frame

    @property
    def bytes(self) -> int:
        return self.tokens.nbytes + self.rgb.nbytes


class Evaluation:
    """One measurement.

    Args:
        backbone: A loaded model.
        dataset: Photos with labels.
        options: Protocol and settings.
        progress: Called with (step, steps, what) as work goes on.
    """

    def __init__(
        self, backbone: Backbone, dataset: Dataset, options: Options, progress: Callable[[int, int, str], None]
    ) -> None:
        self.backbone, self.dataset, self.options, self._progress = backbone, dataset, options, progress
        self.layers = options.layers or backbone.default_layers
        self._passes = 1 if options.protocol == "words" else options.seeds
        self._kept: dict[str, _Encoded] = {}
        self._room = _MAX_KEPT_BYTES if self._passes > 1 else 0
        self._latest: tuple[str, _Encoded] | None = None
        self._latest_tiles: tuple[str, list[SeenTile]] | None = None
        self._columns: dict[str, Predict] = {}
        self._ranked: list[tuple[float, Photo]] = []

    def run(self) -> Report:
        """Measure; the words alone are a column beside every other protocol, on the same photos."""
        scores: dict[str, list[Score]] = {}
        photos = 0
        for seed in range(self._passes):
            supports = {} if self.options.protocol == "words" else self._supports(seed)
            taught = {photo.id for support in supports.values() for photo in support}
            rest = [photo for photo in self.dataset.photos if photo.id not in taught]
            if not rest:
                raise InvalidInputError("No photo is left to evaluate on: every one is a support. Give more photos.")
            photos = len(rest)
            if self.options.protocol == "interference":
                for column, score in self._interference(rest, self._adapters(supports), f"seed {seed}").items():
                    scores.setdefault(column, []).append(score)
                continue
            columns: dict[str, Predict] = {"words": self._words}
            if self.options.method == "prototype":
                columns["prototype"] = self._prototype(supports)
            elif self.options.protocol == "one-shot":
                columns["one-shot"] = self._independent(supports)
            elif self.options.protocol == "joint":
                columns["joint"] = self._joint(supports, seed)
            self._columns, self._ranked = columns, []
            for column, score in self._score(rest, columns, f"seed {seed}").items():
                scores.setdefault(column, []).append(score)
        return Report(self.dataset.classes, photos, scores)

    def cases(self, count: int) -> list[Case]:
        """Photos of the last seed from the best to the worst: so many at equal distances in rank."""
        ranked = sorted(self._ranked, key=lambda item: -item[0])
        chosen = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
        cases = []
        for score, photo in (ranked[index] for index in chosen):
            labels = {"truth": photo.read_labels()}
            for column, predict in self._columns.items():
                labels[column] = self._found(*predict(photo, self._asked(photo)), photo)
            cases.append(Case(photo.read(), score, labels))
        return cases

    def _found(self, maps: Tensor, numbers: Sequence[int], photo: Photo) -> np.ndarray:
        """Class numbers at the photo's size, refined if the measurement is."""
        _, rgb, frame = self._encode(photo)
        maps = refine(maps, rgb, self.options.crf) if self.options.crf else maps
        found: np.ndarray = np.array(numbers)[to_photo(maps, frame).argmax(dim=0).cpu().numpy()]
        return found

    def _supports(self, seed: int) -> dict[int, list[Photo]]:
        """Per class the photos it is taught from; a class that would have none left to test on is not taught."""
        rng = random.Random(seed)
        order = list(self.dataset.photos)
        rng.shuffle(order)
        supports: dict[int, list[Photo]] = {}
        for number in range(1, len(self.dataset.classes)):
            having = [photo for photo in order if number in photo.classes]
            found: list[Photo] = []
            for photo in having:
                if len(found) == self.options.shots or len(having) <= self.options.shots:
                    break
                if (photo.read_labels() == number).mean() >= _SUPPORT_AREA:
                    found.append(photo)
            if found:
                supports[number] = found
        return supports

    def _score(self, photos: Sequence[Photo], columns: dict[str, Predict], what: str) -> dict[str, Score]:
        variants = [""] + ([" + CRF"] if self.options.crf else [])
        counts = {column + variant: _Counts(len(self.dataset.classes)) for column in columns for variant in variants}
        for step, photo in enumerate(photos):
            self._progress(step, len(photos), f"{what}: segmenting")
            asked = self._asked(photo)
            if not asked:
                continue
            _, rgb, frame = self._encode(photo)
            for column, predict in columns.items():
                maps, numbers = predict(photo, asked)
                compared = self._compare(maps, frame, photo, numbers)
                counts[column].add(*compared)
                if self.options.crf:
                    compared = self._compare(refine(maps, rgb, self.options.crf), frame, photo, numbers)
                    counts[column + " + CRF"].add(*compared)
            alone = _Counts(len(self.dataset.classes))
            alone.add(*compared)  # the last column's, refined if any is
            self._ranked.append((alone.score().mean, photo))
        self._progress(len(photos), len(photos), f"{what}: segmenting")
        return {column: count.score() for column, count in counts.items()}

    def _interference(self, photos: Sequence[Photo], adapters: Mapping[int, Adapter], what: str) -> dict[str, Score]:
        """What teaching one category does to the others: every class of every photo taught alone, itself not scored."""
        counts = {column: _Counts(len(self.dataset.classes)) for column in ("words", "another taught")}
        for step, photo in enumerate(photos):
            self._progress(step, len(photos), f"{what}: segmenting")
            asked = self._asked(photo)
            for number in {number for number in asked if number in adapters}:
                for column, count in counts.items():
                    taught = {number: adapters[number]} if column != "words" else {}
                    maps, numbers = self._attention(photo, asked, taught)
                    count.add(*self._compare(maps, self._encode(photo)[2], photo, numbers), but=number)
        self._progress(len(photos), len(photos), f"{what}: segmenting")
        return {column: count.score() for column, count in counts.items()}

    def _asked(self, photo: Photo) -> tuple[int, ...]:
        if self.options.prompts == "all":
            return tuple(range(1, len(self.dataset.classes)))
        return photo.classes

    def _compare(
        self, maps: Tensor, frame: Frame, photo: Photo, numbers: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true class numbers, both at the photo's size or both at the network's input."""
        labels = photo.read_labels()
        if self.options.size == "input":
            return np.array(numbers)[maps.argmax(dim=0).cpu().numpy()], labels_to_input(labels, frame, outside=IGNORE)
        return np.array(numbers)[to_photo(maps, frame).argmax(dim=0).cpu().numpy()], labels

    def _encode(self, photo: Photo) -> tuple[Tensor, Tensor, Frame]:
        """Image tokens, input and frame of a photo.

        The latest photo's are kept for the next column, and with several seeds those of the first photos, as many as
        there is room for, for the next pass; the others' are made anew.
        """
        encoded = self._latest[1] if self._latest and self._latest[0] == photo.id else self._kept.get(photo.id)
        if encoded is None:
            self._latest = None  # before the next are made: two photos' at once take twice the memory
            encoded = self._read(photo)
            if encoded.bytes <= self._room:
                self._kept[photo.id] = encoded
                self._room -= encoded.bytes
        self._latest = (photo.id, encoded)
        return encoded.tokens, encoded.rgb.float() / 255, encoded.frame

    def _read(self, photo: Photo) -> _Encoded:
        try:
            rgb, frame = self.backbone.preprocess(photo.read())
        except (OSError, UnidentifiedImageError) as error:
            raise InvalidInputError(f"{photo.image} can't be read: {error}.") from error
        return _Encoded(encode(self.backbone, rgb), (rgb * 255).round().to(torch.uint8), frame)

    def _words(self, photo: Photo, asked: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        return self._attention(photo, asked, {})

    def _attention(
        self, photo: Photo, asked: Sequence[int], adapters: Mapping[int, Adapter]
    ) -> tuple[Tensor, tuple[int, ...]]:
        queries = [Query((self.dataset.classes[number],), adapters.get(number)) for number in asked]
        found = class_map(
            self.backbone,
            self._encode(photo)[0],
            queries,
            layers=self.layers,
            background=self.options.background,
            least=LEAST,
            second_look=self.options.second_look,
        )
        if self.options.tiles:
            found = look_closer(
                self.backbone,
                found,
                self._encode(photo)[2],
                lambda: self._see_tiles(photo),
                queries,
                layers=self.layers,
                background=self.options.background,
                second_look=self.options.second_look,
            )
        return found.probabilities, tuple((0, *asked)[number] for number in found.classes)

    def _see_tiles(self, photo: Photo) -> list[SeenTile]:
        """A photo's parts; the latest photo's are kept for the next column."""
        if self._latest_tiles is None or self._latest_tiles[0] != photo.id:
            self._latest_tiles = None
            seen = see_tiles(self.backbone, photo.read(), lambda _, rgb: encode(self.backbone, rgb))
            self._latest_tiles = (photo.id, seen)
        return self._latest_tiles[1]

    def _independent(self, supports: dict[int, list[Photo]]) -> Predict:
        """An adapter per class, each tuned alone."""
        adapters = self._adapters(supports)
        return lambda photo, asked: self._attention(photo, asked, adapters)

    def _adapters(self, supports: dict[int, list[Photo]]) -> dict[int, Adapter]:
        """The adapters that are better than the words on their own examples."""
        adapters: dict[int, Adapter] = {}
        for step, (number, photos) in enumerate(supports.items()):
            self._progress(step, len(supports), "tuning")
            adapters[number] = self._tune(number, photos)
        return {number: adapter for number, adapter in adapters.items() if adapter.tensors}

    def _tune(self, number: int, photos: Sequence[Photo]) -> Adapter:
        name = self.dataset.classes[number]
        names = [other for index, other in enumerate(self.dataset.classes) if index not in (0, number)]
        others = random.Random(number).sample(names, min(self.options.recipe.others, len(names)))
        tuning = CategoryTuning(
            self.backbone,
            [self._shot(photo, number) for photo in photos],
            [name],
            background=free_background(self.options.background, [name]),
            others=others,
            layers=self.layers,
            recipe=self.options.recipe,
        )
        for _ in range(self.options.recipe.steps):
            tuning.step()
        return tuning.adapter(name, version=1, created_at="")

    def _shot(self, photo: Photo, number: int) -> Shot:
        tokens, _, frame = self._encode(photo)
        labels = photo.read_labels()
        binary = np.where(labels == IGNORE, IGNORE, labels == number).astype(np.uint8)
        on_input = torch.from_numpy(labels_to_input(binary, frame, outside=IGNORE)).long()
        return shot(self.backbone, tokens, on_input, label_scale=self.options.recipe.label_scale)

    def _joint(self, supports: dict[int, list[Photo]], seed: int) -> Predict:
        """The authors' way: every class in one set of parameters, which the background's prompts use too."""
        names = [[name] for name in self.dataset.classes[1:]]
        background = free_background(self.options.background, self.dataset.classes[1:])
        prompts = prompt_set(background, names)
        photos = list({photo.id: photo for support in supports.values() for photo in support}.values())
        random.Random(seed).shuffle(photos)
        tokens, labels = zip(*map(self._support, photos), strict=True)
        tuning = JointTuning(
            self.backbone,
            tokens,
            labels,
            text=self.backbone.tokenize(prompts.words),
            prompts=prompts,
            layers=self.layers,
            recipe=self.options.recipe,
        )
        for step in range(self.options.joint_epochs):
            for done, _ in enumerate(tuning.epoch()):
                self._progress(done, (len(photos) + 1) // 2, f"tuning jointly, pass {step + 1}")

        def predict(photo: Photo, asked: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
            here = prompt_set(free_background(self.options.background, [self.dataset.classes[n] for n in asked]),
                              [names[number - 1] for number in asked])  # fmt: skip
            tokens, text = self._encode(photo)[0], self.backbone.tokenize(here.words)
            scores = tuning.scores(tokens, text, here)
            scores, grid_hw, corners = finest_scores(
                self.backbone, tokens, scores, [None] * len(scores), second_look=self.options.second_look
            )
            size_hw = (self.backbone.input_size,) * 2
            return normalise(upsample(scores, grid_hw, size_hw, corners=corners)), (0, *asked)

        return predict

    def _support(self, photo: Photo) -> tuple[Tensor, Tensor]:
        """Image tokens and labels of a photo that is learned from, both as the network takes them."""
        tokens, _, frame = self._encode(photo)
        return tokens, torch.from_numpy(labels_to_input(photo.read_labels(), frame, outside=IGNORE)).long()

    def _prototype(self, supports: dict[int, list[Photo]]) -> Predict:
        grid = self.backbone.patch_grid_hw
        rows = {
            number: prototypes([self._shot(photo, number) for photo in photos], grid)
            for number, photos in supports.items()
        }
        side = self.backbone.input_size

        def predict(photo: Photo, asked: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
            taught = tuple(number for number in asked if number in rows)
            if not taught:
                return torch.ones(1, side, side), (0,)
            features = self.backbone.patch_features(self._encode(photo)[0])
            found = prototype_map(features, [rows[n] for n in taught], grid_hw=grid, size_hw=(side, side))
            return found, (0, *taught)

        return predict


class _Counts:
    """Pixels of intersection, of truth and of prediction per class."""

    def __init__(self, classes: int) -> None:
        self._hit, self._true, self._predicted = np.zeros((3, classes), np.int64)

    def add(self, predicted: np.ndarray, labels: np.ndarray, *, but: int | None = None) -> None:
        """Count a photo, all classes but one."""
        known = labels != IGNORE
        for total, numbers in (
            (self._hit, labels[known & (predicted == labels)]),
            (self._true, labels[known]),
            (self._predicted, predicted[known]),
        ):
            count = np.bincount(numbers, minlength=len(total))
            if but is not None:
                count[but] = 0
            total += count

    def score(self) -> Score:
        union = self._true + self._predicted - self._hit
        return Score({int(number): float(self._hit[number] / union[number]) for number in np.flatnonzero(self._true)})


def rows(report: Report) -> Iterator[tuple[str, dict[str, float]]]:
    """Per class its name and its score in each column."""
    columns = {column: report.by_class(column) for column in report.scores}
    for number in sorted({number for scores in columns.values() for number in scores}):
        yield report.classes[number], {c: scores[number] for c, scores in columns.items() if number in scores}
