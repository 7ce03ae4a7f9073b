"""Outages of a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis


@asynccontextmanager
async def read_only(redis: Redis) -> AsyncIterator[None]:
    """In the body the server takes no writes, as a replica of one that does not answer."""
    await redis.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        await redis.replicaof("NO", "ONE")
