"""InfoScore's running sums, per model; they grow with every ranking job that asks with the same prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch
from redis.asyncio import Redis

from app.method.infoscore import LayerStatistics

from . import keys
from .replies import as_bytes

# Write the sums if nobody wrote others since they were read. KEYS: the sums   ARGV: as read ('' = none yet), new
_SWAP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


@dataclass(frozen=True)
class StoredStatistics:
    """The sums, the prompts whose shares were summed, and the job that was added last."""

    prompts: tuple[str, ...]
    statistics: LayerStatistics
    job_id: str


class LayerStore:
    """Layer statistics in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, revision: str) -> StoredStatistics | None:
        """The statistics of a model's weights, or None if it was never ranked."""
        raw = await self._redis.get(keys.layer_statistics(revision))
        return _read(as_bytes(raw)) if raw is not None else None

    async def add(self, revision: str, new: StoredStatistics) -> None:
        """Add a job's sums to the stored ones; with other prompts than before the count starts anew."""
        key = keys.layer_statistics(revision)
        while True:
            raw = as_bytes(await self._redis.get(key) or b"")
            stored = _read(raw) if raw else None
            if stored and stored.job_id == new.job_id:
                return  # the job ran before, and its process died before it could say so
            total = new
            if stored and stored.prompts == new.prompts:
                total = replace(new, statistics=stored.statistics.merge(new.statistics))
            if await self._redis.eval(_SWAP, 1, key, raw, _write(total)):
                return


def _write(stored: StoredStatistics) -> str:
    sums = stored.statistics
    return json.dumps(
        {
            "prompts": stored.prompts,
            "job_id": stored.job_id,
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
    return StoredStatistics(tuple(fields["prompts"]), sums, fields["job_id"])
