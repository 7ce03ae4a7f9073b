"""Renewal of what expires: an action that is repeated while a body runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from app.storage.connection import StoreError


@asynccontextmanager
async def renewing(action: Callable[[], Awaitable[object]], *, every_s: float) -> AsyncIterator[None]:
    """Repeat an action while the body runs, first after `every_s` seconds; if the store fails it, again after as many.

    Its end does not depend on cancellation alone: before Python 3.12 a command of the store may swallow one, because
    redis-py sends it under `asyncio.wait_for` (https://github.com/python/cpython/issues/86296).
    """
    ends = asyncio.Event()

    async def repeat() -> None:
        while not ends.is_set():
            await asyncio.sleep(every_s)
            with suppress(StoreError):
                await action()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        ends.set()
        task.cancel()
        await asyncio.wait([task])
