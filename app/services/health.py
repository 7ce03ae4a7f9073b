"""Readiness of this process: warm models, a store that takes writes, and room in the queues."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from app.metrics import Metrics
from app.services.models import Models
from app.storage.connection import Client, StoreError, write_problem
from app.storage.unreadable import Unreadable, UnreadableRecord

# Unreadable records named in one answer.
_MOST_NAMED = 100

# Seconds between two looks of `watch`: alerts need less than a minute, and a look is one small write.
_LOOK_AGAIN_S = 5.0


class Health:
    """Readiness for `/readyz` and the metrics.

    Args:
        client: Client of the store.
        models: The loaded backbones.
        metrics: Records the result of the probe and its time.
        unreadable: Register of the records that can't be read.
    """

    def __init__(self, client: Client, models: Models, metrics: Metrics, unreadable: Unreadable) -> None:
        self._client = client
        self._models = models
        self._metrics = metrics
        self._unreadable = unreadable

    async def unreadable(self) -> list[UnreadableRecord]:
        """Stored records that this process met, can't read and skips, up to a hundred."""
        with suppress(StoreError):  # the probe tells an outage
            await self._unreadable.refresh(self._client)
        return list(self._unreadable)[:_MOST_NAMED]

    async def watch(self) -> None:
        """Keep the metrics of readiness true where nobody asks for `/readyz`, such as in a worker."""
        while True:
            await self.reasons()
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def reasons(self) -> list[str]:
        """Reasons for which this process is not ready; empty if it is ready."""
        reasons = [f"The model {m.info.name} is not warm yet." for m in self._models if not m.warm and not m.unloaded]
        reasons += [f"The queue of {m.info.name} is full." for m in self._models if m.lane.full]
        if problem := await self._store_problem():
            reasons.append(problem)
        self._metrics.redis_up.set(problem is None)
        self._metrics.ready.set(not reasons)
        return reasons

    async def _store_problem(self) -> str | None:
        started = time.perf_counter()
        problem = await write_problem(self._client)
        if problem is None:
            self._metrics.redis_latency.observe(time.perf_counter() - started)
        return problem
