"""Job engine: runs the jobs that pydocket delivers at least once, and keeps their records correct."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

from docket import Docket, Retry, Worker
from docket.dependencies import CurrentExecution
from docket.execution import Execution

from app import logs
from app.errors import AppError
from app.metrics import Metrics
from app.storage.jobs import Job, JobStore, Kind, Status

Work = Callable[[Job], Awaitable[None]]
Withdraw = Callable[[Job], Awaitable[bool]]
Clear = Callable[[Job], Awaitable[None]]

# A job under which so many workers died is at fault itself (memory, most likely).
_MAX_DEATHS = 5

_log = logging.getLogger(__name__)


class JobEngine:
    """Queues jobs and, where a worker runs, works on them.

    The record is the truth about a job; the engine's payload is its id alone. Whatever happens to a process, the engine
    delivers the id again, and the job finds out from the record and the category what is left to do.

    Args:
        docket: Connected.
        jobs: The records.
        concurrency: Jobs at a time in this process.
        redelivery_s: Seconds after which a dead worker's job is delivered to another.
        metrics: Where outcomes are counted.
    """

    def __init__(
        self, docket: Docket, jobs: JobStore, *, concurrency: int, redelivery_s: float, metrics: Metrics
    ) -> None:
        self._docket = docket
        self._jobs = jobs
        self._concurrency = concurrency
        self._redelivery = timedelta(seconds=redelivery_s)
        self._metrics = metrics
        self._work: dict[Kind, Work] = {}
        self._withdraw: dict[Kind, Withdraw] = {}
        self._clear: dict[Kind, Clear] = {}
        self._stopping = False
        docket.register(self._run, names=["run_job"])

    def register(self, kind: Kind, work: Work, *, withdraw: Withdraw | None = None, clear: Clear | None = None) -> None:
        """Say what a kind of job does.

        Args:
            kind: Of job.
            work: Does it, and gives the job its final status unless it is stopped in between.
            withdraw: Makes sure that the job's result is not used any more; False if it is in use already.
            clear: Deletes what was stored for the job alone; called when it has ended in whatever way.
        """
        self._work[kind] = work
        if withdraw:
            self._withdraw[kind] = withdraw
        if clear:
            self._clear[kind] = clear
        for outcome in ("succeeded", "failed", "cancelled", "superseded"):
            self._metrics.jobs.labels(kind, outcome)

    async def add(self, job: Job) -> None:
        """Queue a job; queueing it twice is the same as once while it isn't done."""
        await self._docket.add("run_job", key=job_key(job))(job.id)

    async def cancel(self, job: Job) -> bool:
        """Cancel a job wherever it is: it changes nothing any more. False if it has ended, or its result is in use."""
        if (withdraw := self._withdraw.get(job.kind)) and not await withdraw(job):
            return False
        return await self.end(job, "cancelled")

    async def end(self, job: Job, status: Status, **fields: object) -> bool:
        """Give a job its final status, unless it has one already, and count it. False if it had.

        A job that is running stops before its next step, wherever it runs; one that is queued never begins.
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

    async def recover(self) -> None:
        """Queue every job that hasn't ended: one whose process died between recording and queueing it is among them."""
        for job in await self._jobs.list():
            if not job.ended:
                await self.add(job)

    async def step(self, job: Job, *, step: int, steps: int, loss: float | None = None) -> bool:
        """Record a step. False if the job isn't wanted any more: return at once.

        Raises:
            WorkerStopping: If this process stops: the job is given back, to be run by another or after the restart.
        """
        wanted = await self._jobs.step(job.id, step=step, steps=steps, loss=loss)
        if wanted and self._stopping:
            raise WorkerStopping
        return wanted

    async def stopped(self, job: Job) -> bool:
        """Whether the job was cancelled or superseded: return at once.

        Raises:
            WorkerStopping: If this process stops, as in `step`.
        """
        current = await self._jobs.get(job.id)
        if current is None or current.ended:
            return True
        if self._stopping:
            raise WorkerStopping
        return False

    async def work(self) -> None:
        """Work on jobs until cancelled; jobs in hand are then given back at their next step."""
        self._stopping = False
        # All it would say here is that a job is given back, as an error and with a traceback.
        logging.getLogger("docket.dependencies").setLevel(logging.CRITICAL)
        async with Worker(
            self._docket,
            concurrency=self._concurrency,
            redelivery_timeout=self._redelivery,
            minimum_check_interval=timedelta(milliseconds=50),
            scheduling_resolution=timedelta(milliseconds=100),
            reconnection_delay=timedelta(seconds=1),
        ) as worker:
            running = asyncio.create_task(worker.run_forever(), name="job-worker")
            try:
                await asyncio.shield(running)
            finally:
                self._stopping = True
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running

    async def _run(
        self,
        job_id: str,
        execution: Execution = CurrentExecution(),  # noqa: B008  # how pydocket injects
        retry: Retry = Retry(attempts=None),  # noqa: B008
    ) -> None:
        """What the engine calls. It never raises but to be delivered again."""
        job = await self._jobs.get(job_id)
        if job is None or job.ended:
            return
        if execution.redelivered:
            self._metrics.job_redeliveries.inc()
            if await self._jobs.count_death(job_id) >= _MAX_DEATHS:
                await self.end(job, "failed", error=f"The worker died {_MAX_DEATHS} times under this job.")
                return
        if not await self._jobs.start(job_id, steps=job.steps):
            return
        try:
            with (
                self._metrics.jobs_running.labels(job.kind).track_inprogress(),
                logs.about(job_id=job.id, category=job.category),
            ):
                await self._timed(job)
        except WorkerStopping:
            await self._jobs.requeue(job_id)
            _log.info("job %s given back", job_id)
            retry.after(timedelta(0))

    async def _timed(self, job: Job) -> None:
        started = time.perf_counter()
        try:
            await self._work[job.kind](job)
        except WorkerStopping:
            raise
        except AppError as error:
            await self.end(job, "failed", error=error.detail)
        except Exception as error:
            # A bug, an exhausted memory: the job ends in a truthful state whatever happened, and the log has the rest.
            _log.exception("job %s failed", job.id)
            await self.end(job, "failed", error=f"Internal error ({type(error).__name__}); the log has the rest.")
        self._metrics.job_duration.labels(job.kind).observe(time.perf_counter() - started)


class WorkerStopping(Exception):
    """This process stops: the job in hand is given back."""


def job_key(job: Job) -> str:
    """The engine drops a second job of the same key while the first lives."""
    if job.kind == "tune":
        return f"tune:{job.category_id}:{job.generation}"
    return f"rank:{job.id}"
