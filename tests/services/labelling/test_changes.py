"""Changes of annotations wait in the store, and are made in order by one process at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from app.errors import UnavailableError
from app.services.labelling import changes
from app.services.labelling.changes import Change, Changes, Forget, ForgetTask
from app.storage.annotation_changes import AnnotationChanges
from app.storage.breaker import StoreAwayError

pytestmark = pytest.mark.usefixtures("impatient")


class Made:
    """Stands for the examples: notes what is made, and fails as it is told."""

    def __init__(self, *errors: Exception) -> None:
        self.made: list[int] = []
        self._errors = list(errors)

    async def forget(self, annotation: int) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.made.append(annotation)

    forget_task = forget


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_LOOK_S", 0.02)
    monkeypatch.setattr(changes, "_PAUSE_S", 0.01)


@pytest.fixture
async def redis(database: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(database) as client:
        yield client


def changes_of(redis: Redis, made: Made) -> Changes:
    return Changes(AnnotationChanges(redis, most=100, most_bytes=2**20), made, client=None)


@asynccontextmanager
async def working(*several: Changes) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one.work()) for one in several]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_several_processes_make_them_once_and_in_order(redis: Redis) -> None:
    made = Made()
    several = [changes_of(redis, made) for _ in range(3)]
    told: list[Change] = [Forget(n) if n % 3 else ForgetTask(n) for n in range(23)]
    async with working(*several):
        for number, change in enumerate(told):
            await several[number % 3].add(change)
        await until(lambda: len(made.made) == 23)
        await asyncio.sleep(0.1)
    assert made.made == list(range(23))


async def test_an_outage_is_told_once_and_the_change_made_after_it(redis: Redis, caplog) -> None:
    made = Made(*[StoreAwayError("no answer")] * 5)
    one = changes_of(redis, made)
    async with working(one):
        await one.add(Forget(1))
        await one.add(Forget(2))
        await until(lambda: made.made == [1, 2])
    assert caplog.messages.count("annotations wait to be learnt: no answer") == 1


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([UnavailableError("Label Studio does not answer.")] * 4, "start the training in Label Studio to learn it"),
        ([TypeError("a bug")], "an annotation is not learnt"),
    ],
    ids=["it is away", "a bug"],
)
async def test_one_that_fails_keeps_no_other_waiting(redis: Redis, caplog, errors: list[Exception], said: str) -> None:
    made = Made(*errors)
    one = changes_of(redis, made)
    async with working(one):
        await one.add(Forget(1))
        await one.add(Forget(2))
        await until(lambda: made.made == [2])
    assert said in caplog.text
