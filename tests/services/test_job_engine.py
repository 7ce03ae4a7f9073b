"""The job engine: delivery, and the states of jobs that end, fail or are stopped."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from app.errors import InvalidInputError
from app.metrics import Metrics
from app.services import job_engine
from app.services.job_engine import JobEngine
from app.storage.breaker import StoreAwayError
from app.storage.jobs import Job, JobStore
from app.storage.queue import JobQueue
from tests.services.outage import read_only


class Bench:
    """An engine with its store."""

    def __init__(self, engine: JobEngine, jobs: JobStore, metrics: Metrics, url: str) -> None:
        self.engine, self.jobs, self.metrics, self.url = engine, jobs, metrics, url

    async def add(self) -> Job:
        job = await self.jobs.create("rank", category=None, steps=5)
        await self.engine.add(job)
        return job

    async def ended(self, job: Job) -> Job:
        async with asyncio.timeout(10):
            async with self.jobs.events(job.id) as states:
                async for state in states:
                    last = state
        return last

    def count(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("exemplar_jobs_total", {"kind": "rank", "outcome": outcome})

    @asynccontextmanager
    async def working(self, engine: JobEngine | None = None) -> AsyncIterator[None]:
        task = asyncio.create_task((engine or self.engine).work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


class WaitingWork:
    """Work that tells that it has begun, and ends once it may go on."""

    def __init__(self, engine: JobEngine) -> None:
        self._engine = engine
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()
        self.ran: list[str] = []

    async def __call__(self, job: Job) -> None:
        self.ran.append(job.id)
        self.begun.set()
        await self.goes_on.wait()
        await self._engine.end(job, "succeeded")


@pytest.fixture
async def bench(database: str) -> AsyncIterator[Bench]:
    metrics = Metrics()
    async with Redis.from_url(database) as redis, a_queue(database, metrics) as queue:
        jobs = JobStore(redis, redis, ttl_s=60)
        yield Bench(JobEngine(queue, jobs, concurrency=2, redelivery_s=1, metrics=metrics), jobs, metrics, database)


def a_queue(url: str, metrics: Metrics) -> JobQueue:
    return JobQueue(url, record_ttl_s=60, on_drop=metrics.dropped_messages.inc)


async def test_a_job_runs_and_ends_once(bench: Bench) -> None:
    ran: list[str] = []

    async def work(job: Job) -> None:
        ran.append(job.id)
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    assert bench.count("succeeded") == 0
    async with bench.working():
        job = await bench.add()
        await bench.engine.add(job)
        assert (await bench.ended(job)).status == "succeeded"
        assert not await bench.engine.end(job, "failed", error="too late")
        await asyncio.sleep(0.2)
    assert ran == [job.id]
    assert (bench.count("succeeded"), bench.count("failed")) == (1, 0)
    assert bench.metrics.registry.get_sample_value("exemplar_job_duration_seconds_count", {"kind": "rank"}) == 1


async def test_an_error_the_caller_can_mend_is_told(bench: Bench) -> None:
    async def work(_: Job) -> None:
        raise InvalidInputError("Send it again.")

    bench.engine.register("rank", work)
    async with bench.working():
        failed = await bench.ended(await bench.add())
    assert (failed.status, failed.error) == ("failed", "Send it again.")
    assert bench.count("failed") == 1


@pytest.mark.parametrize(
    "outage",
    [
        StoreAwayError("no answer"),
        ReadOnlyError("a replica"),
        OutOfMemoryError("full"),
        ResponseError("MISCONF no disk"),
    ],
    ids=repr,
)
async def test_an_outage_of_the_store_is_no_fault_of_the_job(bench: Bench, monkeypatch, outage: Exception) -> None:
    monkeypatch.setattr(job_engine, "_OUTAGE_PAUSE_S", 0.0)
    met = [outage, outage]

    async def work(job: Job) -> None:
        if met:
            raise met.pop()
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    async with bench.working():
        assert (await bench.ended(await bench.add())).status == "succeeded"
    assert bench.count("failed") == 0


async def test_what_an_outage_kept_from_the_queue_is_no_death(bench: Bench, monkeypatch) -> None:
    """A job that could not be given back is delivered again like that of a dead worker."""
    monkeypatch.setattr(job_engine, "_MAX_DEATHS", 1)
    work = WaitingWork(bench.engine)
    bench.engine.register("rank", work)
    async with bench.working(), Redis.from_url(bench.url) as redis:
        job = await bench.add()
        await work.begun.wait()
        async with read_only(redis):
            work.goes_on.set()
            await asyncio.sleep(0.3)
            assert (await bench.jobs.get(job.id)).status == "running"
        assert (await bench.ended(job)).status == "succeeded"


async def test_a_job_may_be_queued_before_there_is_a_worker(bench: Bench) -> None:
    async def work(job: Job) -> None:
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    job = await bench.add()
    async with bench.working():
        assert (await bench.ended(job)).status == "succeeded"


async def test_what_was_recorded_but_not_queued_is_recovered(bench: Bench) -> None:
    async def work(job: Job) -> None:
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    job = await bench.jobs.create("rank", category=None, steps=5)
    done = await bench.jobs.create("rank", category=None, steps=5)
    await bench.jobs.end(done.id, "cancelled")
    async with bench.working():
        await bench.engine.recover()
        assert (await bench.ended(job)).status == "succeeded"
    assert (await bench.jobs.get(done.id)).status == "cancelled"


async def test_a_sweep_queues_what_was_recorded_but_not_queued(bench: Bench, monkeypatch, caplog) -> None:
    monkeypatch.setattr(job_engine, "_SWEEP_PAUSE_S", 0.05)
    monkeypatch.setattr(job_engine, "_OVERDUE_S", 0.0)
    ran: list[str] = []

    async def work(job: Job) -> None:
        ran.append(job.id)
        await asyncio.sleep(0.3)  # several sweeps
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    async with bench.working():
        lost = await bench.jobs.create("rank", category=None, steps=5)
        assert (await bench.ended(lost)).status == "succeeded"
        queued = [await bench.add() for _ in range(4)]  # two of which wait for the others
        assert [(await bench.ended(job)).status for job in queued] == ["succeeded"] * 4
    assert sorted(ran) == sorted([lost.id, *(job.id for job in queued)])
    assert [record.message for record in caplog.records if "queued" in record.message] == [
        f"job {lost.id} was not in the queue: it is queued now"
    ]


def what_is_lost(*patterns: str):
    async def lose(redis: Redis) -> None:
        for pattern in patterns:
            await redis.delete(*await redis.keys(f"exemplar:docket:{pattern}"))

    return lose


@pytest.mark.parametrize("lost", [("stream",), ("runs:*",), ("*",)], ids=str)
@pytest.mark.parametrize("status", ["queued", "running"])
async def test_a_sweep_finds_what_the_queue_has_lost(bench: Bench, monkeypatch, lost, status) -> None:
    """A job that waits, or whose worker died."""
    monkeypatch.setattr(job_engine, "_SWEEP_PAUSE_S", 0.05)
    monkeypatch.setattr(job_engine, "_OVERDUE_S", 0.0)
    ran: list[str] = []

    async def work(job: Job) -> None:
        ran.append(job.id)
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    job = await bench.add()
    if status == "running":
        await bench.jobs.start(job.id, steps=5)
    async with Redis.from_url(bench.url) as redis:
        await what_is_lost(*lost)(redis)
    async with bench.working():
        assert (await bench.ended(job)).status == "succeeded"
    assert ran == [job.id]


async def test_a_job_that_its_queue_has_lost_is_left_to_a_worker_that_lives(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr(job_engine, "_SWEEP_PAUSE_S", 0.05)
    monkeypatch.setattr(job_engine, "_OVERDUE_S", 0.0)
    work = WaitingWork(bench.engine)
    bench.engine.register("rank", work)
    async with bench.working(), Redis.from_url(bench.url) as redis:
        job = await bench.add()
        await work.begun.wait()
        await what_is_lost("*")(redis)
        await asyncio.sleep(1.5)  # longer than a lease that is not renewed
        work.goes_on.set()
        assert (await bench.ended(job)).status == "succeeded"
        await asyncio.sleep(0.2)
    assert work.ran == [job.id]

    # The lease of a worker that died ends.
    dead = await bench.jobs.create("rank", category=None, steps=5)
    await bench.jobs.start(dead.id, steps=5)
    await bench.jobs.lease(dead.id, seconds=0.2)
    await bench.engine.recover()
    async with Redis.from_url(bench.url) as redis:
        assert not await redis.exists("exemplar:docket:stream") or not await redis.xlen("exemplar:docket:stream")
        await asyncio.sleep(0.3)
        await bench.engine.recover()
        assert await redis.xlen("exemplar:docket:stream") == 1


async def test_a_job_whose_worker_lost_its_connection_is_left_to_it(bench: Bench) -> None:
    """The queue takes that worker for dead; another one that the job is delivered to sees the lease."""
    work = WaitingWork(bench.engine)
    bench.engine.register("rank", work)
    async with bench.working(), Redis.from_url(bench.url) as redis, a_queue(bench.url, bench.metrics) as queue:
        other = JobEngine(queue, bench.jobs, concurrency=2, redelivery_s=1, metrics=bench.metrics)
        other_work = WaitingWork(other)
        other.register("rank", other_work)
        job = await bench.add()
        await work.begun.wait()
        await redis.client_kill_filter(_type="normal", skipme=True)
        async with bench.working(other):
            await asyncio.sleep(3)  # three times that of a redelivery
            work.goes_on.set()
            assert (await bench.ended(job)).status == "succeeded"
            await until_empty(redis)
    assert (work.ran, other_work.ran) == ([job.id], [])
    assert (await bench.jobs.get(job.id)).deaths == 0
    assert bench.metrics.registry.get_sample_value("exemplar_job_redeliveries_total") == 0


async def test_a_death_counts_though_the_lease_of_the_dead_worker_was_waited_for(bench: Bench) -> None:
    async def work(job: Job) -> None:
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    job = await bench.add()
    await bench.jobs.start(job.id, steps=job.steps)
    await bench.jobs.lease(job.id, seconds=0.5)
    async with bench.working():
        assert (await bench.ended(job)).status == "succeeded"
    assert (await bench.jobs.get(job.id)).deaths == 1


async def test_a_damaged_entry_of_the_queue_costs_no_other_job(bench: Bench, caplog) -> None:
    damaged, other = [await bench.jobs.create("rank", category=None, steps=5) for _ in range(2)]
    async with Redis.from_url(bench.url) as redis:
        await redis.set(f"exemplar:docket:runs:rank:{damaged.id}", "of another type")
        await bench.engine.recover()
        assert await redis.xlen("exemplar:docket:stream") == 1
    assert f"job {damaged.id} could not be queued" in caplog.text

    async def work(job: Job) -> None:
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    async with bench.working():
        assert (await bench.ended(other)).status == "succeeded"


class Planted:
    """A pickle that makes a folder when it is read, in place of any other effect."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self._folder),)


