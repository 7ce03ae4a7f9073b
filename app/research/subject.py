"""The model and the photos of one measurement, with a memory of encoded photos; every protocol works on it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from app.errors import InvalidInputError
from app.method.adapter import Adapter
from app.method.backbone import Backbone, EncodedImage
from app.method.frame import labels_to_input, mask_to_input
from app.method.pipeline import Encode, FramedImage, FramedPhoto, Pipeline, encode_one
from app.method.prediction import ClassMap
from app.method.prompts import BACKGROUND_WORDS, Query
from app.method.refinement import crf, unrefined
from app.method.shot import IGNORE, Shot
from app.method.tuning import TUNED, Recipe

from .dataset import Dataset, LabelledPhoto

Protocol = Literal["words", "one-shot", "joint", "interference", "open", "click"]
Prompts = Literal["present", "all"]
Progress = Callable[[int, int, str], None]
# Class probabilities of a photo for the classes asked for; `classes` are the data set's numbers.
Predict = Callable[[LabelledPhoto, Sequence[int]], ClassMap]

# A support must show its class: at least this share of the photo.
_SUPPORT_AREA = 0.005
# Encoded photos that are kept for the next seeds; one takes megabytes, with a large model tens of them.
_MAX_KEPT_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Options:
    """Settings of a measurement; see `python -m app evaluate --help`.

    Attributes:
        crf: Measure also with the CRF; interference is measured without.
        joint_epochs: Passes of `joint` over its supports (the authors: 5 on PASCAL, 2 on COCO).
        categories: Categories that `open` draws per seed; None for all.
        single: True to request each of them alone.
        min_presence: As in `Pipeline`.
    """

    protocol: Protocol = "words"
    method: Literal["attention", "prototype"] = "attention"
    prompts: Prompts = "present"
    seeds: int = 1
    shots: int = 1
    joint_epochs: int = 2
    categories: int | None = 20
    single: bool = False
    min_presence: float = 0.0
    size: Literal["original", "input"] = "original"
    crf: bool = True
    use_mask_decoder: bool = True
    use_tiles: bool = False
    layers: tuple[int, ...] | None = None
    background: tuple[str, ...] = BACKGROUND_WORDS
    recipe: Recipe = field(default_factory=lambda: TUNED)


class Subject:
    """See the module.

    Args:
        backbone: A loaded model.
        dataset: Photos with labels.
        options: Protocol and settings.
        progress: Called with (step, steps, activity) as work goes on.
    """

    def __init__(self, backbone: Backbone, dataset: Dataset, options: Options, progress: Progress) -> None:
        _check_classes(dataset)
        self.backbone, self.dataset, self.options, self.progress = backbone, dataset, options, progress
        self.layers = options.layers or backbone.default_layers
        self.pipeline = Pipeline(
            backbone,
            layers=self.layers,
            background=options.background,
            use_mask_decoder=options.use_mask_decoder,
            use_tiles=options.use_tiles,
            refinement=crf if options.crf else unrefined,
            min_presence=options.min_presence,
        )
        self._read: tuple[str, np.ndarray, FramedPhoto] | None = None
        self._kept: dict[tuple[str, int], EncodedImage] = {}
        self._latest: dict[tuple[str, int], EncodedImage] = {}
        self._room = _MAX_KEPT_BYTES if options.seeds > 1 and options.protocol != "words" else 0

    def asked(self, photo: LabelledPhoto) -> tuple[int, ...]:
        """Classes asked for in a photo."""
        return tuple(range(1, len(self.dataset.classes))) if self.options.prompts == "all" else photo.classes

    def supports(self, seed: int) -> dict[int, list[LabelledPhoto]]:
        """Per class the photos it is taught from; of every class a photo is left to measure it on.

        Raises:
            InvalidInputError: If no class can be taught.
        """
        order = list(self.dataset.photos)
        random.Random(seed).shuffle(order)
        shown: dict[str, set[int]] = {}
        for photo in order:
            shown.setdefault(photo.identity, set()).update(photo.classes)
        left = Counter(number for classes in shown.values() for number in classes)
        taken: set[str] = set()
        supports = {}
        for number in range(1, len(self.dataset.classes)):
            having = {photo.identity: photo for photo in order if number in photo.classes}.values()
            found = (photo for photo in having if _take(photo, number, taken, left, shown))
            if len(having) > self.options.shots and (chosen := list(islice(found, self.options.shots))):
                supports[number] = chosen
        if not supports:
            raise InvalidInputError(
                "No category has a photo to be taught from and another to be measured on: give more photos."
            )
        return supports

    def see(self, photo: LabelledPhoto) -> FramedImage:
        """A whole photo as the network takes it, encoded."""
        framed = self.framed(photo)
        return FramedImage(framed.rgb, framed.frame, self._encoder(photo)(framed.rgb, 0))

    def framed(self, photo: LabelledPhoto) -> FramedPhoto:
        """A photo as the network takes it."""
        return self._pixels(photo)[1]

    def predict(
        self, photo: LabelledPhoto, asked: Sequence[int], adapters: Mapping[int, Adapter] | None = None
    ) -> ClassMap:
        """The pipeline's class map before refinement, for classes with these adapters."""
        queries = [Query((self.dataset.classes[number],), (adapters or {}).get(number)) for number in asked]
        _, found = self.pipeline.find(self._pixels(photo)[0], queries, encode=self._encoder(photo))
        return replace(found, classes=tuple((0, *asked)[number] for number in found.classes))

    def labels(self, photo: LabelledPhoto) -> np.ndarray:
        """The labels of a photo, uint8 [height, width].

        Raises:
            InvalidInputError: If they can't be read, are no class numbers, or have another size than the photo.
        """
        labels, hw = photo.read_labels(), self.framed(photo).frame.photo_hw
        if labels.shape != hw:
            sizes = [f"{width} × {height}" for height, width in (labels.shape, hw)]
            raise InvalidInputError(
                f"The mask of {photo.image} has {sizes[0]} pixels, the photo {sizes[1]}: both need the same size, the "
                "photo as its EXIF rotation turns it."
            )
        return labels

    def refined(self, class_map: ClassMap, photo: LabelledPhoto, *, decoded: bool = True) -> ClassMap:
        """The class map with refined edges, if the measurement refines.

        Args:
            class_map: By `predict`, or by a protocol of its own.
            photo: Its photo.
            decoded: False if no mask decoder made it, though the measurement uses one.
        """
        pipeline = self.pipeline if decoded else replace(self.pipeline, use_mask_decoder=False)
        return pipeline.refine(class_map, self.framed(photo).rgb)

    def shot(self, photo: LabelledPhoto, number: int) -> Shot:
        """A photo as an example of a class."""
        image, labels = self.see(photo), self.labels(photo)
        share = mask_to_input(labels == number, image.frame, outside=IGNORE)
        share[torch.from_numpy(labels_to_input(labels, image.frame, outside=IGNORE)) == IGNORE] = IGNORE
        return Shot.of(self.backbone, image.encoded, share)

    def _pixels(self, photo: LabelledPhoto) -> tuple[np.ndarray, FramedPhoto]:
        """A photo's pixels, and what the network takes; the latest photo's are kept for the next column."""
        if self._read is None or self._read[0] != photo.id:
            rgb = photo.read()
            self._read = (photo.id, rgb, FramedPhoto(*self.backbone.preprocess(rgb)))
        return self._read[1:]

    def _encoder(self, photo: LabelledPhoto) -> Encode:
        """Encodes the network inputs of a photo: the whole, its tiles, or its pieces.

        Those of the latest photo are kept for the next column, and with several seeds those of the first photos, as
        many as there is room for, for the next pass; the others are encoded again.
        """

        def encode(rgb: Float[Tensor, "3 size size"], number: int) -> EncodedImage:
            key = (photo.id, number)
            found = self._kept.get(key) or self._latest.get(key)
            if found is None:
                # Before the next is made: two photos' at once take twice the memory.
                self._latest = {key: image for key, image in self._latest.items() if key[0] == photo.id}
                found = encode_one(self.backbone, rgb)
                if found.nbytes <= self._room:
                    self._kept[key] = found
                    self._room -= found.nbytes
                else:
                    self._latest[key] = found
            return found

        return encode


