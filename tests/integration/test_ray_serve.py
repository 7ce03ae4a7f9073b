"""The application under Ray Serve: its middleware without Ray, and two replicas if Ray is installed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from app import ray_serve
from app.api import problems
from app.errors import OverloadedError
from app.metrics import Metrics
from app.services.lane import Lane
from tests.backbones import albef_model

REPOSITORY = Path(__file__).parents[2]
NEEDS_RAY = "needs Ray: pip install -c constraints.txt -e '.[ray]'"


# Around a proxy


def through_proxy(answer: Response | None, path: str = "/segment") -> Any:
    """The response that a caller gets for a response of the proxy."""

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if answer:
            await answer(scope, receive, send)

    return TestClient(ray_serve.ProxyProblems(proxy)).get(path)


def test_a_proxys_refusal_is_a_problem_as_the_service_makes_them() -> None:
    refused = PlainTextResponse("Request dropped due to backpressure", 503, headers={"Retry-After": "7"})
    own = problems.of(OverloadedError("Every replica is busy: try again in a second."))

    answer = through_proxy(refused)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.headers["content-type"] == own.headers["content-type"] == problems.MEDIA_TYPE
    assert answer.json() == json.loads(own.body)


def test_a_proxy_without_replicas_says_when_to_ask_again() -> None:
    answer = through_proxy(PlainTextResponse("Application is unavailable", 503))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert problems.Problem.model_validate(answer.json()).title == "Unavailable"


def test_no_answer_at_all_is_a_problem_too() -> None:
    """A proxy leaves the caller to the server when a replica has died: a bare 500."""
    answer = through_proxy(None)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "Idempotency-Key" in problems.Problem.model_validate(answer.json()).detail


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("exemplar_ready 1.0"),
        PlainTextResponse("not found", 404),
        problems.of(OverloadedError("The lane is full.")),
    ],
    ids=["metrics", "not found", "a replica's own problem"],
)
def test_other_answers_pass_as_they_are(answer: Response) -> None:
    passed = through_proxy(answer)

    assert (passed.status_code, passed.content) == (answer.status_code, answer.body)
    assert passed.headers["content-type"] == answer.headers["content-type"]


def test_a_proxys_own_pages_are_left_alone() -> None:
    assert through_proxy(PlainTextResponse("not ready", 503), "/-/healthz").text == "not ready"


# In a replica


def test_requests_get_the_lifespans_state_and_answers_name_the_replica() -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"service": "live"}

    async def counted(request: Request) -> JSONResponse:
        request.state.count = getattr(request.state, "count", 0) + 1
        return JSONResponse([request.state.service, request.state.count])

    state: dict[str, Any] = {}
    application = ray_serve.InReplica(
        Starlette(routes=[Route("/", counted)], lifespan=lifespan), state=state, replica_id="r7"
    )

    async def run_as_ray_does(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope.pop("state", None)
        await application(scope, receive, send)

    with TestClient(run_as_ray_does) as client:
        answers = [client.get("/") for _ in range(2)]

    assert [answer.json() for answer in answers] == [["live", 1], ["live", 1]]
    assert {answer.headers[ray_serve.REPLICA_HEADER] for answer in answers} == {"r7"}
    assert state == {"service": "live"}


@pytest.fixture
def lane():
    with Lane("tiny", limit=2, threads=1, side_by_side=1, metrics=Metrics()) as running:
        yield running


def live(lane: Lane, **about: bool) -> Any:
    model = SimpleNamespace(lane=lane, **({"warm": True, "unloaded": False} | about))
    return SimpleNamespace(models=[model])


async def test_a_replica_whose_lane_answers_is_healthy(lane: Lane) -> None:
    probe = ray_serve._Probe(live(lane))

    await probe.look()

    assert probe.answered


async def test_a_busy_lane_is_healthy_until_it_has_been_busy_for_too_long(lane, monkeypatch) -> None:
    monkeypatch.setattr(ray_serve, "_PROBE_S", 0.01)
    done = threading.Event()
    busy = asyncio.create_task(lane.run(done.wait, kind="segment"))
    await asyncio.sleep(0)
    probe = ray_serve._Probe(live(lane))

    await probe.look()
    assert not probe.answered
    monkeypatch.setattr(ray_serve, "_LANE_HANGS_AFTER_S", 0.0)
    with pytest.raises(RuntimeError, match="next call"):
        await probe.look()

    done.set()
    await busy


async def test_a_replica_counts_once_its_models_are_warm(lane, monkeypatch) -> None:
    service = live(lane, warm=False)
    waiting = asyncio.create_task(ray_serve._warm(service))
    await asyncio.sleep(0.1)
    assert not waiting.done()

    service.models[0].warm = True
    await asyncio.wait_for(waiting, 5)
    await ray_serve._warm(live(lane, warm=False, unloaded=True))

    monkeypatch.setattr(ray_serve, "_LANE_HANGS_AFTER_S", 0.01)
    with pytest.raises(TimeoutError):
        await ray_serve._warm(live(lane, warm=False))


# Settings


@pytest.fixture
def setting(monkeypatch) -> Callable[..., None]:
    for name in [name for name in os.environ if name.startswith(("EXEMPLAR_", "RAY_"))]:
        monkeypatch.delenv(name)

    def change(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return change


def test_the_store_must_be_one_that_replicas_can_share(setting) -> None:
    with pytest.raises(ValueError, match="EXEMPLAR_REDIS_URL is not set"):
        ray_serve._settings()


def test_haproxy_hides_who_calls(setting) -> None:
    setting(EXEMPLAR_REDIS_URL="redis://store", RAY_SERVE_ENABLE_HA_PROXY="1")
    with pytest.raises(ValueError, match="EXEMPLAR_ALLOW_ANONYMOUS=true"):
        ray_serve._settings()

    setting(EXEMPLAR_API_KEYS=f"read:{'0' * 64}")
    assert ray_serve._settings().redis_url == "redis://store"

    setting(EXEMPLAR_API_KEYS="", EXEMPLAR_ALLOW_ANONYMOUS="true")
    assert ray_serve._settings().redis_url == "redis://store"


def test_the_deployment_is_what_arguments_and_settings_say(setting) -> None:
    pytest.importorskip("ray.serve", reason=NEEDS_RAY)  # which also ignores the warnings of Ray's own files
    setting(EXEMPLAR_REDIS_URL="redis://store", EXEMPLAR_QUEUE_LIMIT="7", EXEMPLAR_LOG="json")
    words = {"replicas": "2", "max_replicas": "5", "num_gpus": "0.5"}  # as the command line gives them

    deployment = ray_serve.build(words)._bound_deployment

    assert deployment.name == ray_serve.NAME
    assert deployment.max_ongoing_requests > 7
    assert deployment.max_queued_requests >= deployment.max_ongoing_requests
    assert deployment.ray_actor_options == {"num_cpus": 1.0, "num_gpus": 0.5}
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert deployment.logging_config["encoding"] == "JSON"
    with pytest.raises(ValueError, match="gpus"):
        ray_serve.build({"gpus": "1"})


# Two replicas


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason=NEEDS_RAY)
@pytest.mark.timeout(300)
def test_two_replicas_on_one_store(tmp_path: Path) -> None:
    """Ray, its proxies and the replicas, as deploy/ray/measure.py runs them: most of a minute."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("EXEMPLAR_", "RAY_"))}
    own = {"BACKBONE": albef_model.write(tmp_path / "tiny", patch_px=48), "TUNE_STEPS": "3", "THREADS": "1"}
    done = subprocess.run(
        [sys.executable, REPOSITORY / "deploy/ray/measure.py", "--short"],
        env=outer | {"PYTHONPATH": str(REPOSITORY)} | {f"EXEMPLAR_{name}": value for name, value in own.items()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    shared = found["one_learns_another_knows"]
    assert shared["taught_by"] != shared["segmented_by"]
    assert shared["adapter_version"] == 1

    killed = found["killed"]
    assert killed["kept"] == 1
    ended = "503, application/problem+json, Unavailable, from the proxy, Retry-After 1"
    assert set(killed["answers"]) <= {"200", ended}
    assert killed["answers"]["200"] > killed["answers"].get(ended, 0)

    overloaded = "503, application/problem+json, Overloaded, from a replica, Retry-After 1"
    assert set(found["at_once"]) <= {"200", overloaded, overloaded.replace("a replica", "the proxy")}
