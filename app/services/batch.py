"""Bounded concurrency for the calls of one request; results in order of completion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

from app.errors import OverloadedError

Result = TypeVar("Result")


async def as_ready(
    calls: Iterable[Callable[[], Coroutine[Any, Any, Result]]], *, at_once: int
) -> AsyncGenerator[Result, None]:
    """Run calls concurrently and yield their results in order of completion.

    The next call begins when the consumer has taken a result. If the consumer stops, running calls are cancelled and
    the others never begin.

    Args:
        calls: Calls, started in this order.
        at_once: Largest number of concurrent calls.
    """
    waiting = iter(calls)
    running: set[asyncio.Task[Result]] = set()
    done: set[asyncio.Task[Result]] = set()
    try:
        while True:
            running |= {asyncio.create_task(call()) for call in islice(waiting, at_once - len(running))}
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        # Also of those that have ended: an error that nobody asks for is logged as one.
        await asyncio.gather(*running, *done, return_exceptions=True)


async def patiently(call: Callable[[], Awaitable[Result]]) -> Result:
    """Repeat a call while the queue is full, each time after the delay that the refusal names."""
    while True:
        try:
            return await call()
        except OverloadedError as error:
            await asyncio.sleep(error.retry_after_s or 0)
