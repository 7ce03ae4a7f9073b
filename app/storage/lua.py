"""Lua scripts of the store, read from `scripts/`: one file each, after the files of the functions that it needs."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

# First line of a script that a full server runs all the same. It needs Redis 7, or Valkey.
_WHEN_FULL = "#!lua flags=allow-oom"


def script(redis: Redis, name: str, *, needs: tuple[str, ...] = (), when_full: bool = False) -> AsyncScript:
    """A script, ready to call. It is sent by its hash, and once as a text to a server that does not know it.

    Args:
        redis: Client that runs it.
        name: Name of its file.
        needs: Names of the files in `scripts/shared/` whose functions it calls, in their order.
        when_full: True for a script that frees memory: a server that is full (`maxmemory`) runs it all the same.
    """
    head = [_WHEN_FULL] if when_full else []
    texts = [_text("scripts", "shared", f"{function}.lua") for function in needs]
    return redis.register_script("\n".join([*head, *texts, _text("scripts", f"{name}.lua")]))


@cache
def _text(*path: str) -> str:
    return files("app.storage").joinpath(*path).read_text(encoding="utf-8")
