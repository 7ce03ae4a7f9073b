"""Requests of each caller, counted in the store."""

from __future__ import annotations

import asyncio

from app.storage.rate_limits import rate_limits


async def test_who_waits_as_long_as_it_is_told_may_pass(database: str) -> None:
    async with rate_limits(database, "1/2second") as limits:
        assert await limits.wait_s("a") is None
        await asyncio.sleep(0.6)
        assert await limits.wait_s("a") == 2
        assert await limits.wait_s("b") is None
