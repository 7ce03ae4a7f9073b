"""Store of job records: state and outcome of every job, as callers see it. The job engine delivers the jobs."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from app.errors import OverloadedError

from . import keys
from .lua import script
from .names import CategoryName
from .replies import as_fields, as_texts

Kind = Literal["tune", "rank"]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "superseded"]
ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled", "superseded"})

# Seconds after which an event stream reads the record without a message: a restart of the store may lose messages.
_LOOK_AGAIN_S = 2.0

# Largest number of open event streams of a process. Until its job ends, each holds a connection to the store and one to
# its caller: two of the 1,024 files that a process may usually open, and one of the store's 10,000 clients.
MAX_STREAMS = 200
_STREAMS_FULL_RETRY_S = 5


@dataclass(frozen=True)
class Job:
    """Record of a job. The HTTP API returns the same fields under the same names, except the last two.

    Attributes:
        generation: Generation of the category that a tuning job works for; 0 for other jobs.
        deaths: Number of times that its worker died.
    """

    id: str
    kind: Kind
    category: str | None
    status: Status
    progress: float
    step: int
    steps: int
    loss: float | None
    example_iou: float | None
    error: str | None
    adapter_version: int | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    generation: int = 0
    deaths: int = 0

    @property
    def ended(self) -> bool:
        """True if its status is final."""
        return self.status in ENDED

    @property
    def category_id(self) -> str:
        """Id of its category; empty if it has none."""
        return CategoryName(self.category).id if self.category else ""


def now() -> str:
    """RFC 3339 time in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JobStore:
    """Job records in Redis.

    Args:
        redis: Client that returns bytes.
        streams: Client for event streams, which hold a connection each until they end; others would wait for them.
        ttl_s: Seconds for which an ended job can be read.
    """

    def __init__(self, redis: Redis, streams: Redis, *, ttl_s: float) -> None:
        self._redis = redis
        self._streams = streams
        self._open_streams = 0
        self._ttl_s = int(ttl_s)
        self._update_job = script(redis, "update_job", needs=("job",))

    async def create(self, kind: Kind, *, category: str | None, steps: int, id: str | None = None) -> Job:
        """Record a queued job, with a new id unless one is given."""
        job = new_job(kind, category=category, steps=steps, id=id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.job(job.id), mapping={name: json.dumps(value) for name, value in asdict(job).items()})
            pipe.zadd(keys.JOBS, {job.id: time.time()})
            await pipe.execute()
        return job

    async def get(self, job_id: str) -> Job | None:
        """The record, or None."""
        fields = await self._redis.hgetall(keys.job(job_id))
        return _parse(as_fields(fields)) if fields else None

    async def list(self, *, category_id: str | None = None, status: Status | None = None) -> list[Job]:
        """Records, the newest first, optionally of one category or one status."""
        ids = as_texts(await self._redis.zrevrange(keys.JOBS, 0, -1))
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(keys.job(job_id))
            records = await pipe.execute()
        expired = [job_id for job_id, fields in zip(ids, records, strict=True) if not fields]
        if expired:
            await self._redis.zrem(keys.JOBS, *expired)
        return [
            job
            for job in map(_parse, filter(None, records))
            if (status is None or job.status == status) and (category_id is None or job.category_id == category_id)
        ]

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
        return await self._update(job_id, {"queued", "running"}, final_fields(status, **fields), ttl_s=self._ttl_s)

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
        self, job_id: str, allowed: Set[Status], fields: Sequence[str], *, ttl_s: int | None = None
    ) -> bool:
        """Change a record whose status is among the allowed ones. False if it is not."""
        change: dict[str, Any] = {
            "channel": keys.job_channel(job_id),
            "allowed": dict.fromkeys(allowed, True),
            "fields": fields,
        }
        if ttl_s is not None:
            change["ttl_s"] = ttl_s
        return bool(await self._update_job(keys=[keys.job(job_id)], args=[json.dumps(change)]))


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


def _parse(fields: Mapping[bytes, bytes]) -> Job:
    """Job of a stored record. Unknown fields are ignored: a newer replica may have written them."""
    known = Job.__dataclass_fields__
    values: dict[str, Any] = {
        name: json.loads(value) for raw, value in fields.items() if (name := raw.decode()) in known
    }
    return Job(**values)
