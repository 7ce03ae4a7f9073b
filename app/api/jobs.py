"""Look at jobs, follow them, cancel them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.api.context import Live
from app.api.problems import documented
from app.api.schemas import JobOut
from app.errors import ConflictError, NotFoundError
from app.services.categories import clean_name
from app.storage import keys
from app.storage.jobs import Job, Status
from app.wiring import Service

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("", responses=documented(422))
async def list_jobs(
    live: Live,
    category: Annotated[str | None, Query(description="Only this category's.")] = None,
    status: Annotated[Status | None, Query(description="Only those in this state.")] = None,
) -> list[JobOut]:
    """Jobs, the newest first."""
    category_id = keys.category_id(clean_name(category, field="category")) if category is not None else None
    return [JobOut.of(job) for job in await live.jobs.list(category_id=category_id, status=status)]


@router.get("/{id}", responses=documented(404, 422))
async def get_job(id: str, live: Live) -> JobOut:
    """One job."""
    return JobOut.of(await _job(live, id))


@router.delete("/{id}", responses=documented(404, 409, 422))
async def cancel_job(id: str, live: Live) -> JobOut:
    """Cancel a job; one that is running stops before its next step and changes nothing."""
    job = await _job(live, id)
    if not await live.engine.cancel(job):
        status = (await _job(live, id)).status
        raise ConflictError(f"The job has ended or its result is in use ({status}): nothing to cancel.", field="id")
    return JobOut.of(await _job(live, id))


@router.get(
    "/{id}/events",
    response_class=StreamingResponse,
    responses=documented(404, 422)
    | {
        200: {
            "description": "The job at every change.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def follow_job(id: str, live: Live) -> StreamingResponse:
    """The job as server-sent events: now, at every change, and when it has ended."""
    await _job(live, id)
    return StreamingResponse(_events(live, id), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _events(live: Service, id: str) -> AsyncIterator[str]:
    async for job in live.jobs.events(id):
        yield f"data: {JobOut.of(job).model_dump_json()}\n\n"


async def _job(live: Service, id: str) -> Job:
    job = await live.jobs.get(id)
    if job is None:
        raise NotFoundError(
            f"There is no job {id!r}: it never was, or it ended too long ago (EXEMPLAR_JOB_TTL_S).", field="id"
        )
    return job
