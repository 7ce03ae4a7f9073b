"""Regions of Label Studio: masks written as regions of a control, and regions read as masks.

Coordinates are percent of the photo's width and height after EXIF rotation.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from app.images.masks import decode_mask
from app.masks import MalformedMaskError, Mask
from app.masks.brush import brush_to_mask, mask_to_brush
from app.masks.coordinates import finite_number
from app.masks.pictures import mask_to_alpha_png
from app.masks.polygons import mask_to_polygons, polygons_to_mask

from .config import Control, Label

Json = dict[str, Any]

# Parts of a mask with less than this share of its area are no objects of their own, but frayed edges: an outline or a
# box for each would only have to be deleted by hand. Brush and bitmask have every pixel.
_LEAST_PART = 0.02

_PNG_URL = "data:image/png;base64,"


@dataclass(frozen=True)
class Form:
    """How the regions of one kind hold a mask.

    Attributes:
        write: Mask to the values of its regions.
        read: Value of a region, and (height, width) of the photo, to a mask. Raises MalformedMaskError or AppError.
    """

    write: Callable[[Mask], list[Json]]
    read: Callable[[Mapping[str, Any], tuple[int, int]], Mask]


def regions_of(control: Control, label: Label, mask: Mask, *, score: float) -> list[Json]:
    """The regions that mark a mask.

    Args:
        control: The control that has the label.
        label: The label.
        mask: `[height, width]`, not empty.
        score: Probability that the photo shows the category.
    """
    height, width = mask.shape
    return [
        {
            "id": uuid4().hex[:10],
            "from_name": control.name,
            "to_name": control.photo,
            "type": control.kind,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score,
            "readonly": False,
            "value": {**value, control.kind: [label.text]},
        }
        for value in FORMS[control.kind].write(mask)
    ]


def mask_of(region: Mapping[str, Any], kind: str, photo_hw: tuple[int, int]) -> Mask:
    """The mask that a region marks.

    Args:
        region: Unchecked JSON.
        kind: Its type.
        photo_hw: (height, width) of the photo.

    Raises:
        MalformedMaskError: If it can't be read.
        AppError: If a picture in it can't be read.
    """
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise MalformedMaskError("expected a region with a value")
    return FORMS[kind].read(value, photo_hw)


def _write_brush(mask: Mask) -> list[Json]:
    return [{"format": "rle", "rle": mask_to_brush(mask)}]


def _read_brush(value: Mapping[str, Any], photo_hw: tuple[int, int]) -> Mask:
    return brush_to_mask(value.get("rle"), photo_hw)


def _write_bitmask(mask: Mask) -> list[Json]:
    return [{"imageDataURL": _PNG_URL + b64encode(mask_to_alpha_png(mask)).decode("ascii")}]


def _read_bitmask(value: Mapping[str, Any], photo_hw: tuple[int, int]) -> Mask:
    url = value.get("imageDataURL")
    if not isinstance(url, str) or not url.startswith(_PNG_URL):
        raise MalformedMaskError("expected a bitmask as a data URL of a PNG")
    try:
        raw = b64decode(url.removeprefix(_PNG_URL), validate=True)
    except ValueError as error:
        raise MalformedMaskError("expected a bitmask in base64") from error
    return decode_mask(raw, photo_hw=photo_hw, max_pixels=math.prod(photo_hw))


def _write_polygons(mask: Mask) -> list[Json]:
    return [{"points": (ring * 100 / _side_xy(mask)).round(4).tolist(), "closed": True} for ring in _outlines(mask)]


def _read_polygon(value: Mapping[str, Any], photo_hw: tuple[int, int]) -> Mask:
    points = value.get("points")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise MalformedMaskError("expected a polygon of points [x, y]")
    sides = photo_hw[::-1]
    ring = [finite_number(share) * side / 100 for point in points for share, side in zip(point, sides, strict=True)]
    return polygons_to_mask([ring], photo_hw)


def _write_boxes(mask: Mask) -> list[Json]:
    boxes = []
    for ring in _outlines(mask):
        corner = ring.min(axis=0) * 100 / _side_xy(mask)
        size = np.ptp(ring, axis=0) * 100 / _side_xy(mask)
        x, y, width, height = (round(float(number), 4) for number in (*corner, *size))
        boxes.append({"x": x, "y": y, "width": width, "height": height, "rotation": 0})
    return boxes


def _read_box(value: Mapping[str, Any], photo_hw: tuple[int, int]) -> Mask:
    """A box, turned clockwise around its first corner."""
    photo_height, photo_width = photo_hw
    x, width = (finite_number(value.get(name)) * photo_width / 100 for name in ("x", "width"))
    y, height = (finite_number(value.get(name)) * photo_height / 100 for name in ("y", "height"))
    turn = math.radians(finite_number(value.get("rotation", 0)))
    corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    ring = [
        number
        for right, down in corners
        for number in (
            x + right * math.cos(turn) - down * math.sin(turn),
            y + right * math.sin(turn) + down * math.cos(turn),
        )
    ]
    return polygons_to_mask([ring], photo_hw)


def _outlines(mask: Mask) -> list[np.ndarray]:
    """Outlines `[corner, (x, y)]` in pixels of the parts that are large enough, at least of one."""
    rings = [np.array(polygon).reshape(-1, 2) for polygon in mask_to_polygons(mask)]
    areas = [_area(ring) for ring in rings]
    least = min(_LEAST_PART * int(mask.sum()), max(areas))
    return [ring for ring, area in zip(rings, areas, strict=True) if area >= least]


def _area(ring: np.ndarray) -> float:
    following = np.roll(ring, -1, axis=0)
    return abs(float((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum())) / 2


def _side_xy(mask: Mask) -> np.ndarray:
    return np.array(mask.shape[::-1])


FORMS: Mapping[str, Form] = {
    "brushlabels": Form(_write_brush, _read_brush),
    "bitmasklabels": Form(_write_bitmask, _read_bitmask),
    "polygonlabels": Form(_write_polygons, _read_polygon),
    "rectanglelabels": Form(_write_boxes, _read_box),
}
