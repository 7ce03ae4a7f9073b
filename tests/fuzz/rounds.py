"""Rounds of the corpus against a running service, real or in the process of a test."""

from __future__ import annotations

import time
from collections.abc import Iterable
from random import Random

from redis import Redis

from tests.chaos.calls import Calls, Watch

from .records import NEIGHBOUR, VICTIM, change, damage, delete, look_everywhere, teach
from .uploads import attack

JOB_S = 60.0
ENDED = {"succeeded", "failed", "cancelled", "superseded"}


def uploads(calls: Calls, random: Random, numbers: Iterable[int]) -> None:
    """Send a hostile request for every number."""
    adapter = _taught(calls, NEIGHBOUR)
    for _ in numbers:
        attack(calls, random, adapter)


def records(calls: Calls, watch: Watch, redis: Redis, random: Random, numbers: Iterable[int]) -> None:
    """For every number damage one to three records, use the service, and delete what was damaged."""
    for number in numbers:
        for name in (VICTIM, NEIGHBOUR):
            _taught(calls, name)
        done = [damage(redis, random) for _ in range(random.randrange(1, 4))]
        context = f"round {number}, after {'; '.join(done)}"
        with watch.about(context):
            for violation in look_everywhere(calls):
                watch.blame(violation)
            change(calls, random)
            for violation in (*look_everywhere(calls), *delete(calls, redis, done)):
                watch.blame(violation)
        _mend(redis)


def _mend(redis: Redis) -> None:
    """Delete what was damaged and belongs to no category."""
    for key in redis.scan_iter("exemplar:*", count=1000):
        kinds = (b"job:", b"layers:", b"idempotency:", b"ranking:", b"receipt:")
        if key.startswith(tuple(b"exemplar:" + kind for kind in kinds)):
            redis.delete(key)


def _taught(calls: Calls, name: str) -> bytes:
    """The adapter of a category that is taught now, unless it was."""
    exported = calls.once("GET", "/categories/{name}/adapter", {"name": name})
    if exported.status == 404 or exported.answer is None or exported.status == 409:
        told = teach(calls, name)
        assert told.status == 202, told.answer
        _wait(calls, told.json()["job"]["id"])
        exported = calls.once("GET", "/categories/{name}/adapter", {"name": name})
    assert exported.answer is not None
    assert exported.status == 200, exported.answer.text
    return exported.answer.content


def _wait(calls: Calls, job_id: str) -> None:
    deadline = time.monotonic() + JOB_S
    while calls.once("GET", "/jobs/{id}", {"id": job_id}).json()["status"] not in ENDED:
        assert time.monotonic() < deadline, f"job {job_id} does not end"
        time.sleep(0.01)
