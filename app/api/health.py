"""Routes for liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.context import Live
from app.api.problems import documented
from app.api.schemas import Healthy, Ready, UnreadableOut
from app.errors import UnavailableError

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=documented())
async def healthz() -> Healthy:
    """Return 200 if the process answers requests."""
    return Healthy()


@router.get("/readyz", responses=documented(503))
async def readyz(live: Live) -> Ready:
    """Return 200 if the model is warm, the store accepts writes and the queue has room; else 503 with the reasons.

    Stored records that can't be read are named in `unreadable`, up to a hundred; they are skipped and change no status.
    """
    reasons = await live.health.reasons()
    if reasons:
        raise UnavailableError(" ".join(reasons), retry_after_s=1)
    skipped = await live.health.unreadable()
    return Ready(unreadable=[UnreadableOut(kind=one.kind, id=one.id, detail=one.detail) for one in skipped])


@router.get(
    "/metrics",
    response_class=Response,
    responses=documented() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(live: Live) -> Response:
    """Return the Prometheus metrics of this process."""
    return Response(generate_latest(live.metrics.registry), media_type=CONTENT_TYPE_LATEST)