async def test_a_pickle_that_somebody_planted_is_not_read(bench: Bench, tmp_path: Path, caplog) -> None:
    async def work(job: Job) -> None:
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    pickle.loads(pickle.dumps((Planted(tmp_path / "proof"),)))
    assert (tmp_path / "proof").exists()

    template = await bench.add()
    async with Redis.from_url(bench.url) as redis:
        ((_, sound),) = await redis.xrange("exemplar:docket:stream")
        planted = pickle.dumps((Planted(tmp_path / "harm"),))
        for number, fields in enumerate(({b"args": planted}, {b"kwargs": planted}, {b"when": b"never"})):
            await redis.xadd("exemplar:docket:stream", sound | {b"key": b"%d" % number} | fields)
        # One message as of a worker that died, and one that was delayed.
        await redis.xgroup_create("exemplar:docket:stream", "docket-workers", id="0")
        await redis.xreadgroup("docket-workers", "dead", {"exemplar:docket:stream": ">"}, count=3)
        await redis.hset("exemplar:docket:later", mapping=sound | {b"key": b"later", b"args": planted})
        await redis.zadd("exemplar:docket:queue", {"later": 0.0})
        # A call that is to be struck: every process would read it, without a worker too.
        strike = {b"direction": b"strike", b"operator": b"==", b"value": planted}
        await redis.xadd("exemplar:docket:strikes", strike)
        async with a_queue(bench.url, bench.metrics), bench.working():
            assert (await bench.ended(template)).status == "succeeded"
            assert (await bench.ended(await bench.add())).status == "succeeded"
            await until(lambda: bench.metrics.registry.get_sample_value("exemplar_dropped_messages_total") == 4)
            await until_empty(redis)
    assert not (tmp_path / "harm").exists()
    assert "were dropped unread" in caplog.text


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.05)


