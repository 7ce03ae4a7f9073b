"""An asynchronous connection to a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis


@pytest.fixture
async def redis(database: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(database) as redis:
        yield redis
