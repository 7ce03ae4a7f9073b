"""Store of InfoScore's running sums per model. Every ranking job with the same prompts adds to them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace

import torch
from redis.asyncio import Redis

from app.method.infoscore import LayerScores, LayerStatistics, infoscore

from . import keys
from .lua import script
from .replies import as_bytes

_SCORES = tuple(field.name for field in fields(LayerScores))


@dataclass(frozen=True)
class StoredStatistics:
    """Running sums, the prompts whose shares were summed, and the job that was added last."""

    prompts: tuple[str, ...]
    statistics: LayerStatistics
    job_id: str


@dataclass(frozen=True)
class StoredRanking:
    """Scores of the layers, and the number of photos behind them."""

    images: int
    scores: LayerScores


class LayerStore:
    """Layer statistics in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._swap_statistics = script(redis, "swap_statistics")

    async def get(self, revision: str) -> StoredStatistics | None:
        """Statistics of a model, or None if it was never ranked."""
        raw = await self._redis.get(keys.layer_statistics(revision))
        return _read(as_bytes(raw)) if raw is not None else None

    async def ranking(self, revision: str) -> StoredRanking | None:
        """Ranking of a model, or None if it was never ranked."""
        raw = await self._redis.get(keys.layer_ranking(revision))
        if raw is not None:
            return _read_ranking(as_bytes(raw))
        sums = await self._redis.get(keys.layer_statistics(revision))
        if sums is None:
            return None
        # Sums of a version that stored no rankings.
        ranking = _ranking(_read(as_bytes(sums)))
        await self._swap(revision, as_bytes(sums), as_bytes(sums), ranking)
        return ranking

    async def add(self, revision: str, new: StoredStatistics) -> None:
        """Add a job's sums to the stored ones, or replace them if their prompts differ."""
        while True:
            raw = as_bytes(await self._redis.get(keys.layer_statistics(revision)) or b"")
            stored = _read(raw) if raw else None
            if stored and stored.job_id == new.job_id:
                return  # the job ran before, but its process died before it recorded the end
            total = new
            if stored and stored.prompts == new.prompts:
                total = replace(new, statistics=stored.statistics.merge(new.statistics))
            if await self._swap(revision, raw, _write(total).encode(), _ranking(total)):
                return

    async def _swap(self, revision: str, old: bytes, new: bytes, ranking: StoredRanking) -> bool:
        written = await self._swap_statistics(
            keys=[keys.layer_statistics(revision), keys.layer_ranking(revision)],
            args=[old, new, _write_ranking(ranking)],
        )
        return bool(written)


def _ranking(stored: StoredStatistics) -> StoredRanking:
    return StoredRanking(stored.statistics.images, infoscore(stored.statistics))


def _write_ranking(ranking: StoredRanking) -> str:
    scores = {name: getattr(ranking.scores, name).tolist() for name in _SCORES}
    return json.dumps({"images": ranking.images, **scores})


def _read_ranking(raw: bytes) -> StoredRanking:
    values = json.loads(raw)
    scores = {name: torch.tensor(values[name], dtype=torch.float64) for name in _SCORES}
    return StoredRanking(values["images"], LayerScores(**scores))


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
    values = json.loads(raw)
    sums = LayerStatistics(
        images=values["images"],
        entropy_sum=torch.tensor(values["entropy_sum"], dtype=torch.float64),
        share_sum=torch.tensor(values["share_sum"], dtype=torch.float64),
        share_square_sum=torch.tensor(values["share_square_sum"], dtype=torch.float64),
    )
    return StoredStatistics(tuple(values["prompts"]), sums, values["job_id"])
