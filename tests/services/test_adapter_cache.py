"""The adapter cache: an adapter is read once, a large one does not evict the others, and no other is taken for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from redis.asyncio import Redis

from app.metrics import Metrics
from app.services.adapter_cache import AdapterCache
from app.storage import keys
from app.storage.categories import CategoryStore
from app.storage.names import CategoryName
from tests.storage.test_categories import ADAPTER, parameters_of


async def test_an_adapter_larger_than_the_memory_drives_no_other_out(database: str) -> None:
    metrics = Metrics()
    async with Redis.from_url(database) as redis:
        store = CategoryStore(redis, versions_kept=1, max_examples=1, job_ttl_s=61)
        cache = AdapterCache(store, max_bytes=ADAPTER.nbytes, metrics=metrics)
        large = replace(ADAPTER, parameters=parameters_of(torch.zeros(7, 5)))
        await store.adopt(CategoryName("small"), ADAPTER, prompts=[])
        await store.adopt(CategoryName("large"), large, prompts=[])
        small, large_too = await cache.get_many(await store.get_many(["small", "large"]))
        assert large_too.nbytes == large.nbytes > ADAPTER.nbytes
        (again,) = await cache.get_many(await store.get_many(["small"]))
        assert again is small
    assert metrics.registry.get_sample_value("exemplar_adapter_cache_evictions_total") == 0
    assert metrics.registry.get_sample_value("exemplar_adapter_cache_bytes") == ADAPTER.nbytes
    assert metrics.registry.get_sample_value("exemplar_adapters_loaded") == 1


@pytest.mark.parametrize("earlier", [False, True], ids=["with a hash", "of an earlier release"])
async def test_an_adapter_of_the_same_name_and_version_is_not_taken_for_it(database: str, earlier: bool) -> None:
    """As after the store was emptied or restored from a backup."""
    other = replace(
        ADAPTER, parameters=parameters_of(torch.ones(2, 3)), created_at="2026-01-02T00:00:00.000Z" if earlier else "now"
    )
    async with Redis.from_url(database) as redis:
        store = CategoryStore(redis, versions_kept=1, max_examples=1, job_ttl_s=61)
        cache = AdapterCache(store, max_bytes=10 * ADAPTER.nbytes, metrics=Metrics())
        for adapter in (ADAPTER, other, ADAPTER):
            await store.adopt(CategoryName("cat"), adapter, prompts=[])
            if earlier:
                assert await redis.hdel(keys.category("cat"), "sha256_1")
            for _ in range(2):
                (found,) = await cache.get_many(await store.get_many(["cat"]))
                assert torch.equal(found.parameters.delta["w"], adapter.parameters.delta["w"])
            await redis.delete(*await redis.keys())


async def test_two_that_differ_in_their_numbers_alone_are_told_apart(database: str) -> None:
    other = replace(ADAPTER, parameters=parameters_of(torch.ones(2, 3)))
    async with Redis.from_url(database) as redis:
        store = CategoryStore(redis, versions_kept=1, max_examples=1, job_ttl_s=61)
        cache = AdapterCache(store, max_bytes=10 * ADAPTER.nbytes, metrics=Metrics())
        for adapter in (ADAPTER, other):
            await store.adopt(CategoryName("cat"), adapter, prompts=[])
            (found,) = await cache.get_many(await store.get_many(["cat"]))
            assert torch.equal(found.parameters.delta["w"], adapter.parameters.delta["w"])