async def until_empty(redis: Redis) -> None:
    async with asyncio.timeout(10):
        while await redis.xlen("exemplar:docket:stream"):
            await asyncio.sleep(0.05)


async def test_a_sweep_leaves_a_job_time_to_be_queued(bench: Bench) -> None:
    young = await bench.jobs.create("rank", category=None, steps=5)
    assert await bench.jobs.unended(age_s=10) == []
    assert await bench.jobs.unended() == [young]
    await bench.engine.recover(age_s=10)
    async with Redis.from_url(bench.url) as redis:
        assert not await redis.keys("exemplar:docket:*rank:*")


async def test_a_sweep_survives_whatever_it_meets(bench: Bench, monkeypatch, caplog) -> None:
    monkeypatch.setattr(job_engine, "_SWEEP_PAUSE_S", 0.05)
    monkeypatch.setattr(job_engine, "_OVERDUE_S", 0.0)

    async def work(job: Job) -> None:
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    async with bench.working(), Redis.from_url(bench.url) as redis:
        await redis.set("exemplar:jobs", "no list of jobs")
        await asyncio.sleep(0.2)
        await redis.delete("exemplar:jobs")
        lost = await bench.jobs.create("rank", category=None, steps=5)
        assert (await bench.ended(lost)).status == "succeeded"


