"""Work in pieces: a generator between whose pieces its caller can do other work."""

from collections.abc import Generator
from typing import TypeVar

Value = TypeVar("Value")
Pieces = Generator[None, None, Value]


def finished(pieces: Pieces[Value]) -> Value:
    """Do all pieces at once; returns their result."""
    try:
        while True:
            next(pieces)
    except StopIteration as end:
        result: Value = end.value
        return result


def advance(pieces: Pieces[Value]) -> Value | None:
    """Do the next piece; returns the result after the last one, and None before. The result itself is never None."""
    try:
        next(pieces)
    except StopIteration as end:
        result: Value = end.value
        return result
    return None
