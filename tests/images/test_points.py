"""Points that a caller clicked."""

from __future__ import annotations

import pytest

from app.errors import InvalidInputError
from app.images.points import MAX_POINTS, Point, parse_points

HW = (31, 47)


def test_points_on_the_object_and_beside_it() -> None:
    assert parse_points("[[3, 5.5], [46, 30, 0], [0, 0, true]]", photo_hw=HW) == [
        Point(3, 5.5, True),
        Point(46, 30, False),
        Point(0, 0, True),
    ]


def test_half_a_pixel_beyond_the_edge_is_rounding() -> None:
    assert parse_points("[[47.5, -0.5]]", photo_hw=HW) == [Point(47.5, -0.5, True)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "can't be used"),
        ("{}", "a list of points"),
        ("[]", "a list of points"),
        ("[3, 5]", "each point as"),
        ("[[3]]", "each point as"),
        ("[[3, 5, 1, 1]]", "each point as"),
        ("[[3, 5, 2]]", "1 or 0"),
        ('[[3, 5, "1"]]', "1 or 0"),
        ("[[3, 5, []]]", "1 or 0"),
        ("[[NaN, 5]]", "finite"),
        ("[[1e999, 5]]", "finite"),
        ("[[true, 5]]", "finite"),
        (f"[[{10**400}, 5]]", "finite"),
        ("[" * 100_000, "can't be used"),
        ("[[3, 5, 0]]", "at least one"),
        ("[[48, 5]]", "outside the photo"),
        ("[[3, 5], [3, -1, 0]]", "outside the photo"),
        (f"[{', '.join(['[1, 1]'] * (MAX_POINTS + 1))}]", f"at most {MAX_POINTS}"),
    ],
)
def test_what_can_not_be_used_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refused:
        parse_points(text, photo_hw=HW)
    assert refused.value.field == "points"
