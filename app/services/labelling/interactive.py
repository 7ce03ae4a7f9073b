"""Prompts that a person draws in Label Studio while it asks for a prediction: key points, boxes and brush strokes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.images.points import MAX_POINTS, Point
from app.masks import MalformedMaskError, Mask
from app.masks.coordinates import finite_number

from .config import Control, Label
from .regions import FORMS, mask_of

# Kinds whose regions hold a proposal pixel by pixel come first.
_KINDS = ("brushlabels", "bitmasklabels", "polygonlabels", "rectanglelabels")
# Points that stand for a stroke of the brush.
_STROKE_POINTS = 5
# Points around a box are this share of the photo's side away from it.
_MARGIN = 0.03


@dataclass
class Prompt:
    """What was drawn for one label of a photo.

    Attributes:
        control: The control that gets the proposal.
        label: Its label.
        points: Points on the object and beside it, in pixels.
        boxes: Masks of the boxes that the object is in.
    """

    control: Control
    label: Label
    points: list[Point] = field(default_factory=list)
    boxes: list[Mask] = field(default_factory=list)

    def cut(self, mask: Mask) -> Mask:
        """A proposal without what is outside of the boxes."""
        return mask & np.logical_or.reduce(self.boxes) if self.boxes else mask


def drawn_in(params: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The regions that a person drew, of the parameters of a prediction."""
    context = params.get("context") if params else None
    regions = context.get("result") if isinstance(context, Mapping) else None
    return [region for region in regions if isinstance(region, Mapping)] if isinstance(regions, list) else []


def prompts_of(
    regions: Sequence[Mapping[str, Any]], controls: Sequence[Control], photo_hw: tuple[int, int]
) -> list[Prompt]:
    """The prompts of a photo, by label; regions of labels that no control has are left out.

    Raises:
        MalformedMaskError: If a region can't be read.
        AppError: If a picture in it can't be read.
    """
    found: dict[str, Prompt] = {}
    for region in regions:
        kind, value = str(region.get("type", "")), region.get("value")
        labels = value.get(kind) if isinstance(value, Mapping) else None
        if not isinstance(labels, list) or not labels:
            continue
        of_photo = [control for control in controls if region.get("to_name", control.photo) == control.photo]
        target = _target(str(labels[0]), of_photo, drawn_with=region.get("from_name"))
        if target is None:
            continue
        prompt = found.setdefault(target[1].text, Prompt(*target))
        if kind == "rectanglelabels":
            _add_box(prompt, mask_of(region, kind, photo_hw))
        elif kind == "keypointlabels":
            prompt.points.append(_point(region, photo_hw))
        elif kind in FORMS:
            prompt.points += _points_on(mask_of(region, kind, photo_hw), inside=_is_positive(region))
    usable = [prompt for prompt in found.values() if any(point.inside for point in prompt.points)]
    for prompt in usable:
        prompt.points = sorted(prompt.points, key=lambda point: not point.inside)[:MAX_POINTS]
    return usable


def _target(text: str, controls: Sequence[Control], *, drawn_with: object) -> tuple[Control, Label] | None:
    """The control that gets the proposal for a label: rather another one than that which drew the prompt."""
    having = [(control, label) for control in controls for label in control.labels if label.text == text]
    having.sort(key=lambda pair: (pair[0].kind == "rectanglelabels", _KINDS.index(pair[0].kind)))
    others = [pair for pair in having if pair[0].name != drawn_with or pair[0].kind != "rectanglelabels"]
    return next(iter(others or having), None)


def _point(region: Mapping[str, Any], photo_hw: tuple[int, int]) -> Point:
    x, y = (
        min(max(finite_number(region["value"].get(name)), 0), 100) * side / 100
        for name, side in (("x", photo_hw[1]), ("y", photo_hw[0]))
    )
    return Point(x, y, _is_positive(region))


def _is_positive(region: Mapping[str, Any]) -> bool:
    return region.get("is_positive", True) not in (False, 0)


def _points_on(mask: Mask, *, inside: bool) -> list[Point]:
    """Some pixels of a stroke, spread evenly from left to right."""
    if not mask.any():
        raise MalformedMaskError("expected a region that marks a pixel of the photo")
    columns, rows = np.nonzero(mask.T)
    chosen = ((np.arange(_STROKE_POINTS) + 0.5) * len(rows) / _STROKE_POINTS).astype(int)
    return [Point(float(columns[at]) + 0.5, float(rows[at]) + 0.5, inside) for at in chosen]


def _add_box(prompt: Prompt, box: Mask) -> None:
    """The middle of a box is of the object, and what surrounds the box is not."""
    if not box.any():
        raise MalformedMaskError("expected a box that holds a pixel of the photo")
    height, width = box.shape
    rows, columns = np.nonzero(box)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    y, x = float(top + bottom) / 2, float(left + right) / 2
    around = [
        (x, top - _MARGIN * height),
        (x, bottom + _MARGIN * height),
        (left - _MARGIN * width, y),
        (right + _MARGIN * width, y),
    ]
    prompt.points.append(Point(x, y, True))
    prompt.points += [Point(float(u), float(v), False) for u, v in around if 0 <= u < width and 0 <= v < height]
    prompt.boxes.append(box)
