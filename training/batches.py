"""Batches of augmented samples, made in a thread beside the training."""

import queue
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .losses import Vocabulary
from .photos import Labels, Photo, Sample, load, mosaic, paste, vary
from .stages import Stage

# Photos of one collection, grouped by category.
Groups = list[list[Photo]]

# Share of the samples into which an object of another photo is pasted.
_PASTED = 0.4


@dataclass(frozen=True)
class Collections:
    """Training photos by collection."""

    coco: list[Photo]
    voc: list[Photo]
    named: list[Photo]
    own: list[Photo] = field(default_factory=list)


@dataclass(frozen=True)
class Material:
    """Training data.

    Attributes:
        collections: The photos.
        guessed: Label maps of the photos without a mask file: pseudo-labels of those that have only a class, and the
            masks, of any collection but COCO, to which a detector has added regions (`detected`).
        vocabulary: The names and other words.
    """

    collections: Collections
    guessed: dict[Path, Labels]
    vocabulary: Vocabulary


def batches(material: Material, stage: Stage, seed: int) -> Iterator[list[Sample]]:
    """Batches of a stage; if the stage trains masks, they consist of pairs of photos of the same category."""
    ready: queue.Queue[list[Sample] | BaseException] = queue.Queue(4)

    def produce() -> None:
        try:
            make_all()
        except BaseException as error:  # raised again in the thread that waits for the batch
            ready.put(error)

    def make_all() -> None:
        rng = random.Random(seed + 1)
        shown = material.collections
        kinds = [_by_category(photos) for photos in (shown.coco, shown.voc, shown.named, shown.own)]
        make = _pair if stage.together else _one
        for _ in range(stage.steps):
            samples: list[Sample] = []
            while len(samples) < stage.batch:
                samples += make(kinds, material.guessed, stage, rng)
            ready.put(samples[: stage.batch])

    threading.Thread(target=produce, daemon=True).start()
    for _ in range(stage.steps):
        batch = ready.get()
        if isinstance(batch, BaseException):
            raise batch
        yield batch


def _by_category(photos: Sequence[Photo]) -> Groups:
    groups: dict[str, list[Photo]] = {}
    for photo in photos:
        for name in {region.names[0]: None for region in photo.regions.values()}:
            groups.setdefault(name, []).append(photo)
    return list(groups.values())


def _one(kinds: list[Groups], guessed: dict[Path, Labels], stage: Stage, rng: random.Random) -> list[Sample]:
    if rng.random() < stage.mosaics:
        return [_mosaic(kinds[:2], guessed, rng)]
    (groups,) = rng.choices(kinds, stage.shares)
    return [_sample(rng.choice(_group(groups, rng)), kinds[0], guessed, rng)]


def _pair(kinds: list[Groups], guessed: dict[Path, Labels], stage: Stage, rng: random.Random) -> list[Sample]:
    (groups,) = rng.choices(kinds, stage.shares)
    group = _group([group for group in groups if len(group) > 1], rng)
    exact = kinds[rng.random() < stage.shares[1]]
    pair = [_sample(photo, exact, guessed, rng) for photo in rng.sample(group, 2)]
    return [pair[0], _mosaic(kinds[:2], guessed, rng) if rng.random() < 2 * stage.mosaics else pair[1]]


def _group(groups: Groups, rng: random.Random) -> list[Photo]:
    """Draw a random category in 60 % of the calls, else that of a random photo, so that rare ones are seen too."""
    return rng.choice(groups) if rng.random() < 0.6 else rng.choices(groups, [len(group) for group in groups])[0]


def _sample(photo: Photo, exact: Groups, guessed: dict[Path, Labels], rng: random.Random) -> Sample:
    sample = load(photo, guessed.get(photo.image))
    if rng.random() < _PASTED:
        pasted = rng.choice(rng.choice(exact))
        sample = paste(sample, load(pasted, guessed.get(pasted.image)), rng)
    return vary(sample, rng)


def _mosaic(kinds: list[Groups], guessed: dict[Path, Labels], rng: random.Random) -> Sample:
    """A mosaic of photos with exact masks: three of COCO and one of VOC."""
    photos = [rng.choice(_group(kinds[number == 0], rng)) for number in range(4)]
    parts = [vary(load(photo, guessed.get(photo.image)), rng) for photo in photos]
    rng.shuffle(parts)
    return mosaic(parts)
