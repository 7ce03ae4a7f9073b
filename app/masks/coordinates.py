"""Checks a coordinate of a caller's JSON."""

from __future__ import annotations

import math

from . import MalformedMaskError


def finite_number(value: object) -> float:
    """Reads a JSON number as a float.

    Args:
        value: Unchecked JSON.

    Returns:
        The number.

    Raises:
        MalformedMaskError: Not a number, NaN, infinity, or a whole number too large for a float.
    """
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise MalformedMaskError("expected coordinates that are finite numbers")
    return number