def _check_classes(dataset: Dataset) -> None:
    """Refuse a data set of which nothing can be asked."""
    for photo in dataset.photos:
        if max(photo.classes, default=0) >= len(dataset.classes):
            raise InvalidInputError(
                f"{photo.image} shows class {max(photo.classes)}, and the data set has the classes 0 to "
                f"{len(dataset.classes) - 1}."
            )
    if not any(photo.classes for photo in dataset.photos):
        raise InvalidInputError(
            "No photo shows a class: in a mask a pixel has the number of its class, from 1 on; 0 is the background and "
            f"{IGNORE} is ignored."
        )


def _take(
    photo: LabelledPhoto, number: int, taken: set[str], left: Counter[int], shown: Mapping[str, Collection[int]]
) -> bool:
    """Take a photo as a support of a class, if it shows enough of it and is no class's last one.

    Args:
        photo: The photo.
        number: The class.
        taken: Identities of all supports; the photo's is added.
        left: Per class its photos that are no supports; the photo's classes are counted down.
        shown: Classes that each photo shows, under all its ids.
    """
    if photo.identity not in taken and any(left[each] == 1 for each in shown[photo.identity]):
        return False
    if (photo.read_labels() == number).mean() < _SUPPORT_AREA:
        return False
    if photo.identity not in taken:
        taken.add(photo.identity)
        left.subtract(shown[photo.identity])
    return True
