"""Entry point for Ray Serve: replicas of the same application on the same wiring, on one machine or many.

    EXEMPLAR_REDIS_URL=redis://… serve run app.ray_serve:build replicas=2

Ray starts, monitors, replaces and scales the replicas and distributes requests to them. Requests wait for a model in
its lane, as in the plain service. docs/ray.md says how to run it and what was measured.

Ray is not a dependency of the service: it is imported where it is used. So is `app.main`, because Ray's proxies also
import this module (`proxy_middlewares`) and do not need torch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import telemetry
from app.settings import Settings, unknown_variables

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from app.wiring import Service

# Name of the deployment in config files.
NAME = "exemplar"

# Calls of one replica that wait for no model: uploads, event streams, reads of jobs and categories. Few, because a
# replica has one event loop; the store's client has a hundred connections for them, and more for event streams.
_CALLS_BESIDE_THE_QUEUE = 32

# As long as a full queue of a slow model may take. Ray kills an unhealthy replica, and killing one that is only busy
# moves its load to the others, so the limit is long.
_LANE_HANGS_AFTER_S = 300.0
_PROBE_S = 1.0

# As in deploy/kubernetes: for current requests, then for the calls in the lanes.
_SHUTDOWN_S = 30.0

REPLICA_HEADER = "X-Replica"


class Arguments(BaseModel):
    """Arguments of `serve run app.ray_serve:build name=value …`, or of `args` in a config file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(1, ge=1, description="Replicas to run.")
    max_replicas: int | None = Field(None, ge=1, description="Scale between `replicas` and this number, by load.")
    num_cpus: float = Field(1.0, ge=0.0, description="CPUs of a replica; EXEMPLAR_THREADS follows them.")
    num_gpus: float = Field(0.0, ge=0.0, description="GPUs of a replica; 0.5 lets two replicas share one.")


def build(args: dict[str, Any]) -> Application:
    """The application for `serve run` and config files.

    Args:
        args: Values for `Arguments`. Ray could parse them itself, but doesn't resolve annotations that are strings.

    Raises:
        ValueError: If an argument or setting can't be used; the sentence says what to do.
    """
    from ray import serve

    settings = _settings()
    wanted = Arguments.model_validate(args)
    # More than the lane's queue: a replica with a full queue then answers 503 itself, and counts it in its metrics.
    calls = settings.queue_limit + _CALLS_BESIDE_THE_QUEUE
    scaling: dict[str, Any] = {"num_replicas": wanted.replicas}
    if wanted.max_replicas:
        scaling = {"autoscaling_config": {"min_replicas": wanted.replicas, "max_replicas": wanted.max_replicas}}
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": wanted.num_cpus, "num_gpus": wanted.num_gpus},
        max_ongoing_requests=calls,
        # Per proxy, while no replica accepts them. Not fewer: requests that are being handed over count too, so a proxy
        # would refuse a burst that its replicas have room for. Not many more: the proxy keeps their bodies in memory.
        max_queued_requests=calls,
        backpressure_config={"retry_after_s": 1},
        logging_config={"encoding": "JSON" if settings.log == "json" else "TEXT"},
        graceful_shutdown_timeout_s=_SHUTDOWN_S,
        **scaling,
    )
    return deployment(serve.ingress()(Replica)).bind()


