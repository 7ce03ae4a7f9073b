"""The adapter cache: an adapter is read once, and a large one does not evict the others."""

from __future__ import annotations

from dataclasses import replace

import torch
from redis.asyncio import Redis

from app.metrics import Metrics
from app.services.adapter_cache import AdapterCache
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
