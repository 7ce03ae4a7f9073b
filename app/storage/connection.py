"""Connections to Redis or Valkey: clients that survive a restart of the server, and a probe of its health.

Jobs wait for a server that is away for as long as a restart takes. Requests don't: their commands run behind a circuit
breaker (`breaker.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Self, TypeVar

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as ReplyTimeoutError

from app.errors import InvalidInputError, UnavailableError

from . import keys
from .breaker import Breaker, Command, StoreAwayError

# Names for the other packages, which do not import redis.
Client = Redis
StoreError = RedisError

Result = TypeVar("Result")

# Far longer than any command takes, that of the largest upload included.
_TIMEOUT_S = 5.0
# Connections of a client, event streams excluded: a command holds one, the others wait.
_CONNECTIONS = 100
# A killed server is back in a second; with a long append-only file it takes longer.
_RESTART_S = 5.0
# A probe must answer even if the server does not.
_PROBE_TIMEOUT_S = 2.0

_patient: ContextVar[bool] = ContextVar("patient", default=False)


class _Retry(Retry):
    """Retries for a time. A number of retries won't do: on a hung server each takes a timeout.

    A refused password is not tried again: it would be refused again, and the reason lost in a timeout.

    A command that a replica refuses is tried again once, see `leaving_replicas`. The pool's other connections lead to
    the same server and would read old values, so those that no command uses are closed.

    Attributes:
        pool: The pool whose connections it is of.
    """

    pool: ConnectionPool | None = None

    def __init__(self, time_s: float) -> None:
        errors = (ConnectionError, BusyLoadingError, ReadOnlyError)
        super().__init__(ExponentialBackoff(cap=0.5, base=0.05), -1, errors)
        self._time_s = time_s

    def __deepcopy__(self, memo: object) -> Self:
        """Every connection takes a copy, but the pool is one."""
        return self

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        deadline = time.monotonic() + self._time_s
        refused = 0

        def may_try_again(error: Exception) -> bool:
            nonlocal refused
            refused += isinstance(error, ReadOnlyError)
            if isinstance(_reply(error), AuthenticationError) or refused > 1 or time.monotonic() >= deadline:
                return False
            return is_retryable is None or is_retryable(error)

        async def failed(error: Exception, *count: int) -> None:
            await fail(error, *count)
            if isinstance(error, ReadOnlyError) and self.pool:
                await self.pool.disconnect(inuse_connections=False)

        return await super().call_with_retry(do, failed, may_try_again, with_failure_count)


def leaving_replicas() -> Retry:
    """Retry for pools that have no other: a command that a replica refuses is sent once more, on a new connection.

    The primary that a failover demoted keeps its connections, but the address may lead to the new one by now.
    """
    return Retry(NoBackoff(), 1, (ReadOnlyError,))


@asynccontextmanager
async def connect(
    url: str, *, connections: int = _CONNECTIONS, restart_s: float | None = None
) -> AsyncIterator[Client]:
    """A client that returns bytes, survives a restart of the server, and gives up on a server that hangs.

    Args:
        url: Of the server.
        connections: Most at a time; a command that finds none free waits for one.
        restart_s: Time for which commands are tried again; None for the time that a restart takes.

    Raises:
        InvalidInputError: If the address is malformed.
        UnavailableError: If nothing answers there.
    """
    retry = _Retry(_RESTART_S if restart_s is None else restart_s)
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=_TIMEOUT_S,
            retry=retry,
            socket_connect_timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
        )
    except ValueError as error:
        raise InvalidInputError(f"EXEMPLAR_REDIS_URL can't be used: {error}") from error
    retry.pool = pool
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


@contextmanager
def patience() -> Iterator[None]:
    """In the body and in tasks begun there, commands of a `BreakerClient` wait for a server that is away."""
    before = _patient.set(True)
    try:
        yield
    finally:
        _patient.reset(before)


class BreakerClient(Redis):
    """Client whose commands fail within a second once the server is away, and then at once.

    Args:
        pool: Its connections.
        breaker: Decides whether the server is away.
    """

    def __init__(self, pool: ConnectionPool, breaker: Breaker) -> None:
        super().__init__(connection_pool=pool)
        self._breaker = breaker

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command and return its reply."""
        return await self.guard(partial(super().execute_command, *args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Start a pipeline, whose commands run as one."""
        return _GuardedPipeline(self, transaction=transaction)

    async def guard(self, command: Command[Result]) -> Result:
        """Run a command, of this client or another one of the same server.

        Raises:
            StoreAwayError: If the server does not answer.
        """
        try:
            if not _patient.get():
                return await self._breaker.run(command)
            result = await command()
        except (ConnectionError, ReplyTimeoutError) as error:
            raise StoreAwayError(str(error)) from error
        self._breaker.answered()
        return result


class _GuardedPipeline(Pipeline):
    def __init__(self, client: BreakerClient, *, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._guard = client.guard

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run the commands and return their replies."""
        return await self._guard(partial(super().execute, raise_on_error))


@asynccontextmanager
async def connect_with_breaker(url: str, *, on_change: Callable[[str | None], None]) -> AsyncIterator[BreakerClient]:
    """A client as from `connect`, behind a circuit breaker.

    Args:
        url: Of the server.
        on_change: Called with the reason when the breaker opens and with None when it closes.

    Raises:
        InvalidInputError: If the address is malformed.
        UnavailableError: If nothing answers there.
    """
    async with (
        connect(url) as client,
        connect(url, connections=1) as prober,
        Breaker(prober.ping, on_change=on_change) as breaker,
    ):
        yield BreakerClient(client.connection_pool, breaker)


def refuses_writes(error: StoreError) -> bool:
    """True for the reply of a server that takes no writes for now: it is full, a replica, or lacks disk or replicas."""
    return isinstance(error, (OutOfMemoryError, ReadOnlyError)) or str(error).startswith(("MISCONF", "NOREPLICAS"))


def is_outage(error: Exception) -> bool:
    """True if the store does not answer or takes no writes: the same command may succeed later."""
    away = isinstance(error, (StoreAwayError, ConnectionError, ReplyTimeoutError))
    return away or (isinstance(error, StoreError) and refuses_writes(error))


async def write_problem(client: Client) -> str | None:
    """Say why the server takes no write within two seconds; None if it does. It is asked even if it was just away.

    The reason is what the server replies, to the password too. Other errors have its address, which callers don't get.
    """
    try:
        with patience():
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await client.set(keys.PROBE, "1", px=1000)
    except (RedisError, TimeoutError) as error:
        reply = _reply(error)
        reason = f": {reply}".rstrip(".") if reply else ""
        return f"The store does not take writes{reason}."
    return None


def _reply(error: BaseException | None) -> BaseException | None:
    """The server's own reply among an error and its causes; None if there is none."""
    while error is not None and not isinstance(error, (AuthenticationError, ResponseError)):
        error = error.__cause__  # on a Unix socket redis-py raises another error from a refused password
    return error
