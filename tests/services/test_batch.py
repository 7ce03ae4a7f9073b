"""Batches: a few calls at a time, results as soon as they are ready, no task left running."""

from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing
from functools import partial

import pytest

from app.errors import OverloadedError
from app.services.batch import as_ready, patiently


def test_results_come_as_they_are_ready_and_only_a_few_calls_run_at_once() -> None:
    running, most = 0, 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05 if number == 0 else 0.001)
        running -= 1
        return number

    async def scenario() -> list[int]:
        return [result async for result in as_ready((partial(call, n) for n in range(7)), at_once=2)]

    found = asyncio.run(scenario())
    assert sorted(found) == [0, 1, 2, 3, 4, 5, 6]
    assert found[-1] == 0  # the slow one held nobody up
    assert most == 2


def test_who_stops_listening_ends_what_runs_and_the_rest_never_begins() -> None:
    begun, cancelled = [], []

    async def call(number: int) -> int:
        begun.append(number)
        try:
            await asyncio.sleep(0 if number == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async def scenario() -> None:
        async with aclosing(as_ready((partial(call, n) for n in range(5)), at_once=2)) as results:
            async for _ in results:
                break
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
    assert begun == [0, 1]
    assert cancelled == [1]


def test_a_fault_ends_all() -> None:
    async def call(number: int) -> int:
        if number == 1:
            raise KeyError(number)
        await asyncio.sleep(60)
        return number

    async def scenario() -> None:
        async for _ in as_ready((partial(call, n) for n in range(3)), at_once=2):
            pass

    with pytest.raises(KeyError):
        asyncio.run(scenario())


def test_of_two_faults_at_once_the_second_is_not_logged_as_forgotten() -> None:
    forgotten: list[object] = []

    async def call() -> None:
        raise KeyError

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))
        with pytest.raises(KeyError):
            async for _ in as_ready([call, call], at_once=2):
                pass
        gc.collect()

    asyncio.run(scenario())
    assert forgotten == []


def test_no_calls() -> None:
    async def scenario() -> list[int]:
        return [result async for result in as_ready([], at_once=2)]

    assert asyncio.run(scenario()) == []


def test_patience() -> None:
    refused = [OverloadedError("full", retry_after_s=0), OverloadedError("full", retry_after_s=0)]

    async def call() -> str:
        if refused:
            raise refused.pop()
        return "done"

    assert asyncio.run(patiently(call)) == "done"
