"""Store of job records: state and outcome of every job, as callers see it. The job engine delivers the jobs."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from uuid import uuid4

from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ResponseError

from app.errors import OverloadedError

from . import keys
from .lua import script
from .names import CategoryName
from .pages import Page, read_page
from .records import damaged, json_value, replies_of, reply_of, sound, validated
from .replies import as_fields, as_texts
from .unreadable import Unreadable, UnreadableRecord

Kind = Literal["tune", "rank"]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "superseded"]
ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled", "superseded"})

# Seconds after which an event stream reads the record without a message: a restart of the store may lose messages.
_LOOK_AGAIN_S = 2.0

# Largest number of open event streams of a process. Until its job ends, each holds a connection to the store and one to
# its caller: two of the 1,024 files that a process may usually open, and one of the store's 10,000 clients.
MAX_STREAMS = 200
_STREAMS_FULL_RETRY_S = 5

_STATUSES: tuple[Status, ...] = get_args(Status)

# Jobs looked through by one script: the store answers nobody else meanwhile, for about a millisecond.
_SELECTED_AT_ONCE = 1000
# Name of `keys.JOBS` among the records that can't be read.
_ALL_JOBS = "list of all jobs"


@dataclass(frozen=True)
class Job:
    """Record of a job. The HTTP API returns the same fields under the same names, except the last three.

    The fields with defaults may be missing in a record: other releases may not know them.

    Attributes:
        generation: Generation of the category that a tuning job works for; 0 for other jobs.
        deaths: Number of times that its worker died.
        not_learned: True if the category, once tuned, is badly found in its own examples.
    """

    id: str
    kind: Kind
    status: Status
    category: str | None = None
    progress: float = 0.0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    example_iou: float | None = None
    error: str | None = None
    adapter_version: int | None = None
    created_at: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    generation: int = 0
    deaths: int = 0
    not_learned: bool = False

    @property
    def ended(self) -> bool:
        """True if its status is final."""
        return self.status in ENDED

    @property
    def category_id(self) -> str:
        """Id of its category; empty if it has none."""
        return CategoryName(self.category).id if self.category else ""


_JOB = TypeAdapter(Job)
_KIND: TypeAdapter[Kind] = TypeAdapter(Kind)


def now() -> str:
    """RFC 3339 time in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JobStore:
    """Job records in Redis.

    Args:
        redis: Client that returns bytes.
        streams: Client for event streams, which hold a connection each until they end; others would wait for them.
        ttl_s: Seconds for which an ended job can be read.
        unreadable: Register of the records that can't be read.
    """

    def __init__(self, redis: Redis, streams: Redis, *, ttl_s: float, unreadable: Unreadable | None = None) -> None:
        self._redis = redis
        self._streams = streams
        self._unreadable = unreadable or Unreadable()
        self._open_streams = 0
        self._ttl_s = int(ttl_s)
        self._update_job = script(redis, "update_job", needs=("job",))
        # The end of a job frees memory: its record expires, and its photos are deleted.
        self._end_job = script(redis, "update_job", needs=("job",), when_full=True)
        self._select_jobs = script(redis, "select_jobs")

    async def create(self, kind: Kind, *, category: str | None, steps: int, id: str | None = None) -> Job:
        """Record a queued job, with a new id unless one is given."""
        job = new_job(kind, category=category, steps=steps, id=id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.job(job.id), mapping={name: json.dumps(value) for name, value in asdict(job).items()})
            pipe.zadd(keys.JOBS, {job.id: time.time()})
            await pipe.execute()
        return job

    async def get(self, job_id: str) -> Job | None:
        """The record, or None if there is none or it can't be read; `unreadable` tells which."""
        return self._read(job_id, await reply_of(self._redis.hgetall(keys.job(job_id))))

    def unreadable(self, job_id: str) -> str | None:
        """What is wrong with a record that `get` or `list` could not read, else None."""
        record = self._unreadable.find(keys.job(job_id))
        return record.detail if record else None

    def free(self, job_id: str | None, known: Job | None) -> str | None:
        """The id if a new job may have it: `get` found no record under it, not even one that can't be read."""
        return None if known or job_id is None or self.unreadable(job_id) else job_id

    async def discard(self, job_id: str) -> Job:
        """Delete a record that can't be read, and return what is known of the job."""
        kind = _kind_in(await reply_of(self._redis.hgetall(keys.job(job_id))))
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(keys.job(job_id))
            pipe.zrem(keys.JOBS, job_id)
            pipe.publish(keys.job_channel(job_id), "changed")
            await pipe.execute()
        self._unreadable.forget(keys.job(job_id))
        return Job(job_id, kind, "cancelled", error="Its record could not be read and was deleted.")

    async def unended(self, *, age_s: float = 0.0) -> Sequence[Job]:
        """Jobs that are queued or running and were recorded at least so many seconds ago, the newest first."""
        ids = await self._ids(until=time.time() - age_s)
        jobs = await self._records(await self._selected(ids, set(_STATUSES) - ENDED))
        return [job for job in jobs if job and not job.ended]

    async def _selected(self, ids: Sequence[str], statuses: Set[Status]) -> Sequence[str]:
        """Those ids whose record has one of these statuses, or can't be read; the store looks through them."""
        unwanted = {json.dumps(status): True for status in _STATUSES if status not in statuses}
        argument = json.dumps({"job_prefix": keys.JOB_PREFIX, "unwanted": unwanted})
        selected: list[str] = []
        for first in range(0, len(ids), _SELECTED_AT_ONCE):
            some = ids[first : first + _SELECTED_AT_ONCE]
            selected += as_texts(await self._select_jobs(keys=[keys.JOBS], args=[argument, *some]))
        return selected

    async def _records(self, ids: Sequence[str]) -> Sequence[Job | None]:
        """Records by id, in one round trip; None for one that can't be read or has expired, whose id is dropped."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(keys.job(job_id))
            records = await replies_of(pipe)
        expired = [job_id for job_id, fields in zip(ids, records, strict=True) if not fields]
        if expired:
            await self._redis.zrem(keys.JOBS, *expired)
        return [self._read(job_id, fields) for job_id, fields in zip(ids, records, strict=True)]

    async def page(
        self, *, limit: int, cursor: str | None, category_id: str | None = None, status: Status | None = None
    ) -> Page[Job]:
        """Some of the records that can be read, the newest first, optionally of one category or one status.

        Raises:
            InvalidInputError: If no page gave this cursor.
        """

        async def read(ids: Sequence[str]) -> Sequence[Job | None]:
            wanted = await self._selected(ids, {status}) if status else ids
            found = dict(zip(wanted, await self._records(wanted), strict=True))
            jobs = [found.get(job_id) for job_id in ids]
            return [job if job and _is_wanted(job, category_id, status) else None for job in jobs]

        try:
            return await read_page(self._redis, keys.JOBS, read, limit=limit, cursor=cursor, newest_first=True)
        except ResponseError as error:
            if not damaged(error):
                raise
            self._unreadable.note(UnreadableRecord("job", _ALL_JOBS, str(error), keys.JOBS))
            return Page([], None)

    async def lease(self, job_id: str, *, seconds: float) -> None:
        """Tell for so many seconds that a worker runs the job."""
        await self._redis.set(keys.job_lease(job_id), "1", px=max(1, int(1000 * seconds)))

    async def is_leased(self, job_id: str) -> bool:
        """True if a worker runs the job, or did so a moment ago."""
        return await self.leased_s(job_id) > 0

    async def leased_s(self, job_id: str) -> float:
        """Seconds until the lease of the job's worker ends, unless it is renewed; 0 if no worker has one."""
        return max(0, await self._redis.pttl(keys.job_lease(job_id))) / 1000

    async def _ids(self, *, until: float) -> Sequence[str]:
        """Ids of the jobs that were recorded until a time, the newest first."""
        reply = await reply_of(self._redis.zrevrangebyscore(keys.JOBS, until, "-inf"))
        try:
            ids = as_texts(sound(reply))
        except ValueError as error:
            self._unreadable.note(UnreadableRecord("job", _ALL_JOBS, str(error), keys.JOBS))
            return []
        self._unreadable.forget(keys.JOBS)
        return ids

    def _read(self, job_id: str, fields: Any) -> Job | None:
        """The job of a reply; None if there is no record, or it can't be read, which is noted."""
        key = keys.job(job_id)
        try:
            job = _parse(job_id, as_fields(sound(fields))) if fields else None
        except ValueError as error:
            self._unreadable.note(UnreadableRecord("job", job_id, str(error), key))
            return None
        self._unreadable.forget(key)
        return job

    async def start(self, job_id: str, *, steps: int) -> bool:
        """Mark a job as running. False if it has ended."""
        fields = record_fields(status="running", started_at=now(), steps=steps, step=0, progress=0.0)
        return await self._update(job_id, {"queued", "running"}, fields)

    async def count_death(self, job_id: str) -> int:
        """Count a death of the job's worker and return the number of deaths."""
        return int(await self._redis.hincrby(keys.job(job_id), "deaths", 1))

    async def requeue(self, job_id: str) -> bool:
        """Mark a running job as queued again, because its worker stops. False if it has ended."""
        return await self._update(job_id, {"queued", "running"}, record_fields(status="queued"))

    async def step(self, job_id: str, *, step: int, steps: int, loss: float | None = None) -> bool:
        """Record progress. False if the job was cancelled or superseded: its worker must stop."""
        fields = record_fields(step=step, steps=steps, progress=round(step / steps, 4), loss=loss)
        return await self._update(job_id, {"running"}, fields)

    async def end(self, job_id: str, status: Status, **fields: object) -> bool:
        """Give a job its final status, unless it has one already. False if it had."""
        # By this the script knows its own work if the call is sent again because its reply was lost.
        call = uuid4().hex
        final = final_fields(status, ended_by=call, **fields)
        return await self._update(job_id, {"queued", "running"}, final, ttl_s=self._ttl_s, ended_by=call)

    @asynccontextmanager
    async def events(self, job_id: str) -> AsyncIterator[AsyncIterator[Job]]:
        """The record now and after every change, until its status is final. Empty if there is no such job.

        Raises:
            OverloadedError: If `MAX_STREAMS` streams are open.
        """
        if self._open_streams >= MAX_STREAMS:
            raise OverloadedError(
                f"{MAX_STREAMS} event streams are open, as many as may be: look at the job with GET /jobs/{{id}}, or "
                f"try again in {_STREAMS_FULL_RETRY_S} seconds.",
                retry_after_s=_STREAMS_FULL_RETRY_S,
            )
        self._open_streams += 1
        try:
            async with self._streams.pubsub() as changes:
                await changes.subscribe(keys.job_channel(job_id))
                yield self._states(job_id, changes)
        finally:
            self._open_streams -= 1

    async def _states(self, job_id: str, changes: PubSub) -> AsyncIterator[Job]:
        seen: Job | None = None
        while (job := await self.get(job_id)) is not None:
            if job != seen:
                yield job
            if job.ended:
                return
            seen = job
            await changes.get_message(ignore_subscribe_messages=True, timeout=_LOOK_AGAIN_S)

    async def _update(
        self,
        job_id: str,
        allowed: Set[Status],
        fields: Sequence[str],
        *,
        ttl_s: int | None = None,
        ended_by: str | None = None,
    ) -> bool:
        """Change a record whose status is among the allowed ones. False if it is not."""
        change: dict[str, Any] = {
            "channel": keys.job_channel(job_id),
            "allowed": dict.fromkeys(allowed, True),
            "fields": fields,
        }
        if ttl_s is not None:
            change["ttl_s"] = ttl_s
        if ended_by is not None:
            change["ended_by"] = json.dumps(ended_by)
        update = self._update_job if ttl_s is None else self._end_job
        return bool(await update(keys=[keys.job(job_id)], args=[json.dumps(change)]))


