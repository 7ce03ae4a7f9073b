"""LRU cache of adapters, keyed by their content."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from app.method.adapter import Adapter
from app.metrics import Metrics
from app.services.lru import LruCache
from app.storage.categories import CategoryStore
from app.storage.category_records import AdapterInfo, CategoryRecord

# Concurrent reads of the store: a thousand uncached adapters must not take a thousand connections.
_READS_AT_ONCE = 16

# Hash of the file. Earlier releases stored none: then all that is known of the adapter, the time when it was made too.
# A version number alone won't do: in a store that was emptied or restored it stands for another adapter.
_Key = str | tuple[str, AdapterInfo]


class AdapterCache:
    """Byte-bounded LRU cache in front of the store of adapters.

    Args:
        store: Store of adapters.
        max_bytes: Memory for their tensors.
        metrics: Records hits and misses.
    """

    def __init__(self, store: CategoryStore, *, max_bytes: int, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._adapters: LruCache[_Key, Adapter] = LruCache(max_bytes=max_bytes)
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)

    async def get_many(self, categories: Sequence[CategoryRecord | None]) -> list[Adapter | None]:
        """Adapters in use by these categories; None for a category without one, or with one that can't be read."""
        return list(await asyncio.gather(*(self._get(category) for category in categories)))

    def in_memory(self, categories: Sequence[CategoryRecord | None]) -> list[Adapter | None]:
        """Those of these adapters that are in memory; None for the others."""
        keys = [_key(category) for category in categories]
        return [self._adapters.get(key) if key else None for key in keys]

    async def _get(self, category: CategoryRecord | None) -> Adapter | None:
        key = _key(category)
        if category is None or category.adapter is None or key is None:
            return None
        found = self._adapters.get(key)
        if found is not None:
            self._metrics.adapter_cache_hits.inc()
            return found
        self._metrics.adapter_cache_misses.inc()
        async with self._reads:
            started = time.perf_counter()
            adapter = await self._store.adapter(category.id, category.adapter.version, sha256=category.adapter_sha256)
            self._metrics.adapter_load_duration.observe(time.perf_counter() - started)
        if adapter is not None:
            self._keep(key, adapter)
        return adapter

    def _keep(self, key: _Key, adapter: Adapter) -> None:
        self._metrics.adapter_cache_evictions.inc(self._adapters.put(key, adapter))
        self._metrics.adapters_loaded.set(len(self._adapters))
        self._metrics.adapter_cache_bytes.set(self._adapters.nbytes)


def _key(category: CategoryRecord | None) -> _Key | None:
    """Key of the adapter in use; None without one."""
    if category is None or category.adapter is None:
        return None
    return category.adapter_sha256 or (category.id, category.adapter)
