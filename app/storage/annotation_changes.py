"""Queue of the changes of annotations that wait to be learnt, in the order in which they came."""

from __future__ import annotations

import logging

from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import ResponseError

from . import keys
from .records import wrong_type
from .replies import as_bytes

_log = logging.getLogger(__name__)


class AnnotationChanges:
    """Entries of changes as texts; what they mean is the caller's.

    Args:
        redis: Client that returns bytes.
        most: Largest number of entries.
        most_bytes: Largest memory of the store for them.
    """

    def __init__(self, redis: Redis, *, most: int, most_bytes: int) -> None:
        self._redis = redis
        self._most = most
        self._most_bytes = most_bytes

    async def add(self, entry: bytes) -> bool:
        """Append an entry; False if too much waits already. Calls at the same moment may exceed the limits."""
        if await self.first() is not None:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.llen(keys.ANNOTATION_CHANGES)
                pipe.memory_usage(keys.ANNOTATION_CHANGES, samples=0)
                number, size = await pipe.execute()
            if number >= self._most or (size or 0) + len(entry) > self._most_bytes:
                return False
        await self._redis.rpush(keys.ANNOTATION_CHANGES, entry)
        return True

    async def first(self) -> bytes | None:
        """The oldest entry, or None."""
        try:
            found = await self._redis.lindex(keys.ANNOTATION_CHANGES, 0)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            _log.error("the queue of annotations is no list and is emptied: who else writes to the store?")
            await self._redis.delete(keys.ANNOTATION_CHANGES)
            return None
        return as_bytes(found) if found is not None else None

    async def remove(self, entry: bytes) -> None:
        """Remove an entry whose changes were made."""
        await self._redis.lrem(keys.ANNOTATION_CHANGES, 1, entry)  # type: ignore[arg-type]  # typed for text alone

    def lock(self, *, seconds: float) -> Lock:
        """A lock for who makes the changes; it is free again so long after its owner has died."""
        return self._redis.lock(keys.ANNOTATION_CHANGES_LOCK, timeout=seconds)
