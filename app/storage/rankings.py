"""Photos and category names that wait for a ranking job."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from . import keys
from .replies import as_bytes, as_texts


class RankingStore:
    """Inputs of ranking jobs in Redis. They expire after `RANKING_IMAGES_TTL_S`.

    Args:
        redis: Client that returns bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def put(self, job_id: str, *, images: Sequence[bytes], names: Sequence[str]) -> None:
        """Store the inputs of a job, in place of any that it has."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(keys.ranking_images(job_id), keys.ranking_names(job_id))
            for key, values in ((keys.ranking_images(job_id), images), (keys.ranking_names(job_id), names)):
                if values:
                    pipe.rpush(key, *values)
                    pipe.expire(key, keys.RANKING_IMAGES_TTL_S)
            await pipe.execute()

    async def image_count(self, job_id: str) -> int:
        """Number of its photos; 0 if they have expired."""
        return int(await self._redis.llen(keys.ranking_images(job_id)))

    async def image(self, job_id: str, index: int) -> bytes | None:
        """File of one photo, or None."""
        raw = await self._redis.lindex(keys.ranking_images(job_id), index)
        return as_bytes(raw) if raw is not None else None

    async def names(self, job_id: str) -> list[str]:
        """Category names to rank with; empty for every category taught."""
        return as_texts(await self._redis.lrange(keys.ranking_names(job_id), 0, -1))

    async def delete(self, job_id: str) -> None:
        """Delete its photos, up to hundreds of MiB, and its names."""
        await self._redis.delete(keys.ranking_images(job_id), keys.ranking_names(job_id))
