"""Narrows the types of redis-py's replies: bytes or text by its types, always bytes on our connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def as_bytes(reply: object) -> bytes:
    """A reply as bytes.

    Raises:
        TypeError: If the reply is text or missing.
    """
    if not isinstance(reply, bytes):
        raise TypeError(f"expected bytes, got {type(reply).__name__}")
    return reply


def as_texts(replies: Iterable[object]) -> list[str]:
    """Replies as texts: ids or names. Bytes that are not UTF-8 are escaped: nothing is stored under such an id."""
    return [as_bytes(reply).decode(errors="backslashreplace") for reply in replies]


def as_fields(reply: Mapping[bytes | str, bytes | str]) -> dict[bytes, bytes]:
    """Reply of HGETALL as bytes."""
    return {as_bytes(name): as_bytes(value) for name, value in reply.items()}
