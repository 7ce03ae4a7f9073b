"""Routes that read, follow and cancel jobs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.sse import EventSourceResponse

from app.api.context import Live, Maybe
from app.api.pages import LINKED, WantedPage
from app.api.problems import documented
from app.api.schemas import JobOut
from app.errors import ConflictError, NotFoundError
from app.storage.connection import StoreError
from app.storage.jobs import Job, Status
from app.storage.names import CategoryName

router = APIRouter(prefix="/jobs", tags=["jobs"])

_log = logging.getLogger(__name__)


@router.get("", responses=documented(422) | LINKED)
async def list_jobs(
    request: Request,
    response: Response,
    wanted: WantedPage,
    live: Live,
    category: Annotated[Maybe[str], Query(description="Only jobs of this category.")] = None,
    status: Annotated[Maybe[Status], Query(description="Only jobs with this status.")] = None,
) -> list[JobOut]:
    """List jobs, the newest first, a page at a time."""
    category_id = CategoryName.parse(category, field="category").id if category is not None else None
    page = await live.jobs.page(limit=wanted.limit, cursor=wanted.cursor, category_id=category_id, status=status)
    wanted.link_next(request, response, page.cursor)
    return [JobOut.of(job) for job in page.items]


async def existing_job(id: str, live: Live) -> Job:
    """The job with the id in the path.

    Raises:
        NotFoundError: If there is none.
        ConflictError: If its record can't be read.
    """
    job = await live.jobs.get(id)
    if job is None and (fault := live.jobs.unreadable(id)):
        raise ConflictError(
            f"The record of the job {id} can't be read ({fault}): delete it with DELETE /jobs/{{id}}.", field="id"
        )
    if job is None:
        raise NotFoundError(
            f"There is no job {id!r}: the id is wrong, or the record of the ended job expired (EXEMPLAR_JOB_TTL_S).",
            field="id",
        )
    return job


ExistingJob = Annotated[Job, Depends(existing_job)]


@router.get("/{id}", responses=documented(404, 409, 422))
async def get_job(job: ExistingJob) -> JobOut:
    """Return one job."""
    return JobOut.of(job)


@router.delete("/{id}", responses=documented(404, 409, 422))
async def cancel_job(id: str, live: Live) -> JobOut:
    """Cancel a job; a running one stops before its next step. The adapter in use and the new example are kept.

    A record that can't be read is deleted.
    """
    if await live.jobs.get(id) is None and live.jobs.unreadable(id):
        return JobOut.of(await live.jobs.discard(id))
    job = await existing_job(id, live)
    if not await live.engine.cancel(job):
        status = (await existing_job(job.id, live)).status
        raise ConflictError(
            f"The job can't be cancelled: it has ended, or its result is already in use (status {status}).", field="id"
        )
    return JobOut.of(await existing_job(job.id, live))


async def states_of_job(job: ExistingJob, live: Live) -> AsyncIterator[AsyncIterator[Job]]:
    """The job at every change. As a dependency it refuses an excess stream before the response begins."""
    async with live.jobs.events(job.id) as states:
        yield states


@router.get("/{id}/events", response_class=EventSourceResponse, responses=documented(404, 409, 422))
async def follow_job(states: Annotated[AsyncIterator[Job], Depends(states_of_job)]) -> AsyncIterator[JobOut]:
    """Stream the job as server-sent events: its current state, every change, and its final state.

    A stream that ends without a final state was cut off, because the store does not answer.
    """
    try:
        async for state in states:
            yield JobOut.of(state)
    except StoreError as error:  # its status is sent, so that it can only end
        _log.warning("an event stream was cut off: the store does not answer: %s", error)
