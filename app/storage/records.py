"""Reads what is stored as input: replies to values of a known type, or a ValueError that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

Value = TypeVar("Value")


def wrong_type(error: object) -> bool:
    """True for the error of a command on a key of another type, also inside a script."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def damaged(error: ResponseError) -> bool:
    """True for the error of a script that met a value which it can't read; other errors are those of the server."""
    return wrong_type(error) or str(error).startswith(("user_script:", "hash value is not an integer"))


async def reply_of(command: Awaitable[Any]) -> Any:
    """Reply of a command; for a key of another type the error itself, which `sound` refuses."""
    try:
        return await command
    except ResponseError as error:
        if wrong_type(error):
            return error
        raise


async def replies_of(pipe: Pipeline) -> list[Any]:
    """Replies of a pipeline; for a key of another type the error itself, which `sound` refuses."""
    replies = await pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception) and not wrong_type(reply):
            raise reply
    return list(replies)


def sound(reply: Any) -> Any:
    """The reply, unless it is the error of a key of another type.

    Raises:
        ValueError: If it is.
    """
    if isinstance(reply, Exception):
        raise ValueError("its key has another type")
    return reply


def text(name: str, raw: bytes) -> str:
    """Stored text of a field.

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name}: not UTF-8") from None


def json_value(name: str, raw: bytes) -> Any:
    """Stored JSON of a field.

    Raises:
        ValueError: If it is not JSON, or a text in it has half a surrogate pair, which no response can carry.
    """
    try:
        value = json.loads(raw)
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError):
        raise ValueError(f"{name}: not JSON") from None


def validated(kind: TypeAdapter[Value], values: object) -> Value:
    """A value of a known type. Missing fields get their defaults: older releases did not write them.

    Raises:
        ValueError: If a field without a default is missing, or one has another type.
    """
    try:
        return kind.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
