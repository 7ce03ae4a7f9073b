"""Store of InfoScore's running sums per model. Every ranking job with the same prompts adds to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from redis.asyncio import Redis

from app.method.infoscore import LayerScores, LayerStatistics, infoscore

from . import keys
from .lua import script
from .records import json_value, reply_of, sound
from .replies import as_bytes
from .unreadable import Unreadable, UnreadableRecord

Value = TypeVar("Value")

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
    """Layer statistics in Redis. What can't be read counts as absent, and the next job replaces it.

    Args:
        redis: Client that returns bytes.
        unreadable: Register of the records that can't be read.
    """

    def __init__(self, redis: Redis, *, unreadable: Unreadable | None = None) -> None:
        self._redis = redis
        self._unreadable = unreadable or Unreadable()
        self._swap_statistics = script(redis, "swap_statistics")

    async def get(self, revision: str) -> StoredStatistics | None:
        """Statistics of a model, or None if it was never ranked."""
        return (await self._sums(revision))[1]

    async def ranking(self, revision: str) -> StoredRanking | None:
        """Ranking of a model, or None if it was never ranked."""
        key = keys.layer_ranking(revision)
        reply = await reply_of(self._redis.get(key))
        if reply is not None:
            return self._readable(revision, key, reply, _read_ranking)
        self._unreadable.forget(key)
        raw, sums = await self._sums(revision)
        if sums is None:
            return None
        # Sums of a version that stored no rankings.
        ranking = _ranking(sums)
        await self._swap(revision, raw, raw, ranking)
        return ranking

    async def add(self, revision: str, new: StoredStatistics) -> None:
        """Add a job's sums to the stored ones, or replace them if their prompts differ."""
        while True:
            raw, stored = await self._sums(revision)
            if stored and stored.job_id == new.job_id:
                return  # the job ran before, but its process died before it recorded the end
            total = new
            if stored and stored.prompts == new.prompts:
                total = replace(new, statistics=stored.statistics.merge(new.statistics))
            if await self._swap(revision, raw, _write(total).encode(), _ranking(total)):
                return

    async def _sums(self, revision: str) -> tuple[bytes, StoredStatistics | None]:
        """Stored sums as bytes, empty if there are none, and as a value if they can be read."""
        key = keys.layer_statistics(revision)
        reply = await reply_of(self._redis.get(key))
        if reply is None:
            self._unreadable.forget(key)
            return b"", None
        return reply if isinstance(reply, bytes) else b"", self._readable(revision, key, reply, _read)

    def _readable(self, revision: str, key: str, reply: Any, read: Callable[[bytes], Value]) -> Value | None:
        try:
            value = read(as_bytes(sound(reply)))
        except ValueError as error:
            self._unreadable.note(UnreadableRecord("ranking", revision, str(error), key))
            return None
        self._unreadable.forget(key)
        return value

    async def _swap(self, revision: str, old: bytes, new: bytes, ranking: StoredRanking) -> bool:
        written = await self._swap_statistics(
            keys=[keys.layer_statistics(revision), keys.layer_ranking(revision)],
            args=[old, new, _write_ranking(ranking)],
        )
        if written:
            self._unreadable.forget(keys.layer_statistics(revision))
            self._unreadable.forget(keys.layer_ranking(revision))
        return bool(written)


def _ranking(stored: StoredStatistics) -> StoredRanking:
    return StoredRanking(stored.statistics.images, infoscore(stored.statistics))


def _write_ranking(ranking: StoredRanking) -> str:
    scores = {name: getattr(ranking.scores, name).tolist() for name in _SCORES}
    return json.dumps({"images": ranking.images, **scores})


def _read_ranking(raw: bytes) -> StoredRanking:
    values = json_value("ranking", raw)
    try:
        scores = {name: _vector(values[name]) for name in _SCORES}
        if len({len(score) for score in scores.values()}) > 1:
            raise ValueError
        return StoredRanking(int(values["images"]), LayerScores(**scores))
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError):
        raise ValueError("ranking: no scores of layers") from None


def _vector(values: object) -> torch.Tensor:
    vector = torch.tensor(values, dtype=torch.float64)
    if vector.ndim != 1:
        raise ValueError("expected one number per layer")
    return vector


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
    values = json_value("sums", raw)
    try:
        entropy = _vector(values["entropy_sum"])
        shape = (len(entropy), len(values["prompts"]))
        sums = LayerStatistics(
            images=int(values["images"]),
            entropy_sum=entropy,
            share_sum=torch.tensor(values["share_sum"], dtype=torch.float64).reshape(shape),
            share_square_sum=torch.tensor(values["share_square_sum"], dtype=torch.float64).reshape(shape),
        )
        if sums.images < 1:
            raise ValueError
        return StoredStatistics(tuple(map(str, values["prompts"])), sums, str(values["job_id"]))
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError):
        raise ValueError("sums: no statistics of layers") from None
