"""Slots of Idempotency-Keys: the request that a key stands for, and its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from . import keys

Answer = dict[str, Any]


@dataclass(frozen=True)
class Slot:
    """Content of a slot.

    Attributes:
        request: Hash of the request.
        answer: JSON values; None while the first request with the key is in work.
        attempt: Id of the attempt that holds the slot while it has no answer.
    """

    request: str
    answer: Answer | None
    attempt: str = ""


class IdempotencyStore:
    """Slots in Redis, by the hash of the key. A slot without an answer expires soon, one with an answer after a day.

    Args:
        redis: Client that returns bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def claim(self, key_hash: str, request: str, *, attempt: str = "") -> bool:
        """Take a free slot for an attempt at a request. False if it is taken."""
        slot = json.dumps({"request": request, "attempt": attempt})
        return bool(await self._redis.set(keys.idempotency(key_hash), slot, nx=True, ex=keys.IDEMPOTENCY_RUNNING_TTL_S))

    async def get(self, key_hash: str) -> Slot | None:
        """Content of a slot, or None if it is free."""
        raw = await self._redis.get(keys.idempotency(key_hash))
        if raw is None:
            return None
        values = json.loads(raw)
        return Slot(values["request"], values.get("answer"), values.get("attempt", ""))

    async def answer(self, key_hash: str, request: str, answer: Answer) -> None:
        """Store the answer of a request."""
        slot = json.dumps({"request": request, "answer": answer})
        await self._redis.set(keys.idempotency(key_hash), slot, ex=keys.IDEMPOTENCY_TTL_S)

    async def release(self, key_hash: str) -> None:
        """Free a slot."""
        await self._redis.delete(keys.idempotency(key_hash))
