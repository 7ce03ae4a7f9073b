"""Sums of several ranking jobs: at once, repeated, with the same prompts or others."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from redis.asyncio import Redis

from app.method.infoscore import LayerScores, LayerStatistics, infoscore
from app.storage import keys
from app.storage.layers import LayerStore, StoredStatistics
from app.storage.unreadable import Unreadable


def of_job(number: int, *, prompts: tuple[str, ...] = ("sky", "cat")) -> StoredStatistics:
    shares = torch.full((3, len(prompts)), 1 / len(prompts), dtype=torch.float64)
    return StoredStatistics(prompts, LayerStatistics.empty(3, len(prompts)).add(shares), f"job {number}")


async def test_what_is_stored_is_read_back(redis: Redis) -> None:
    store = LayerStore(redis)
    assert await store.get("r") is None
    await store.add("r", of_job(1))
    stored = await store.get("r")
    assert (stored.prompts, stored.statistics.images, stored.job_id) == (("sky", "cat"), 1, "job 1")
    assert torch.equal(stored.statistics.entropy_sum, of_job(1).statistics.entropy_sum)
    assert math.isclose(float(stored.statistics.share_sum.sum()), 3)
    assert await store.get("other") is None


async def test_jobs_at_once_lose_nothing(redis: Redis) -> None:
    store = LayerStore(redis)
    await asyncio.gather(*(store.add("r", of_job(n)) for n in range(13)))
    assert (await store.get("r")).statistics.images == 13


async def test_a_job_counts_once(redis: Redis) -> None:
    store = LayerStore(redis)
    for _ in range(2):
        await store.add("r", of_job(1))
    assert (await store.get("r")).statistics.images == 1


async def test_other_prompts_start_anew(redis: Redis) -> None:
    store = LayerStore(redis)
    await store.add("r", of_job(1))
    await store.add("r", of_job(2, prompts=("sky", "cat", "dog")))
    stored = await store.get("r")
    assert (stored.prompts, stored.statistics.images) == (("sky", "cat", "dog"), 1)


class TestRanking:
    """The ranking that requests read, without the sums."""

    async def test_it_is_that_of_the_sums_after_every_job(self, redis: Redis) -> None:
        store = LayerStore(redis)
        assert await store.ranking("r") is None
        for images, (seed, prompts) in enumerate([(1, 2), (2, 2), (3, 2)], 1):
            await store.add("r", drawn(seed, prompts=prompts))
            ranking = await store.ranking("r")
            assert ranking.images == images
            assert same(ranking.scores, infoscore((await store.get("r")).statistics))
        await store.add("r", drawn(4, prompts=3))
        assert (await store.ranking("r")).images == 1
        assert await store.ranking("other") is None

    async def test_jobs_at_once_leave_the_ranking_of_all(self, redis: Redis) -> None:
        store = LayerStore(redis)
        await asyncio.gather(*(store.add("r", drawn(seed, prompts=2)) for seed in range(13)))
        ranking = await store.ranking("r")
        assert ranking.images == 13
        assert same(ranking.scores, infoscore((await store.get("r")).statistics))

    async def test_it_takes_little_to_read_however_many_prompts_were_asked_for(self, redis: Redis) -> None:
        await LayerStore(redis).add("r", drawn(1, prompts=997))
        assert await redis.strlen(keys.layer_statistics("r")) > 50_000
        assert await redis.strlen(keys.layer_ranking("r")) < 500

    async def test_sums_stored_before_there_were_rankings(self, redis: Redis) -> None:
        store = LayerStore(redis)
        await store.add("r", drawn(1, prompts=2))
        await store.add("r", drawn(2, prompts=2))
        expected = await store.ranking("r")
        await redis.delete(keys.layer_ranking("r"))
        for _ in range(2):
            found = await store.ranking("r")
            assert found.images == 2
            assert same(found.scores, expected.scores)
        assert await redis.exists(keys.layer_ranking("r"))
        await store.add("r", drawn(3, prompts=2))
        assert (await store.ranking("r")).images == 3


def drawn(seed: int, *, prompts: int) -> StoredStatistics:
    shares = torch.rand(3, prompts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    statistics = LayerStatistics.empty(3, prompts).add(shares / shares.sum(dim=1, keepdim=True))
    return StoredStatistics(tuple(f"prompt {n}" for n in range(prompts)), statistics, f"job {seed}")


def same(one: LayerScores, other: LayerScores) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("infoscore", "entropy_ratio", "cov"))


JUNK = {
    "no JSON": "{{{",
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "nothing": "{}",
    "a field": '{"images": 1}',
    "bytes": b"\xff",
    "deep": "[" * 100_000,
    "uneven": '{"images": 2, "infoscore": [1], "entropy_ratio": [1, 2], "cov": [1]}',
    "no lists": '{"images": 2, "infoscore": 1, "entropy_ratio": 1, "cov": 1}',
    "no photos": '{"images": 0, "prompts": ["a"], "job_id": "1", "entropy_sum": [1], "share_sum": [1], '
    '"share_square_sum": [1]}',
    "no prompts": '{"images": 1, "prompts": 5, "job_id": "1", "entropy_sum": [1], "share_sum": [1], '
    '"share_square_sum": [1]}',
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
async def test_what_cannot_be_read_counts_as_absent_and_is_replaced(redis: Redis, junk: str) -> None:
    unreadable = Unreadable()
    store = LayerStore(redis, unreadable=unreadable)
    await redis.set(keys.layer_statistics("r"), junk)
    assert await store.ranking("r") is await store.get("r") is None
    await redis.set(keys.layer_ranking("r"), junk)
    assert await store.ranking("r") is None
    assert {record.key for record in unreadable} == {keys.layer_statistics("r"), keys.layer_ranking("r")}
    await store.add("r", of_job(1))
    assert ((await store.get("r")).statistics.images, (await store.ranking("r")).images) == (1, 1)
    assert not list(unreadable)


async def test_so_does_a_key_of_another_type(redis: Redis) -> None:
    store = LayerStore(redis)
    for key in (keys.layer_statistics("r"), keys.layer_ranking("r")):
        await redis.rpush(key, "x")
    assert await store.ranking("r") is await store.get("r") is None
    await store.add("r", of_job(1))
    assert ((await store.get("r")).statistics.images, (await store.ranking("r")).images) == (1, 1)
