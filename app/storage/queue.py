"""Queue of job ids: pydocket, of which nothing is unpickled but what this program itself writes.

pydocket pickles the arguments of a call and unpickles whatever it reads, so that whoever can write to the store could
run code in every process that is connected to it. Two of its places unpickle what the store holds:

- a worker, the messages that it reads. Here they pass `job_id_of` before pydocket sees them.
- every process, the list of struck calls, which is not used here and therefore not read.
"""

from __future__ import annotations

import logging
import pickle
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from math import inf
from types import TracebackType
from typing import Any, Self, cast

from docket import Docket
from redis.asyncio import Redis
from redis.exceptions import RedisError

from . import keys
from .connection import leaving_replicas

# Name under which the job engine registers the function that runs a job, the only one that is ever called.
RUN_JOB = "run_job"

# A job's id as `new_job` and the service make it.
_ID = re.compile(rb"[0-9a-f]{32}")
# The protocol of cloudpickle, which pydocket uses.
_PROTOCOL = 5
_NO_KEYWORDS = pickle.dumps({}, _PROTOCOL)

# Loggers that tell of a store that is away, most with a traceback, up to ten times a second.
_LOGGERS = ("docket.worker", "docket._redelivery")
# An outage has ended if none of them told of it for this time.
_SILENCE_S = 10.0

_Message = tuple[bytes, Mapping[bytes, bytes]]

_log = logging.getLogger(__name__)


class JobQueue(Docket):
    """Queue of a service, connected while its context is open.

    Args:
        url: Of the server.
        record_ttl_s: Seconds for which pydocket keeps its own record of a call that has ended.
        on_drop: Called with the number of messages that were dropped because this program did not write them.
    """

    def __init__(self, url: str, *, record_ttl_s: float, on_drop: Callable[[int], object] = lambda _: None) -> None:
        super().__init__(name=keys.QUEUE, url=url, execution_ttl=timedelta(seconds=record_ttl_s))
        self._on_drop = on_drop
        self._checked: _CheckedRedis | None = None
        self._quiet = _OneLinePerOutage()

    async def __aenter__(self) -> Self:
        # The list of struck calls is read from this address; without one it is a list in memory.
        url, self.url = self.url, ""
        try:
            await super().__aenter__()
        finally:
            self.url = url
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._quiet)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._quiet)
        self._checked = None
        await super().__aexit__(kind, error, trace)

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[Any]:
        """The client through which all messages are read."""
        async with super().redis() as redis:
            if self._checked is None:
                pool = cast("Redis", redis).connection_pool
                self._checked = _CheckedRedis(pool, group=self.worker_group_name, on_drop=self._on_drop)
                self._checked.set_retry(leaving_replicas())
            yield self._checked

    async def put_again(self, key: str, job_id: str) -> None:
        """Queue a call whose message was lost, whatever pydocket's record of it says."""
        await self.replace(RUN_JOB, when=datetime.now(UTC), key=key)(job_id)

    async def held(self) -> frozenset[str]:
        """Keys of all calls that the queue holds: waiting ones, those that a worker has, and those that are delayed."""
        async with self.redis() as redis, redis.pipeline(transaction=True) as pipe:
            pipe.xrange(self.stream_key)
            pipe.zrange(self.queue_key, 0, -1)
            messages, delayed = await pipe.execute()
        found = [fields.get(b"key", b"") for _, fields in messages]
        return frozenset(key.decode(errors="replace") for key in (*found, *delayed))


class _CheckedRedis(Redis):
    """Client whose readings of the stream leave out the messages that this program did not write, and delete them."""

    def __init__(self, pool: Any, *, group: str, on_drop: Callable[[int], object]) -> None:
        super().__init__(connection_pool=pool)
        self._group = group
        self._on_drop = on_drop

    async def xreadgroup(self, *args: Any, **options: Any) -> Any:
        """Read new messages."""
        reply = cast("Sequence[tuple[bytes, Sequence[_Message]]]", await super().xreadgroup(*args, **options) or ())
        return [(stream, await self._ours(stream, messages)) for stream, messages in reply]

    async def xautoclaim(self, name: Any, *args: Any, **options: Any) -> Any:
        """Take over messages of workers that died."""
        reply: list[Any] = await super().xautoclaim(name, *args, **options)
        return [reply[0], await self._ours(name, reply[1]), *reply[2:]]

    async def _ours(self, stream: Any, messages: Sequence[_Message]) -> list[_Message]:
        # A message that is gone already has no fields, and pydocket skips it.
        foreign = [message_id for message_id, fields in messages if fields and job_id_of(fields) is None]
        if foreign:
            async with self.pipeline(transaction=True) as pipe:
                pipe.xack(stream, self._group, *foreign)
                pipe.xdel(stream, *foreign)
                await pipe.execute()
            self._on_drop(len(foreign))
            _log.error(
                "%d messages of the queue were dropped unread, because no release of this program wrote them: "
                "who else can write to the store?",
                len(foreign),
            )
        return [message for message in messages if message[0] not in foreign]


def job_id_of(message: Mapping[bytes, bytes]) -> str | None:
    """Id of the job that a message names; None if this program did not write the message.

    Nothing is unpickled: the arguments must be byte for byte those of a call with this id alone.
    """
    arguments = message.get(b"args", b"")
    found = _ID.search(arguments)
    if found is None or message.get(b"function") != RUN_JOB.encode() or message.get(b"kwargs") != _NO_KEYWORDS:
        return None
    job_id = found[0].decode()
    if arguments != pickle.dumps((job_id,), _PROTOCOL) or not _is_sound(message):
        return None
    return job_id


def _is_sound(message: Mapping[bytes, bytes]) -> bool:
    """True if pydocket can read all other fields: at one that it cannot read its worker would end."""
    try:
        message[b"key"].decode()
        moment = datetime.fromisoformat(message[b"when"].decode())
        int(message[b"attempt"])
        int(message.get(b"generation", b"0"))
    except (KeyError, ValueError):
        return False
    return moment.tzinfo is not None


class _OneLinePerOutage(logging.Filter):
    """Of what pydocket logs of an outage of the store, lets the first line through, without its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s = -inf

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a line that is not to be logged."""
        error = record.exc_info[1] if record.exc_info else None
        if not (_is_the_stores(error) if error else str(record.msg).startswith("Redis ")):
            return True
        now_s = time.monotonic()
        begins, self._last_s = now_s - self._last_s > _SILENCE_S, now_s
        if begins:
            told = f": {_first(error)}" if error else ""
            record.msg, record.args = f"the queue is out of reach, and the worker tries until it is back{told}", ()
            record.exc_info = record.exc_text = None
        return begins


def _is_the_stores(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_the_stores(inner) for inner in error.exceptions)
    return isinstance(error, RedisError)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