async def test_a_cancelled_job_never_begins(bench: Bench) -> None:
    ran: list[str] = []

    async def work(job: Job) -> None:
        ran.append(job.id)
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", work)
    cancelled, other = await bench.add(), await bench.add()
    assert await bench.engine.cancel(cancelled)
    assert not await bench.engine.cancel(cancelled)
    async with bench.working():
        await bench.ended(other)
        await asyncio.sleep(0.2)
    assert ran == [other.id]
    assert bench.count("cancelled") == 1


async def test_a_step_says_when_to_stop(bench: Bench) -> None:
    job = await bench.jobs.create("rank", category=None, steps=5)
    await bench.jobs.start(job.id, steps=5)
    assert await bench.engine.step(job, step=1, steps=5)
    await bench.engine.cancel(job)
    assert not await bench.engine.step(job, step=2, steps=5)
    assert (await bench.jobs.get(job.id)).step == 1


async def test_a_job_that_the_store_superseded_is_counted(bench: Bench) -> None:
    bench.engine.note_superseded(None)
    bench.engine.note_superseded("1")
    assert bench.metrics.registry.get_sample_value(
        "exemplar_jobs_total", {"kind": "tune", "outcome": "superseded"}
    ) == 1  # fmt: skip


async def test_a_stopping_worker_gives_its_job_back_without_a_word_of_error(bench: Bench, caplog) -> None:
    begun = asyncio.Event()

    async def work(job: Job) -> None:
        for step in range(1, 1000):
            begun.set()
            await asyncio.sleep(0.01)
            if not await bench.engine.step(job, step=step, steps=1000):
                return

    bench.engine.register("rank", work)
    async with bench.working():
        job = await bench.add()
        await begun.wait()
    assert (await bench.jobs.get(job.id)).status == "queued"
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]

    async def end(job: Job) -> None:
        await bench.engine.end(job, "succeeded")

    bench.engine.register("rank", end)
    async with bench.working():
        assert (await bench.ended(job)).status == "succeeded"
    assert bench.metrics.registry.get_sample_value("exemplar_job_redeliveries_total") == 0  # nobody died
