"""Changes of annotations wait in the store, and are made in order by one process at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import Redis

from app.errors import UnavailableError
from app.services.labelling import changes
from app.services.labelling.changes import Changes, Forget, ForgetTasks
from app.storage import keys
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

    async def forget_tasks(self, tasks: Collection[int]) -> None:
        for task in tasks:
            await self.forget(task)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_LOOK_S", 0.02)
    monkeypatch.setattr(changes, "_MAX_PAUSE_S", 0.01)


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
        pending = set(tasks)
        while pending:  # a command of the store may swallow a cancellation, see `renewing`
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_several_processes_make_them_once_and_in_order(redis: Redis) -> None:
    made = Made()
    several = [changes_of(redis, made) for _ in range(3)]
    async with working(*several):
        for n in range(0, 24, 4):
            await several[n % 3].add([Forget(n), ForgetTasks((n + 1, n + 2)), Forget(n + 3)])
        await until(lambda: len(made.made) == 24)
        await asyncio.sleep(0.1)
    assert made.made == list(range(24))


async def test_who_has_lost_the_lock_leaves_the_rest_to_its_new_owner(redis: Redis) -> None:
    class Slow(Made):
        async def forget(self, annotation: int) -> None:
            if annotation == 1:  # so slowly that another process has the lock by now
                await redis.set(keys.ANNOTATION_CHANGES_LOCK, "another's")
            await super().forget(annotation)

    made = Slow()
    one = changes_of(redis, made)
    await one.add([Forget(1)])
    await one.add([Forget(2)])
    async with working(one):
        await until(lambda: made.made == [1])
        await asyncio.sleep(0.1)
        assert made.made == [1]
        await redis.delete(keys.ANNOTATION_CHANGES_LOCK)
        await until(lambda: made.made == [1, 2])


async def test_those_that_an_older_release_stored_are_made_too(redis: Redis) -> None:
    made = Made()
    await redis.rpush(keys.ANNOTATION_CHANGES, '{"annotation": 1, "kind": "forget"}')
    await redis.rpush(keys.ANNOTATION_CHANGES, '{"task": 2, "kind": "forget-task"}')
    async with working(changes_of(redis, made)):
        await until(lambda: made.made == [1, 2])


async def test_an_outage_is_told_once_and_the_change_made_after_it(redis: Redis, caplog) -> None:
    made = Made(*[StoreAwayError("no answer")] * 5)
    one = changes_of(redis, made)
    async with working(one):
        await one.add([Forget(1)])
        await one.add([Forget(2)])
        await until(lambda: made.made == [1, 2])
    assert caplog.messages.count("annotations wait to be learnt: no answer") == 1


async def test_a_host_that_is_busy_is_asked_again_after_the_pause_that_it_names(redis: Redis, monkeypatch) -> None:
    made, pauses = Made(UnavailableError("429", retry_after_s=7), UnavailableError("429", retry_after_s=1000)), []

    async def noted(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(changes, "_MAX_PAUSE_S", 60.0)
    monkeypatch.setattr(asyncio, "sleep", noted)
    await changes_of(redis, made)._tried(partial(made.forget, 1))
    assert (made.made, pauses) == ([1], [7, 60])


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([UnavailableError("Label Studio does not answer.")] * 4, "start the training in Label Studio to learn it"),
        ([TypeError("a bug")], "an annotation is not learnt"),
    ],
    ids=["it is away", "a bug"],
)
@pytest.mark.parametrize("together", [True, False])
async def test_one_that_fails_keeps_no_other_waiting(
    redis: Redis, caplog, errors: list[Exception], said: str, together: bool
) -> None:
    made = Made(*errors)
    one = changes_of(redis, made)
    async with working(one):
        for entry in [[Forget(1), Forget(2)]] if together else [[Forget(1)], [Forget(2)]]:
            await one.add(entry)
        await until(lambda: made.made == [2])
    assert said in caplog.text
