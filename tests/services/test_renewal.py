"""Renewal of what expires, while a body runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from app.services.renewal import renewing
from app.storage.breaker import StoreAwayError


async def test_an_action_is_repeated_although_the_store_fails_it() -> None:
    calls: list[int] = []
    enough = asyncio.Event()

    async def renew() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise StoreAwayError("no answer")
        if len(calls) == 4:
            enough.set()

    async with asyncio.timeout(5), renewing(renew, every_s=0.01):
        await enough.wait()
    after = len(calls)
    await asyncio.sleep(0.05)
    assert len(calls) == after


async def test_it_ends_although_a_command_swallows_its_cancellation() -> None:
    """As `asyncio.wait_for` may do before Python 3.12."""
    begun = asyncio.Event()

    async def renew() -> None:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    async with asyncio.timeout(5), renewing(renew, every_s=0.01):
        await begun.wait()
