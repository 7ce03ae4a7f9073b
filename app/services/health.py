"""Readiness of this process: warm models, a store that takes writes, and room in the queues."""

from __future__ import annotations

import time

from app.metrics import Metrics
from app.services.models import Models
from app.storage.connection import Client, takes_writes


class Health:
    """Readiness for `/readyz`.

    Args:
        client: Client of the store.
        models: The loaded backbones.
        metrics: Records the result of the probe and its time.
    """

    def __init__(self, client: Client, models: Models, metrics: Metrics) -> None:
        self._client = client
        self._models = models
        self._metrics = metrics

    async def reasons(self) -> list[str]:
        """Reasons for which this process is not ready; empty if it is ready."""
        reasons = [f"The model {m.info.name} is not warm yet." for m in self._models if not m.warm and not m.unloaded]
        reasons += [f"The queue of {m.info.name} is full." for m in self._models if m.lane.full]
        up = await self._store_takes_writes()
        if not up:
            reasons.append("The store does not take writes.")
        self._metrics.redis_up.set(up)
        self._metrics.ready.set(not reasons)
        return reasons

    async def _store_takes_writes(self) -> bool:
        started = time.perf_counter()
        if not await takes_writes(self._client):
            return False
        self._metrics.redis_latency.observe(time.perf_counter() - started)
        return True