def _is_wanted(job: Job, category_id: str | None, status: Status | None) -> bool:
    return (status is None or job.status == status) and (category_id is None or job.category_id == category_id)


def new_job(kind: Kind, *, category: str | None, steps: int, id: str | None = None) -> Job:
    """A queued job that is not recorded yet, with a new id unless one is given."""
    return Job(
        id=id or uuid4().hex,
        kind=kind,
        category=category,
        status="queued",
        progress=0.0,
        step=0,
        steps=steps,
        loss=None,
        example_iou=None,
        error=None,
        adapter_version=None,
        created_at=now(),
        started_at=None,
        finished_at=None,
    )


def job_argument(job: Job) -> dict[str, Any]:
    """Argument of `add_job` in Lua, which adds the generation."""
    record = asdict(job)
    del record["generation"]
    return {"id": job.id, "time": time.time(), "fields": record_fields(**record)}


def final_fields(status: Status, **fields: object) -> list[str]:
    """The fields that a job's end changes, as `record_fields` gives them."""
    progress = {"progress": 1.0} if status == "succeeded" else {}
    return record_fields(status=status, finished_at=now(), **progress, **fields)


def record_fields(**fields: object) -> list[str]:
    """Names and JSON values in turn, as a record's hash takes them."""
    return [text for name, value in fields.items() for text in (name, json.dumps(value))]


def _parse(job_id: str, fields: dict[bytes, bytes]) -> Job:
    """Job of a stored record. Unknown fields are ignored: a newer replica may have written them.

    Raises:
        ValueError: If a field has no JSON of its type, or is missing and has no default.
    """
    known = Job.__dataclass_fields__
    values = {name: json_value(name, raw) for name in known if (raw := fields.get(name.encode())) is not None}
    return validated(_JOB, {**values, "id": job_id})


def _kind_in(fields: Any) -> Kind:
    """Kind in a record that can't be read as a whole; that of nearly all jobs if it can't be read either."""
    try:
        return validated(_KIND, json_value("kind", as_fields(sound(fields)).get(b"kind", b"")))
    except ValueError:
        return "tune"
