"""Slots of Idempotency-Keys: the request that a key stands for, its answer, and who may change it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from . import keys
from .lua import script
from .records import reply_of

Answer = dict[str, Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slot:
    """Content of a slot.

    Attributes:
        request: Hash of the request.
        answer: JSON values; None while the first request with the key is in work.
    """

    request: str
    answer: Answer | None


@dataclass(frozen=True)
class Claim:
    """A taken slot. Only its holder can answer or free the slot, and only while nobody else has taken it.

    Attributes:
        key_hash: Hash of the key.
        request: Hash of the request.
        token: Tells this claim from all others, also from a later one of the same request.
    """

    key_hash: str
    request: str
    token: str = field(default_factory=lambda: uuid4().hex)

    @property
    def slot(self) -> str:
        """Content of the slot until it is answered."""
        return json.dumps({"request": self.request, "token": self.token})


class IdempotencyStore:
    """Slots in Redis, by the hash of the key. A slot without an answer expires soon, one with an answer after a day.

    Args:
        redis: Client that returns bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim_slot = script(redis, "claim_slot")
        self._answer_slot = script(redis, "answer_slot")
        self._free_slot = script(redis, "free_slot")
        self._keep_slot = script(redis, "keep_slot")

    async def claim(self, claim: Claim) -> bool:
        """Take a free slot. False if another claim has it."""
        key = keys.idempotency(claim.key_hash)
        return bool(await self._claim_slot(keys=[key], args=[claim.slot, keys.IDEMPOTENCY_RUNNING_TTL_S]))

    async def renew(self, claim: Claim) -> bool:
        """Keep a claimed slot from expiring. False if it is free, or another's by now."""
        key = keys.idempotency(claim.key_hash)
        return bool(await self._keep_slot(keys=[key], args=[claim.slot, keys.IDEMPOTENCY_RUNNING_TTL_S]))

    async def get(self, key_hash: str) -> Slot | None:
        """Content of a slot, or None if it is free. A slot that can't be read is freed."""
        raw = await reply_of(self._redis.get(keys.idempotency(key_hash)))
        if raw is None:
            return None
        try:
            values = json.loads(raw)
            return Slot(values["request"], values.get("answer"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            _log.warning("a stored answer to an Idempotency-Key can't be read and is deleted")
            await self._redis.delete(keys.idempotency(key_hash))
            return None

    async def answer(self, claim: Claim, answer: Answer) -> bool:
        """Store the answer of a claim. False if its slot is another's by now."""
        slot = json.dumps({"request": claim.request, "answer": answer})
        key = keys.idempotency(claim.key_hash)
        return bool(await self._answer_slot(keys=[key], args=[claim.slot, slot, keys.IDEMPOTENCY_TTL_S]))

    async def release(self, claim: Claim) -> bool:
        """Free the slot of a claim. False if it is free, or another's by now."""
        return bool(await self._free_slot(keys=[keys.idempotency(claim.key_hash)], args=[claim.slot]))
