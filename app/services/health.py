"""Whether this process can serve: a warm model, a store that takes writes, and room in the queue."""

from __future__ import annotations

import time

from app.metrics import Metrics
from app.services.models import Models
from app.storage.connection import Client, takes_writes


class Health:
    """Readiness, as `/readyz` tells it."""

    def __init__(self, client: Client, models: Models, metrics: Metrics) -> None:
        self._client = client
        self._models = models
        self._metrics = metrics

    async def reasons(self) -> list[str]:
        """Why this process isn't ready; empty if it is."""
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
