"""Sums of several jobs, at once or twice, under the same prompts or others."""

from __future__ import annotations

import asyncio
import math

import torch
from redis.asyncio import Redis

from app.method.infoscore import LayerStatistics
from app.storage.layers import LayerStore, StoredStatistics


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