class Replica:
    """One Ray process that answers requests and, unless EXEMPLAR_WORKER=false, runs jobs."""

    def __init__(self) -> None:
        from ray import serve

        # Ray writes the lines of its own logger to the replica's log; other loggers have no handler in its processes.
        own, rays = logging.getLogger("app"), logging.getLogger("ray.serve")
        own.handlers, own.level = rays.handlers, logging.INFO
        for sentence in unknown_variables(os.environ):
            own.warning(sentence)
        telemetry.configure()
        self._settings = _settings_of_replica()
        self._state: dict[str, Any] = {}
        self._id = serve.get_replica_context().replica_id.unique_id
        self._probe: _Probe | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Ray runs its lifespan in this process and passes it the requests."""
        from app.main import create_app

        app = create_app(self._settings)
        app.add_middleware(InReplica, state=self._state, replica_id=self._id)
        return app

    async def check_health(self) -> None:
        """Return if the models answer; Ray asks before the first request and every ten seconds.

        The store isn't tested: a new replica could not reach it either. `/readyz` tests it.

        Raises:
            RuntimeError: If a lane doesn't reach its next call in time.
        """
        live: Service = self._state["service"]
        if self._probe is None:
            await _warm(live)
        if self._probe is None or self._probe.answered:
            self._probe = _Probe(live)
        await self._probe.look()


class _Probe:
    """An empty call in every lane. It queues like other calls, under load for longer than Ray waits for an answer."""

    def __init__(self, live: Service) -> None:
        self._asked_at = time.monotonic()
        lanes = [model.lane for model in live.models]
        self._task = asyncio.gather(*(lane.run(lambda: None, kind="rank") for lane in lanes))

    @property
    def answered(self) -> bool:
        """True if every lane has run the call."""
        return self._task.done()

    async def look(self) -> None:
        """Wait briefly for the answers; raise if they are overdue."""
        await asyncio.wait([self._task], timeout=_PROBE_S)
        if self._task.done():
            self._task.result()
        elif time.monotonic() - self._asked_at > _LANE_HANGS_AFTER_S:
            raise RuntimeError(f"a model has not started its next call for {_LANE_HANGS_AFTER_S:.0f} s")


async def _warm(live: Service) -> None:
    """Wait until the models are warm: as soon as a replica is healthy, Ray sends it requests."""
    async with asyncio.timeout(_LANE_HANGS_AFTER_S):
        while not all(model.warm or model.unloaded for model in live.models):
            await asyncio.sleep(0.05)


class InReplica:
    """Middleware that passes on the lifespan's state, as uvicorn does, and adds the header with the replica's name."""

    def __init__(self, app: ASGIApp, *, state: dict[str, Any], replica_id: str) -> None:
        self._app = app
        self._state = state
        self._replica_id = replica_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REPLICA_HEADER] = self._replica_id
            await send(message)

        scope["state"] = self._state if scope["type"] == "lifespan" else dict(self._state)
        await self._app(scope, receive, named)


def _settings() -> Settings:
    settings = Settings()
    if not settings.redis_url:
        raise ValueError(
            "EXEMPLAR_REDIS_URL is not set: replicas share one Redis or Valkey, and the embedded server belongs to one "
            "process. Set it where Ray's processes start."
        )
    # HAProxy connects to replicas from their own node and doesn't pass on the caller's address.
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and not (settings.allow_anonymous or settings.api_keys):
        raise ValueError(
            "Behind RAY_SERVE_ENABLE_HA_PROXY=1 every caller seems to be on this machine: unset it, or set "
            "EXEMPLAR_API_KEYS, or EXEMPLAR_ALLOW_ANONYMOUS=true behind a gateway that authenticates callers."
        )
    return settings


def _settings_of_replica() -> Settings:
    """Settings with one thread per CPU that Ray assigned, because Ray doesn't enforce the assignment."""
    import ray

    settings = _settings()
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
    if settings.threads or not cpus:
        return settings
    return settings.model_copy(update={"threads": math.ceil(cpus)})


def proxy_middlewares() -> list[Middleware]:
    """Middleware of every proxy, for RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=app.ray_serve:proxy_middlewares."""
    return [Middleware(ProxyProblems)]


class ProxyProblems:
    """Middleware that turns a proxy's own answers into problems: 503 in plain text, or none if a replica died."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the proxy."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # the proxy's own pages, for load balancers
            return await self._app(scope, receive, send)
        instead: Response | None = None
        answered = False

        async def translated(message: Message) -> None:
            nonlocal instead, answered
            if message["type"] == "http.response.start":
                answered = True
                instead = _instead_of(message)
            if instead is None:
                await send(message)

        await self._app(scope, receive, translated)
        if not answered:
            instead = _problem(
                "Unavailable",
                "The replica ended before it answered: send the request again. For calls that start jobs, an "
                "Idempotency-Key makes the repetition safe.",
                retry_after_s="1",
            )
        if instead is not None:
            await instead(scope, receive, send)


def _instead_of(start: Message) -> Response | None:
    headers = Headers(raw=start["headers"])
    if start["status"] != 503 or not headers.get("content-type", "").startswith("text/plain"):
        return None
    if retry_after_s := headers.get("retry-after"):
        return _problem("Overloaded", "Every replica is busy: try again in a second.", retry_after_s=retry_after_s)
    return _problem("Unavailable", "No replica runs: send the request again in a few seconds.", retry_after_s="5")


def _problem(title: str, detail: str, *, retry_after_s: str) -> Response:
    """Problem of the same form as those of `app.api.problems`."""
    body = {
        "type": f"urn:exemplar:problem:{title.lower()}",
        "title": title,
        "status": 503,
        "detail": detail,
        "errors": [],
    }
    return Response(
        json.dumps(body), 503, headers={"Retry-After": retry_after_s}, media_type="application/problem+json"
    )
