"""What redis-py's types leave open: its commands may answer text or bytes, our connections always answer bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def as_bytes(reply: object) -> bytes:
    """One reply.

    Raises:
        TypeError: If the connection decodes replies, or there is none.
    """
    if not isinstance(reply, bytes):
        raise TypeError(f"expected bytes, got {type(reply).__name__}")
    return reply


def as_texts(replies: Iterable[object]) -> list[str]:
    """A list of ids or names."""
    return [as_bytes(reply).decode() for reply in replies]


def as_fields(reply: Mapping[bytes | str, bytes | str]) -> dict[bytes, bytes]:
    """A hash."""
    return {as_bytes(name): as_bytes(value) for name, value in reply.items()}
