"""Connections to Redis or Valkey: a client that survives a restart of the server, and a probe of its health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, RedisError

from app.errors import InvalidInputError, UnavailableError

from . import keys

# Names for the other packages, which do not import redis.
Client = Redis
StoreError = RedisError

# Far longer than any command takes, that of the largest upload included.
_TIMEOUT_S = 5.0
# Connections of a client, event streams excluded: a command holds one, the others wait.
_CONNECTIONS = 100
# A killed server is back in a second; with a long append-only file it takes longer.
_RESTART_S = 5.0
# A probe must answer even if the server does not.
_PROBE_TIMEOUT_S = 2.0


class _Retry(Retry):
    """Retries for as long as a restart takes. A number of retries won't do: on a hung server each takes a timeout."""

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        deadline = time.monotonic() + _RESTART_S

        def may_try_again(error: Exception) -> bool:
            return time.monotonic() < deadline and (is_retryable is None or is_retryable(error))

        return await super().call_with_retry(do, fail, may_try_again, with_failure_count)


@asynccontextmanager
async def connect(url: str, *, connections: int = _CONNECTIONS) -> AsyncIterator[Client]:
    """A client that returns bytes, survives a restart of the server, and gives up on a server that hangs.

    Args:
        url: Of the server.
        connections: Most at a time; a command that finds none free waits for one.

    Raises:
        InvalidInputError: If the address is malformed.
        UnavailableError: If nothing answers there.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=_TIMEOUT_S,
            retry=_Retry(ExponentialBackoff(cap=0.5, base=0.05), -1, (ConnectionError, BusyLoadingError)),
            socket_connect_timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
        )
    except ValueError as error:
        raise InvalidInputError(f"EXEMPLAR_REDIS_URL can't be used: {error}") from error
    client = Redis.from_pool(pool)
    try:
        try:
            await client.ping()
        except RedisError as error:
            raise UnavailableError(
                f"No Redis answers at EXEMPLAR_REDIS_URL: start it or correct the address ({error})."
            ) from error
        yield client
    finally:
        await client.aclose()


async def takes_writes(client: Client) -> bool:
    """True if the server takes a write within two seconds."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            await client.set(keys.PROBE, "1", px=1000)
    except (RedisError, TimeoutError):
        return False
    return True
