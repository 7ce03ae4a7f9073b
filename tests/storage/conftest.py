"""An asynchronous connection to a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from app.storage.connection import connect

Contents = Callable[[], Awaitable[dict[bytes, object]]]


@pytest.fixture
async def redis(database: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(database) as redis:
        yield redis


@pytest.fixture
async def retrying(proxied_database: str) -> AsyncIterator[Redis]:
    """The service's own client behind the proxy: it sends a command again if the reply is lost."""
    async with connect(proxied_database) as redis:
        yield redis


@pytest.fixture
def contents(redis: Redis) -> Contents:
    """Reads all that is stored."""

    async def read(key: bytes) -> object:
        kind = await redis.type(key)
        if kind == b"hash":
            return await redis.hgetall(key)
        if kind == b"list":
            return await redis.lrange(key, 0, -1)
        if kind == b"zset":
            return await redis.zrange(key, 0, -1, withscores=True)
        return await redis.get(key)

    async def everything() -> dict[bytes, object]:
        return {key: await read(key) for key in await redis.keys()}

    return everything
