"""Job engine: runs the jobs that pydocket delivers at least once, and keeps their records correct."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Protocol, TypeVar

from docket import Retry, Worker
from docket.dependencies import CurrentExecution
from docket.execution import Execution

from app import logs
from app.errors import AppError
from app.metrics import Metrics
from app.services.renewal import renewing
from app.storage.connection import StoreError, is_outage, patience
from app.storage.jobs import Job, JobStore, Kind, Status
from app.storage.queue import RUN_JOB, JobQueue

Result = TypeVar("Result")
Work = Callable[[Job], Awaitable[None]]
Withdraw = Callable[[Job], Awaitable[bool]]
Clear = Callable[[Job], Awaitable[None]]

# Deaths of workers after which the job itself is the cause, most likely by its memory.
_MAX_DEATHS = 5

# Seconds between two looks for jobs that the queue lacks, and the least age of such a job: the process that recorded it
# needs far less to queue it.
_SWEEP_PAUSE_S = 15.0
_OVERDUE_S = 10.0

# Pause before a job that an outage of the store interrupted begins anew.
_OUTAGE_PAUSE_S = 1.0

_log = logging.getLogger(__name__)


class Guard(Protocol):
    """Runs a command of the queue, unless the store is away."""

    def __call__(self, command: Callable[[], Awaitable[Result]], /) -> Awaitable[Result]:
        """Run the command and return its reply."""


def _unguarded(command: Callable[[], Awaitable[Result]]) -> Awaitable[Result]:
    return command()


class JobEngine:
    """Queues jobs and, in a process with a worker, runs them.

    The record is authoritative; the queue holds the job's id alone. After the death of a process the id is delivered
    again, and the job reads from its record and its category what is left to do.

    Args:
        queue: Connected queue.
        jobs: Store of the records.
        concurrency: Concurrent jobs of this process.
        redelivery_s: Seconds after which the job of a dead worker is delivered to another worker.
        metrics: Counts outcomes.
        guard: Runs a command of the queue, which itself would wait without limit for a store that is away.
    """

    def __init__(
        self,
        queue: JobQueue,
        jobs: JobStore,
        *,
        concurrency: int,
        redelivery_s: float,
        metrics: Metrics,
        guard: Guard = _unguarded,
    ) -> None:
        self._queue = queue
        self._jobs = jobs
        self._concurrency = concurrency
        self._redelivery = timedelta(seconds=redelivery_s)
        self._metrics = metrics
        self._guard = guard
        self._work: dict[Kind, Work] = {}
        self._withdraw: dict[Kind, Withdraw] = {}
        self._clear: dict[Kind, Clear] = {}
        self._stopping = False
        self._interrupted: set[str] = set()  # ids of jobs that an outage interrupted here
        queue.register(self._run, names=[RUN_JOB])

    def register(self, kind: Kind, work: Work, *, withdraw: Withdraw | None = None, clear: Clear | None = None) -> None:
        """Set the functions of a kind of job.

        Args:
            kind: Kind of job.
            work: Does the work and gives the job its final status, unless the job is stopped.
            withdraw: Prevents any later use of the job's result; returns False if the result is in use already.
            clear: Deletes the job's own data; called after every kind of end.
        """
        self._work[kind] = work
        if withdraw:
            self._withdraw[kind] = withdraw
        if clear:
            self._clear[kind] = clear
        for outcome in ("succeeded", "failed", "cancelled", "superseded"):
            self._metrics.jobs.labels(kind, outcome)

    async def add(self, job: Job) -> None:
        """Queue a job. To queue it again while it has not ended has no effect."""
        await self._guard(lambda: self._queue.add(RUN_JOB, key=job_key(job))(job.id))

    async def cancel(self, job: Job) -> bool:
        """Cancel a queued or running job. False if it has ended, or its result is in use."""
        if (withdraw := self._withdraw.get(job.kind)) and not await withdraw(job):
            return False
        return await self.end(job, "cancelled")

    async def end(self, job: Job, status: Status, **fields: object) -> bool:
        """Give a job its final status and count it. False if it has one already.

        A running job stops before its next step, in whatever process it runs; a queued job never begins.
        """
        ended = await self._jobs.end(job.id, status, **fields)
        if ended:
            self._metrics.jobs.labels(job.kind, status).inc()
            if clear := self._clear.get(job.kind):
                await clear(job)
        return ended

    def note_superseded(self, job_id: str | None) -> None:
        """Count and log a tuning job that a script of the store has superseded; None if there was none."""
        if job_id is not None:
            self._metrics.jobs.labels("tune", "superseded").inc()
            _log.info("job %s superseded", job_id)

    async def recover(self, *, age_s: float = 0.0) -> None:
        """Queue every job that has not ended, is not in the queue, and that no worker runs.

        Its process may have died between record and queue, or the queue has lost it.

        Args:
            age_s: Least time since the job was recorded.

        Raises:
            StoreError: If the store is away or takes no writes.
        """
        if not (going := await self._jobs.unended(age_s=age_s)):
            return
        held = await self._guard(self._queue.held)
        for job in reversed(going):  # the oldest first
            if job_key(job) not in held:
                await self._put_again(job)

    async def _put_again(self, job: Job) -> None:
        """Queue a job that was not in the queue, unless it has ended since, or a worker runs it all the same."""
        current = await self._jobs.get(job.id)
        if current is None or current.ended or await self._jobs.is_leased(job.id):
            return
        try:
            await self._guard(lambda: self._queue.put_again(job_key(job), job.id))
        except StoreError as error:
            if is_outage(error):
                raise
            # What is stored of it is damaged: that must cost no other job.
            _log.error("job %s could not be queued: %s", job.id, error, extra={"job_id": job.id})
        else:
            _log.warning("job %s was not in the queue: it is queued now", job.id)

    async def step(self, job: Job, *, step: int, steps: int, loss: float | None = None) -> bool:
        """Record a step. False if the job was cancelled or superseded: the work must return at once.

        Raises:
            WorkerStopping: If this process stops: the job returns to the queue.
        """
        wanted = await self._jobs.step(job.id, step=step, steps=steps, loss=loss)
        if wanted and self._stopping:
            raise WorkerStopping
        return wanted

    async def stopped(self, job: Job) -> bool:
        """True if the job was cancelled or superseded: the work must return at once.

        Raises:
            WorkerStopping: If this process stops: the job returns to the queue.
        """
        current = await self._jobs.get(job.id)
        if current is None or current.ended:
            return True
        if self._stopping:
            raise WorkerStopping
        return False

    async def work(self) -> None:
        """Run jobs until cancelled; running jobs then return to the queue at their next step.

        Their commands wait for a store that is away.
        """
        with patience():
            await self._work_patiently()

    async def _work_patiently(self) -> None:
        self._stopping = False
        # Its only message would be a traceback for every job that returns to the queue.
        logging.getLogger("docket.dependencies").setLevel(logging.CRITICAL)
        async with Worker(
            self._queue,
            concurrency=self._concurrency,
            redelivery_timeout=self._redelivery,
            minimum_check_interval=timedelta(milliseconds=50),
            scheduling_resolution=timedelta(milliseconds=100),
            reconnection_delay=timedelta(seconds=1),
        ) as worker:
            running = asyncio.create_task(worker.run_forever(), name="job-worker")
            sweeping = asyncio.create_task(self._sweep_forever(), name="job-sweep")
            try:
                await asyncio.shield(running)
            finally:
                self._stopping = True
                sweeping.cancel()
                running.cancel()
                await asyncio.wait([sweeping])
                with suppress(asyncio.CancelledError):
                    await running

    async def _sweep_forever(self) -> None:
        while not self._stopping:  # a command of the store may swallow the cancellation: see `renewing`
            await asyncio.sleep(_SWEEP_PAUSE_S)
            try:
                await self.recover(age_s=_OVERDUE_S)
            except Exception as error:  # an outage of the store, or a bug: the next sweep tries again
                _log.warning("jobs that were not queued could not be looked for: %r", error)

    async def _run(
        self,
        job_id: str,
        execution: Execution = CurrentExecution(),  # noqa: B008  # how pydocket injects
        retry: Retry = Retry(attempts=None),  # noqa: B008
    ) -> None:
        """Task of the queue. Raises only to request redelivery."""
        # After an outage in which this process could not give the job back, it comes again although nobody died.
        interrupted = job_id in self._interrupted
        self._interrupted.discard(job_id)
        try:
            await self._begin(job_id, redelivered=execution.redelivered, interrupted=interrupted)
        except _RunsAlreadyError as running:
            _log.info("job %s is left to the worker that still runs it", job_id)
            retry.after(timedelta(seconds=running.leased_s))
        except WorkerStopping:
            await self._jobs.requeue(job_id)
            _log.info("job %s given back", job_id)
            retry.after(timedelta(0))
        except StoreError as error:
            _log.warning("job %s was interrupted by an outage of the store, and begins anew: %s", job_id, error)
            self._interrupted.add(job_id)
            retry.after(timedelta(seconds=_OUTAGE_PAUSE_S))

    async def _begin(self, job_id: str, *, redelivered: bool, interrupted: bool) -> None:
        """Run a job, unless it has ended or its workers died too often.

        Raises:
            _RunsAlreadyError: If a worker runs it, although the queue delivers it again: its connection was cut.
        """
        job = await self._jobs.get(job_id)
        if job is None or job.ended:
            return
        if job.status == "running" and not interrupted and (leased_s := await self._jobs.leased_s(job_id)):
            raise _RunsAlreadyError(leased_s)
        # One that runs without a lease lost its worker too, also if that lease was still waited for.
        if (redelivered or job.status == "running") and not interrupted:
            self._metrics.job_redeliveries.inc()
            if await self._jobs.count_death(job_id) >= _MAX_DEATHS:
                await self.end(job, "failed", error=f"The worker died {_MAX_DEATHS} times under this job.")
                return
        if not await self._jobs.start(job_id, steps=job.steps):
            return
        with (
            self._metrics.jobs_running.labels(job.kind).track_inprogress(),
            logs.about(job_id=job.id, category=job.category),
        ):
            # Under a lease no other process takes the job for lost, even if the queue has lost it.
            seconds = self._redelivery.total_seconds()
            lease = partial(self._jobs.lease, job_id, seconds=seconds)
            await lease()
            async with renewing(lease, every_s=seconds / 4):
                await self._timed(job)

    async def _timed(self, job: Job) -> None:
        started = time.perf_counter()
        try:
            await self._work[job.kind](job)
        except WorkerStopping:
            raise
        except AppError as error:
            await self.end(job, "failed", error=error.detail)
        except Exception as error:
            if is_outage(error):  # no fault of the job
                raise
            # A bug or a lack of memory: the job must end with a correct status in any case.
            _log.exception("job %s failed", job.id)
            await self.end(job, "failed", error=f"Internal error ({type(error).__name__}); the log has the rest.")
        self._metrics.job_duration.labels(job.kind).observe(time.perf_counter() - started)


class WorkerStopping(Exception):
    """Raised inside a job when this process stops: the job returns to the queue."""


class _RunsAlreadyError(Exception):
    """Raised for a job that a worker runs.

    Args:
        leased_s: Seconds until its lease ends, unless that worker renews it.
    """

    def __init__(self, leased_s: float) -> None:
        self.leased_s = leased_s


def job_key(job: Job) -> str:
    """Key of a job in the queue, which drops a second job with the same key while the first has not ended."""
    if job.kind == "tune":
        return f"tune:{job.category_id}:{job.generation}"
    return f"rank:{job.id}"
