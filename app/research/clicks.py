"""Protocol `click`: objects of labelled photos are clicked, and each next click is where the error is largest."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidInputError
from app.masks import Mask
from app.masks.parts import parts_of
from app.method.clicks import Click, probability_of
from app.method.refinement import crf, unrefined
from app.method.shot import IGNORE

from .dataset import Dataset, LabelledPhoto
from .subject import Subject

# A part of a mask is an object if it has this share of the photo.
MIN_AREA = 0.005
# Numbers of clicks after which the masks are compared, and the most objects.
CLICKS, MAX_OBJECTS = (1, 3, 5), 150

# The mask of the object of some clicks of a photo.
Propose = Callable[[LabelledPhoto, Sequence[Click]], Mask]


@dataclass(frozen=True)
class Thing:
    """An object to click: the number of its class, and its mask `[height, width]`."""

    photo: LabelledPhoto
    number: int
    mask: Mask
    ignored: Mask


def things_of(photo: LabelledPhoto) -> list[Thing]:
    """The connected parts of a photo's masks that are large enough."""
    labels = photo.read_labels()
    return [
        Thing(photo, number, part.on(labels.shape), labels == IGNORE)
        for number in photo.classes
        for part in parts_of(labels == number)
        if part.area >= MIN_AREA * labels.size
    ]


def sample(dataset: Dataset, *, count: int = MAX_OBJECTS, seed: int = 0) -> list[Thing]:
    """A draw of objects, photo by photo. Of the others no mask is kept: of thousands of photos they are gigabytes."""
    places = [(photo, place) for photo in dataset.photos for place in range(len(things_of(photo)))]
    chosen = sorted(random.Random(seed).sample(range(len(places)), min(count, len(places))))
    return [things_of(photo)[place] for photo, place in (places[index] for index in chosen)]


def innermost(mask: Mask) -> tuple[tuple[float, float], float]:
    """The pixel that is farthest from everything else; the photo's edges are something else.

    Args:
        mask: `[height, width]`, not empty.

    Returns:
        (x, y) of its centre, and its distance.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = rows[0], columns[0]
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    # Squared distance along the row, then the least over rows that are near enough: a Euclidean distance transform.
    along = np.where(padded, np.inf, 0.0).astype(np.float32)
    for column in range(1, padded.shape[1]):
        along[:, column] = np.minimum(along[:, column], along[:, column - 1] + 1)
    for column in range(padded.shape[1] - 2, -1, -1):
        along[:, column] = np.minimum(along[:, column], along[:, column + 1] + 1)
    along **= 2
    squared = along.copy()
    for step in range(1, len(padded)):
        if step**2 >= squared.max():
            break
        np.minimum(squared[step:], along[:-step] + step**2, out=squared[step:])
        np.minimum(squared[:-step], along[step:] + step**2, out=squared[:-step])
    inner_row, inner_column = np.unravel_index(squared.argmax(), squared.shape)
    at = float(left + inner_column) - 0.5, float(top + inner_row) - 0.5
    return at, float(squared.max()) ** 0.5


def next_click(thing: Thing, found: Mask) -> Click | None:
    """A click in the middle of the largest error; None if there is none."""
    missed, excess = thing.mask & ~found, found & ~thing.mask & ~thing.ignored
    insets = [(innermost(error)[1] if error.any() else 0.0) for error in (missed, excess)]
    if not max(insets):
        return None
    inside = insets[0] >= insets[1]
    (x, y), _ = innermost(missed if inside else excess)
    return Click(x, y, inside=inside)


def iou(thing: Thing, found: Mask) -> float:
    """Overlap of an object with what was found, without the pixels to be ignored."""
    found = found & ~thing.ignored
    return float((thing.mask & found).sum() / (thing.mask | found).sum())


@dataclass(frozen=True)
class ClickReport:
    """Mean IoU of the objects by column and number of clicks."""

    photos: int
    objects: int
    ious: dict[str, dict[int, float]]


def measure(subject: Subject) -> ClickReport:
    """Click the same objects under every column.

    Raises:
        InvalidInputError: If there is no object, or a mask has another size than its photo.
    """
    things = sample(subject.dataset)
    if not things:
        raise InvalidInputError(f"No mask has a part of {MIN_AREA:.1%} of its photo: give more photos.")
    photos = {thing.photo.id: thing.photo for thing in things}
    for photo in photos.values():
        subject.labels(photo)  # of the right size, which takes the photo; the draw reads the masks alone
    ious = {name: clicked(things, propose, subject.progress) for name, propose in proposals(subject).items()}
    return ClickReport(len(photos), len(things), ious)


def clicked(things: Sequence[Thing], propose: Propose, progress: Callable[[int, int, str], None]) -> dict[int, float]:
    """Mean IoU by the number of clicks."""
    scores: dict[int, list[float]] = {count: [] for count in CLICKS}
    for step, thing in enumerate(things):
        progress(step, len(things), "clicking")
        clicks = [Click(*innermost(thing.mask)[0])]
        found = propose(thing.photo, clicks)
        for count in range(1, max(CLICKS) + 1):
            if count > 1 and (click := next_click(thing, found)):
                clicks.append(click)
                found = propose(thing.photo, clicks)
            if count in scores:
                scores[count].append(iou(thing, found))
    progress(len(things), len(things), "clicking")
    return {count: float(np.mean(values)) for count, values in scores.items()}


def proposals(subject: Subject) -> dict[str, Propose]:
    """What is compared: the masks as the service proposes them, without refinement, and without the mask decoder."""

    def by(*, refine: bool, use_mask_decoder: bool) -> Propose:
        def propose(photo: LabelledPhoto, clicks: Sequence[Click]) -> Mask:
            found = probability_of(
                subject.backbone,
                subject.see(photo),
                clicks,
                refinement=crf if refine else unrefined,
                use_mask_decoder=use_mask_decoder,
            )
            return np.asarray(found.numpy() >= 0.5)

        return propose

    columns = {"clicks": by(refine=False, use_mask_decoder=True)}
    if subject.options.crf:
        columns["clicks + CRF"] = by(refine=True, use_mask_decoder=True)
    columns["patches and colours"] = by(refine=False, use_mask_decoder=False)
    return columns
