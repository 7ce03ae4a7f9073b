"""Idempotency keys: one response per key, also while the first request runs and after it was refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from app.errors import ConflictError, InvalidInputError
from app.services import idempotency as idempotency_service
from app.services.idempotency import Idempotency, digest
from app.storage import keys
from app.storage.breaker import StoreAwayError
from app.storage.idempotency import Claim, IdempotencyStore
from tests.services.outage import read_only


@pytest.fixture
async def redis(database: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(database) as redis:
        yield redis


@pytest.fixture
def idempotency(redis: Redis) -> Idempotency:
    return Idempotency(IdempotencyStore(redis))


class Work:
    """Counts how often it is done."""

    def __init__(self) -> None:
        self.times = 0
        self.ids: list[str | None] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, id: str | None) -> dict[str, int]:
        self.times += 1
        self.ids.append(id)
        await self.may_end.wait()
        return {"answer": self.times}


async def test_without_a_key_it_is_done_each_time(idempotency) -> None:
    work = Work()
    assert [await idempotency.once(None, [b"x"], work) for _ in range(2)] == [{"answer": 1}, {"answer": 2}]


async def test_with_a_key_it_is_done_once(idempotency, redis) -> None:
    work = Work()
    assert [await idempotency.once("k", [b"x"], work) for _ in range(3)] == [{"answer": 1}] * 3
    assert await idempotency.once("other", [b"x"], work) == {"answer": 2}
    (slot, _) = await redis.keys("exemplar:idempotency:*")
    assert 86_000 < await redis.ttl(slot) <= 86_400


async def test_other_requests_go_on_while_a_large_one_is_hashed(idempotency) -> None:
    hashed_by: list[threading.Thread] = []

    def parts() -> Iterator[bytes]:
        hashed_by.append(threading.current_thread())
        yield b"photo"

    await idempotency.once("k", parts(), Work())
    assert hashed_by
    assert threading.main_thread() not in hashed_by


async def test_while_the_first_is_at_work_the_second_is_told_to_wait(idempotency, redis) -> None:
    work = Work()
    work.may_end.clear()
    first = asyncio.create_task(idempotency.once("k", [b"x"], work))
    while not work.times:
        await asyncio.sleep(0.001)
    with pytest.raises(ConflictError) as refused:
        await idempotency.once("k", [b"x"], work)
    assert refused.value.retry_after_s == 1
    with pytest.raises(InvalidInputError):
        await idempotency.once("k", [b"y"], work)
    (slot,) = await redis.keys("exemplar:idempotency:*")
    # Should this process die now, the key is free again soon.
    assert 0 < await redis.ttl(slot) <= keys.IDEMPOTENCY_RUNNING_TTL_S
    work.may_end.set()
    assert await first == await idempotency.once("k", [b"x"], work) == {"answer": 1}


async def test_who_is_long_at_work_keeps_the_key(redis, monkeypatch) -> None:
    monkeypatch.setattr(idempotency_service, "_RENEW_S", 0.05)
    idempotency, work = Idempotency(IdempotencyStore(redis)), Work()
    work.may_end.clear()
    first = asyncio.create_task(idempotency.once("k", [b"x"], work))
    while not work.times:
        await asyncio.sleep(0.001)
    (slot,) = await redis.keys("exemplar:idempotency:*")
    await redis.pexpire(slot, 200)
    await asyncio.sleep(0.5)
    with pytest.raises(ConflictError):
        await idempotency.once("k", [b"x"], work)
    work.may_end.set()
    assert await first == {"answer": 1}
    assert await redis.ttl(slot) > keys.IDEMPOTENCY_RUNNING_TTL_S
    await asyncio.sleep(0.1)
    assert await redis.ttl(slot) > keys.IDEMPOTENCY_RUNNING_TTL_S  # nobody renews an answer's slot


@pytest.mark.parametrize("error", [InvalidInputError("x"), asyncio.CancelledError(), KeyError("bug")], ids=repr)
async def test_work_that_came_to_nothing_leaves_the_key_free(idempotency, redis, error) -> None:
    async def refused(_: str | None) -> dict[str, int]:
        raise error

    with pytest.raises(type(error)):
        await idempotency.once("k", [b"x"], refused)
    assert not await redis.keys("*")
    assert await idempotency.once("k", [b"other"], Work()) == {"answer": 1}


async def test_a_request_that_took_longer_than_its_lock_leaves_the_next_one_alone(idempotency, redis) -> None:
    slow, next_one = Work(), Work()
    slow.may_end.clear()
    next_one.may_end.clear()
    first = asyncio.create_task(idempotency.once("k", [b"x"], slow))
    while not slow.times:
        await asyncio.sleep(0.001)
    await redis.delete(*await redis.keys("exemplar:idempotency:*"))  # as if it had expired
    second = asyncio.create_task(idempotency.once("k", [b"x"], next_one))
    while not next_one.times:
        await asyncio.sleep(0.001)
    first.cancel()
    await asyncio.wait([first])
    with pytest.raises(ConflictError):  # still the second one's
        await idempotency.once("k", [b"x"], Work())
    next_one.may_end.set()
    assert await second == await idempotency.once("k", [b"x"], Work()) == {"answer": 1}


async def test_what_a_request_makes_has_the_same_id_at_every_try(idempotency) -> None:
    work, refused = Work(), []

    async def breaks_down(id: str | None) -> dict[str, int]:
        refused.append(id)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await idempotency.once("k", [b"x"], breaks_down)
    for key, parts in (("k", [b"x"]), ("k2", [b"x"]), (None, [b"x"])):
        await idempotency.once(key, parts, work)
    assert work.ids[0] == refused[0]
    assert len({*work.ids}) == 3
    assert work.ids[2] is None


def test_a_digest_knows_where_a_part_ends() -> None:
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"])
    assert digest([b"ab", b""]) != digest([b"", b"ab"])
    assert digest([b"a"]) == digest([b"a"])


class Away(IdempotencyStore):
    """A store that goes away before or after it has carried out certain calls."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.loses_reply_to: set[str] = set()

    async def claim(self, claim: Claim) -> bool:
        return self._reply("claim", await super().claim(claim))

    async def answer(self, claim: Claim, answer: dict[str, object]) -> bool:
        if "answer" in self.loses_reply_to:
            raise StoreAwayError
        return await super().answer(claim, answer)

    async def release(self, claim: Claim) -> bool:
        if "release" in self.loses_reply_to:
            raise StoreAwayError
        return await super().release(claim)

    def _reply(self, call: str, reply: bool) -> bool:
        if call in self.loses_reply_to:
            raise StoreAwayError
        return reply


