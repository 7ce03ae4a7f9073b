"""InfoScore's running sums, per model; they grow with every ranking job that asks with the same prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from redis.asyncio import Redis
from redis.exceptions import WatchError

from app.method.infoscore import LayerStatistics

from . import keys


@dataclass(frozen=True)
class StoredStatistics:
    """The sums, and the prompts whose shares were summed."""

    prompts: tuple[str, ...]
    statistics: LayerStatistics


class LayerStore:
    """Layer statistics in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, revision: str) -> StoredStatistics | None:
        """The statistics of a model's weights, or None if it was never ranked."""
        raw = await self._redis.get(keys.layer_statistics(revision))
        return _read(raw) if raw is not None else None

    async def add(self, revision: str, prompts: tuple[str, ...], statistics: LayerStatistics) -> StoredStatistics:
        """Add a job's sums to the stored ones; with other prompts than before the count starts anew."""
        key = keys.layer_statistics(revision)
        while True:
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(key)
                raw = await pipe.get(key)
                stored = _read(raw) if raw is not None else None
                merged = stored.statistics.merge(statistics) if stored and stored.prompts == prompts else statistics
                pipe.multi()
                pipe.set(key, _write(StoredStatistics(prompts, merged)))
                try:
                    await pipe.execute()
                except WatchError:
                    continue  # another job added its sums in between: take those in too
                return StoredStatistics(prompts, merged)


def _write(stored: StoredStatistics) -> str:
    sums = stored.statistics
    return json.dumps(
        {
            "prompts": stored.prompts,
            "images": sums.images,
            "entropy_sum": sums.entropy_sum.tolist(),
            "share_sum": sums.share_sum.tolist(),
            "share_square_sum": sums.share_square_sum.tolist(),
        }
    )


def _read(raw: bytes) -> StoredStatistics:
    fields = json.loads(raw)
    sums = LayerStatistics(
        images=fields["images"],
        entropy_sum=torch.tensor(fields["entropy_sum"], dtype=torch.float64),
        share_sum=torch.tensor(fields["share_sum"], dtype=torch.float64),
        share_square_sum=torch.tensor(fields["share_square_sum"], dtype=torch.float64),
    )
    return StoredStatistics(tuple(fields["prompts"]), sums)
