"""Slots of Idempotency-Keys: claimed once, answered and released by their holder alone."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from app.storage import keys
from app.storage.idempotency import Claim, IdempotencyStore, Slot
from tests.chaos.proxy import Proxy


@pytest.fixture
def slots(redis: Redis) -> IdempotencyStore:
    return IdempotencyStore(redis)


async def test_a_slot_is_claimed_once_and_released(slots: IdempotencyStore, redis: Redis) -> None:
    assert await slots.get("k") is None
    claim = Claim("k", "request")
    assert await slots.claim(claim)
    assert not await slots.claim(Claim("k", "other"))
    assert await slots.get("k") == Slot("request", None)
    assert 0 < await redis.ttl(keys.idempotency("k")) <= keys.IDEMPOTENCY_RUNNING_TTL_S
    assert await slots.release(claim)
    assert not await slots.release(claim)
    assert await slots.claim(Claim("k", "other"))


async def test_a_claim_whose_reply_was_lost_is_sent_again_and_holds(retrying: Redis, proxy: Proxy) -> None:
    slots = IdempotencyStore(retrying)
    proxy.lose_reply(to=keys.idempotency("k").encode())
    assert await slots.claim(claim := Claim("k", "request"))
    assert proxy.lost == 1
    assert not await slots.claim(Claim("k", "request"))
    assert 0 < await retrying.ttl(keys.idempotency("k")) <= keys.IDEMPOTENCY_RUNNING_TTL_S
    assert await slots.answer(claim, {})
    assert not await slots.claim(claim)  # a call that arrives only now does not take the place of the answer


async def test_a_slot_is_kept_while_its_holder_renews_it(slots: IdempotencyStore, redis: Redis) -> None:
    await slots.claim(claim := Claim("k", "request"))
    await redis.expire(keys.idempotency("k"), 1)
    assert not await slots.renew(Claim("k", "request"))
    assert await redis.ttl(keys.idempotency("k")) <= 1
    assert await slots.renew(claim)
    assert await redis.ttl(keys.idempotency("k")) > 1
    await slots.answer(claim, {})
    assert not await slots.renew(claim)


async def test_an_answer_is_kept_for_a_day(slots: IdempotencyStore, redis: Redis) -> None:
    await slots.claim(claim := Claim("k", "request"))
    assert await slots.answer(claim, {"job": {"id": "1"}})
    assert await slots.get("k") == Slot("request", {"job": {"id": "1"}})
    assert keys.IDEMPOTENCY_RUNNING_TTL_S < await redis.ttl(keys.idempotency("k")) <= keys.IDEMPOTENCY_TTL_S
    assert not await slots.claim(Claim("k", "request"))


async def test_a_holder_that_lost_its_slot_changes_nothing(slots: IdempotencyStore, redis: Redis) -> None:
    await slots.claim(late := Claim("k", "request"))
    await redis.delete(keys.idempotency("k"))  # as if it had expired
    await slots.claim(holder := Claim("k", "request"))
    assert not await slots.release(late)
    assert not await slots.answer(late, {"from": "late"})
    assert await slots.get("k") == Slot("request", None)
    assert 0 < await redis.ttl(keys.idempotency("k")) <= keys.IDEMPOTENCY_RUNNING_TTL_S
    assert await slots.answer(holder, {"from": "holder"})
    assert not await slots.release(late)
    assert not await slots.answer(late, {"from": "late"})
    assert await slots.get("k") == Slot("request", {"from": "holder"})


async def test_an_answer_that_comes_late_to_a_free_slot_is_kept(slots: IdempotencyStore, redis: Redis) -> None:
    await slots.claim(claim := Claim("k", "request"))
    await redis.delete(keys.idempotency("k"))
    assert await slots.answer(claim, {"a": 1})
    assert await slots.get("k") == Slot("request", {"a": 1})


@pytest.mark.parametrize("junk", ["{{{", "[]", "7", '{"answer": {}}', b"\xff"])
async def test_a_slot_that_cannot_be_read_is_freed(slots: IdempotencyStore, redis: Redis, junk: str) -> None:
    await redis.set(keys.idempotency("k"), junk)
    assert await slots.get("k") is None
    assert await slots.claim(Claim("k", "request"))


async def test_so_is_a_key_of_another_type(slots: IdempotencyStore, redis: Redis) -> None:
    await slots.claim(claim := Claim("k", "request"))
    await redis.delete(keys.idempotency("k"))
    await redis.rpush(keys.idempotency("k"), "x")
    assert not await slots.claim(claim)
    assert not await slots.release(claim)
    assert not await slots.answer(claim, {})
    assert await slots.get("k") is None
    assert not await redis.keys()