@pytest.mark.parametrize("lost", ["claim", "answer"])
async def test_a_request_that_an_outage_ended_leaves_the_key_free(redis, lost: str) -> None:
    store = Away(redis)
    idempotency, work = Idempotency(store), Work()
    store.loses_reply_to = {lost}
    with pytest.raises(StoreAwayError):
        await idempotency.once("k", [b"x"], work)
    assert await redis.keys("*")  # the store holds the claim
    store.loses_reply_to = {"release"}
    with pytest.raises(StoreAwayError):
        await idempotency.once("k", [b"x"], work)
    store.loses_reply_to = set()
    answer = await idempotency.once("k", [b"x"], work)
    assert await idempotency.once("k", [b"x"], work) == answer
    assert len(set(work.ids)) == 1


async def test_a_store_that_takes_no_writes_leaves_the_key_free_afterwards(redis) -> None:
    idempotency, work = Idempotency(IdempotencyStore(redis)), Work()

    async with AsyncExitStack() as outage:

        async def meets_a_replica(_: str | None) -> dict[str, int]:
            await outage.enter_async_context(read_only(redis))
            await redis.set("example", "new")
            return {}

        with pytest.raises(ReadOnlyError):
            await idempotency.once("k", [b"x"], meets_a_replica)
    assert await redis.keys("*")  # the store holds the claim
    assert await idempotency.once("k", [b"x"], work) == {"answer": 1}


async def test_after_an_outage_the_key_of_another_attempt_is_not_freed(redis) -> None:
    store = Away(redis)
    here, elsewhere = Idempotency(store), Idempotency(IdempotencyStore(redis))
    work = Work()
    work.may_end.clear()
    at_work = asyncio.create_task(elsewhere.once("k", [b"x"], work))
    while not work.times:
        await asyncio.sleep(0.001)
    store.loses_reply_to = {"claim"}
    with pytest.raises(StoreAwayError):
        await here.once("k", [b"x"], work)
    store.loses_reply_to = set()
    with pytest.raises(ConflictError):
        await here.once("k", [b"x"], work)
    work.may_end.set()
    assert await at_work == await here.once("k", [b"x"], work) == {"answer": 1}
