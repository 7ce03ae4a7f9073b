"""Reads the points that a caller clicked: JSON → points in pixels of the photo."""

from __future__ import annotations

import json
from typing import NamedTuple

from app.errors import InvalidInputError
from app.masks import MalformedMaskError
from app.masks.coordinates import finite_number

from .files import size_text

# Nobody clicks more often at one object, and every point costs time.
MAX_POINTS = 64
# Generous for their JSON, also if it is indented.
MAX_POINTS_CHARACTERS = 256 * MAX_POINTS


class Point(NamedTuple):
    """A point in pixels of the upright photo; `inside` is False for a point that is not of the object."""

    x: float
    y: float
    inside: bool


def parse_points(text: str, *, photo_hw: tuple[int, int]) -> list[Point]:
    """Reads points from JSON.

    Args:
        text: `[[x, y, 1], [x, y, 0], …]`, 1 on the object and 0 beside it; `[x, y]` is on it.
        photo_hw: (height, width) of the photo after EXIF rotation. Half a pixel beyond its edge is rounding.

    Returns:
        The points, at least one of them on the object.

    Raises:
        InvalidInputError: Not JSON, not such points, none on the object, too many, or one outside the photo.
    """
    try:
        value = json.loads(text)
        if not isinstance(value, list) or not value:
            raise MalformedMaskError("expected a list of points")
        if len(value) > MAX_POINTS:
            raise MalformedMaskError(f"{len(value)} points are too many, at most {MAX_POINTS} are read")
        points = [_point(item) for item in value]
    except (MalformedMaskError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"The points can't be used: {error}. Send [[x, y, 1], [x, y, 0], …] in pixels of the photo, 1 on the "
            "object and 0 beside it.",
            field="points",
        ) from error
    if not any(point.inside for point in points):
        raise InvalidInputError("No point is on the object: send at least one as [x, y, 1].", field="points")
    height, width = photo_hw
    for x, y, _ in points:
        if not (-0.5 <= x <= width + 0.5 and -0.5 <= y <= height + 0.5):
            raise InvalidInputError(
                f"The point ({x:g}, {y:g}) is outside the photo of {size_text(photo_hw)}: send pixels of the photo "
                "after EXIF rotation.",
                field="points",
            )
    return points


def _point(item: object) -> Point:
    if not isinstance(item, list) or len(item) not in (2, 3):
        raise MalformedMaskError("expected each point as [x, y, 1] or [x, y, 0]")
    x, y, *rest = item
    side = rest[0] if rest else 1
    if side not in (0, 1):  # True and False are 1 and 0
        raise MalformedMaskError("expected 1 or 0 as the third number of a point")
    return Point(finite_number(x), finite_number(y), bool(side))
