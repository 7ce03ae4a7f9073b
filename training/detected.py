"""Labels by an object detector: masks of COCO's categories in photos that lack them.

A detector that was trained on COCO says which of its categories a photo shows, and in which boxes. The network, which
is told these names, marks them; what it marks inside the boxes becomes a label. So photos with one class, or with the
masks of few, show many, and what the detector is unsure of is no negative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from tqdm import tqdm

from app.method.backbone import Backbone
from app.method.crf import CrfParameters, conv_crf
from app.method.frame import imagenet_normalise, to_photo
from app.method.pipeline import Pipeline
from app.method.prompts import Query

from .photos import UNKNOWN, Labels, Photo, Region
from .vocabulary import excluded_with, names_of, rivals_of

# Scores from which a detection is certain, and from which its category is no negative.
_CERTAIN, _POSSIBLE = 0.5, 0.08
# Probability by the network above which a pixel inside a box is labelled.
_SURE = 0.5
# Boxes are enlarged by this share of their sides.
_MARGIN = 0.06
# Least share of its boxes that a category must cover; below it, the boxes are unknown.
_FILLED = 0.2


class Detection(NamedTuple):
    """A box with the name of its category; `x0, y0, x1, y1` in shares of the photo's sides."""

    name: str
    score: float
    x0: float
    y0: float
    x1: float
    y1: float


Detections = Mapping[Path, Sequence[Detection]]


def label_detected(
    model: Backbone,
    photos: Sequence[Photo],
    labels: dict[Path, Labels],
    detections: Detections,
    *,
    imagenet: list[str],
    layers: tuple[int, ...],
) -> tuple[list[Photo], dict[Path, Labels]]:
    """Photos with the detected categories added to their regions, and their label maps.

    Args:
        model: Marks what was detected.
        photos: Photos with a mask, or with a pseudo-label.
        labels: The pseudo-labels.
        detections: By image file.
        imagenet: Names of the ImageNet classes.
        layers: Layers of the model that are read.
    """
    pipeline = Pipeline(model, layers=layers, min_relative_score=0.0)
    out: list[Photo] = []
    added = dict(labels)
    for photo in tqdm(photos, desc="labels of detections", unit="photo", mininterval=20):
        found = detections.get(photo.image, ())
        known = {name for region in photo.regions.values() for name in (*region.names, *region.related)}
        certain = sorted({one.name for one in found if one.score >= _CERTAIN} - known)
        possible = {one.name for one in found if one.score >= _POSSIBLE} - known - set(certain)
        if certain:
            values = _read(photo, labels)
            marked = _mark(pipeline, photo, certain, [one for one in found if one.name in certain])
            photo, values, unmarked = _joined(photo, values, marked, certain, imagenet)
            possible |= unmarked
            added[photo.image] = values
        uncertain = {other for name in possible for other in excluded_with(name, imagenet)}
        out.append(replace(photo, uncertain=photo.uncertain | uncertain))
    return out, added


def _read(photo: Photo, labels: Mapping[Path, Labels]) -> Labels:
    if photo.labels is None:
        return labels[photo.image].copy()
    with Image.open(photo.labels) as file:
        return np.array(file)


class _Marked(NamedTuple):
    """What the network marks of a detected category, and its boxes."""

    sure: Bool[np.ndarray, "height width"]
    boxes: Bool[np.ndarray, "height width"]


@torch.no_grad()
def _mark(pipeline: Pipeline, photo: Photo, names: Sequence[str], found: Sequence[Detection]) -> dict[str, _Marked]:
    """What the network marks of each detected category within its boxes."""
    with Image.open(photo.image) as file:
        rgb = np.array(file.convert("RGB"))
    # The photo's own things compete, so that none of them is taken for what was detected.
    own = [region.names for region in photo.regions.values()]
    seen = pipeline.see(rgb)
    queries = [*(Query((name,)) for name in names), *(Query(words) for words in own)]
    probabilities = pipeline.class_map(seen.encoded, queries).probabilities
    refined = to_photo(conv_crf(probabilities, imagenet_normalise(seen.rgb), CrfParameters()), seen.frame).numpy()
    height, width = rgb.shape[:2]
    marked = {}
    for row, name in enumerate(names, start=1):
        boxes = np.zeros((height, width), bool)
        for one in found:
            if one.name == name and one.score >= _POSSIBLE:
                x, y = _MARGIN * (one.x1 - one.x0), _MARGIN * (one.y1 - one.y0)
                top, bottom = (round(height * v) for v in (max(0, one.y0 - y), min(1, one.y1 + y)))
                left, right = (round(width * v) for v in (max(0, one.x0 - x), min(1, one.x1 + x)))
                boxes[top:bottom, left:right] = True
        marked[name] = _Marked((refined[row] > _SURE) & boxes, boxes)
    return marked


def _joined(
    photo: Photo, values: Labels, marked: Mapping[str, _Marked], names: Sequence[str], imagenet: list[str]
) -> tuple[Photo, Labels, set[str]]:
    """The photo with the marked categories, its label map, and the categories that were not marked well enough.

    Labels there before are kept: only background and unknown pixels change.
    """
    regions, unmarked = dict(photo.regions), set()
    for name in names:
        free = (values == 0) | (values == UNKNOWN)
        sure, boxes = (one & free for one in marked[name])
        values[boxes] = np.where(sure[boxes], values[boxes], UNKNOWN)
        if sure.sum() < _FILLED * boxes.sum() or not sure.any():
            unmarked.add(name)
            values[boxes] = UNKNOWN
            continue
        value = next(number for number in range(1, UNKNOWN) if number not in regions)
        regions[value] = Region(names_of(name), frozenset(excluded_with(name, imagenet)))
        values[sure] = value
    rivals = (*photo.rivals, *rivals_of(set(names) - unmarked))
    return replace(photo, labels=None, regions=regions, rivals=tuple(dict.fromkeys(rivals))), values, unmarked
