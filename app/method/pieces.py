"""Work in pieces: a generator between whose pieces its caller can do other work."""

from collections.abc import Generator
from typing import TypeVar

Value = TypeVar("Value")
Pieces = Generator[None, None, Value]


def finished(pieces: Pieces[Value]) -> Value:
    """Do all pieces at once; returns their result."""
    while (result := advance(pieces)) is None:
        pass
    return result


def advance(pieces: Pieces[Value]) -> Value | None:
    """Do the next piece; returns the result after the last one, and None before."""
    try:
        next(pieces)
    except StopIteration as end:
        result: Value = end.value
        return result
    return None
