"""The store restarts or hangs: the responses to callers, and the outcome of jobs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.services import job_engine
from app.storage import connection


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
