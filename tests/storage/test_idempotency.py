"""Slots of Idempotency-Keys: claimed once, answered, released."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from app.storage import keys
from app.storage.idempotency import IdempotencyStore, Slot


@pytest.fixture
def slots(redis: Redis) -> IdempotencyStore:
    return IdempotencyStore(redis)


async def test_a_slot_is_claimed_once_and_released(slots: IdempotencyStore, redis: Redis) -> None:
    assert await slots.get("k") is None
    assert await slots.claim("k", "request")
    assert not await slots.claim("k", "other")
    assert await slots.get("k") == Slot("request", None)
    assert 0 < await redis.ttl(keys.idempotency("k")) <= keys.IDEMPOTENCY_RUNNING_TTL_S
    await slots.release("k")
    assert await slots.claim("k", "other")


async def test_an_answer_is_kept_for_a_day(slots: IdempotencyStore, redis: Redis) -> None:
    await slots.claim("k", "request")
    await slots.answer("k", "request", {"job": {"id": "1"}})
    assert await slots.get("k") == Slot("request", {"job": {"id": "1"}})
    assert keys.IDEMPOTENCY_RUNNING_TTL_S < await redis.ttl(keys.idempotency("k")) <= keys.IDEMPOTENCY_TTL_S
    assert not await slots.claim("k", "request")
