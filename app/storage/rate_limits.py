"""Rate limits in Redis, one count for all replicas; by the library `limits`, a window that slides."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil

from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool

from . import keys
from .connection import leaving_replicas

# A limit is worth no waiting: while the store does not answer, every request may pass.
_TIMEOUT_S = 0.25
# Seconds without a question after the store did not answer.
_PAUSE_S = 1.0


class RateLimits:
    """Counts the requests of each caller.

    Args:
        storage: Of `limits`.
        limit: Requests and period.
    """

    def __init__(self, storage: RedisStorage, limit: RateLimitItem) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._limit = limit
        self._ask_from = 0.0

    async def wait_s(self, caller: str) -> int | None:
        """Count a request of a caller: None if it may pass, else the whole seconds until the next one may."""
        if time.monotonic() < self._ask_from:
            return None
        try:
            if await self._limiter.hit(self._limit, caller):
                return None
            window = await self._limiter.get_window_stats(self._limit, caller)
        except StorageError:
            self._ask_from = time.monotonic() + _PAUSE_S
            return None
        return max(1, ceil(window.reset_time - time.time()))

    def __str__(self) -> str:
        return str(self._limit)


@asynccontextmanager
async def rate_limits(url: str, limit: str) -> AsyncIterator[RateLimits | None]:
    """The rate limits of a service; None without a limit.

    Args:
        url: Of the store.
        limit: Such as `100/minute`; empty for none.
    """
    if not limit:
        yield None
        return
    pool = ConnectionPool.from_url(
        url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=leaving_replicas()
    )
    storage = RedisStorage(
        "async+redis://",  # the address is the pool's
        implementation="redispy",
        key_prefix=keys.RATE_LIMIT,
        wrap_exceptions=True,
        connection_pool=pool,  # type: ignore[arg-type]  # documented, but missing in the types
    )
    try:
        yield RateLimits(storage, parse(limit))
    finally:
        await pool.aclose()
