"""Idempotency-Key: a retried request gets the first answer (draft-ietf-httpapi-idempotency-key-header-06)."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from app.errors import ConflictError, InvalidInputError
from app.services.renewal import renewing
from app.storage import keys
from app.storage.connection import StoreError
from app.storage.idempotency import Answer, Claim, IdempotencyStore

Work = Callable[[str | None], Awaitable[Answer]]

_MAX_KEY_LENGTH = 255
# A slot is renewed several times before it expires.
_RENEW_S = keys.IDEMPOTENCY_RUNNING_TTL_S / 4
# Hex digits of a UUID, as in other ids.
_ID_LENGTH = 32


class Idempotency:
    """Does the work of a request once per key, and repeats its answer for a day.

    Args:
        store: Store of the keys' slots.
    """

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store
        # Claims of requests that an outage ended, by the hash of their key, and when their slots expire at the latest.
        self._stranded: dict[str, tuple[Claim, float]] = {}

    async def once(self, key: str | None, parts: Iterable[bytes], work: Work) -> Answer:
        """Do the work once per key; without a key, always.

        Args:
            key: Value of the header, or None.
            parts: Content of the request: its path and all of its fields.
            work: Returns the answer as JSON values. Its argument is an id for the job that it creates, the same at
                every retry, so that a retry continues a request that failed half-way; None without a key.

        Raises:
            InvalidInputError: If the key is malformed, or stands for a request with other content.
            ConflictError: If the first request with this key is still in work.
        """
        if key is None:
            return await work(None)
        if not 1 <= len(key) <= _MAX_KEY_LENGTH or not key.isprintable():
            raise InvalidInputError(
                f"An Idempotency-Key has 1 to {_MAX_KEY_LENGTH} printable characters.", field="Idempotency-Key"
            )
        key_hash = hashlib.sha256(key.encode()).hexdigest()
        request = await asyncio.to_thread(digest, parts)  # 160 MiB take a tenth of a second
        claim = Claim(key_hash, request)
        await self._free_if_stranded(key_hash)
        try:
            if await self._store.claim(claim):
                return await self._first_answer(claim, work)
        except StoreError:
            self._strand(claim)
            raise
        return await self._known_answer(key_hash, request)

    async def _first_answer(self, claim: Claim, work: Work) -> Answer:
        try:
            # The claim does not expire, unless this process dies or the store is away for too long.
            async with renewing(partial(self._store.renew, claim), every_s=_RENEW_S):
                answer = await work(digest([claim.key_hash.encode(), claim.request.encode()])[:_ID_LENGTH])
        except BaseException:
            # The key is free again, for the same request or a corrected one, unless it was lost to another by its age.
            await self._store.release(claim)
            raise
        await self._store.answer(claim, answer)
        return answer

    def _strand(self, claim: Claim) -> None:
        """Remember a claim that the store may hold, or receive only now, although its request has ended.

        Without this, a retry would be told for some time that the first request is still at work.
        """
        now = time.monotonic()
        self._stranded = {key: held for key, held in self._stranded.items() if held[1] > now}
        self._stranded.setdefault(claim.key_hash, (claim, now + keys.IDEMPOTENCY_RUNNING_TTL_S))

    async def _free_if_stranded(self, key_hash: str) -> None:
        """Free a slot if it is held by a claim of this process whose request has ended."""
        held = self._stranded.pop(key_hash, None)
        if held is None:
            return
        try:
            await self._store.release(held[0])
        except StoreError:
            self._stranded[key_hash] = held
            raise

    async def _known_answer(self, key_hash: str, request: str) -> Answer:
        slot = await self._store.get(key_hash)
        if slot and slot.request != request:
            raise InvalidInputError(
                "This Idempotency-Key stands for a request with other content: send a new key.", field="Idempotency-Key"
            )
        if slot is None or slot.answer is None:
            raise ConflictError(
                "The first request with this Idempotency-Key is still at work: ask again in a second.",
                field="Idempotency-Key",
                retry_after_s=1,
            )
        return slot.answer


def digest(parts: Iterable[bytes]) -> str:
    """Hash of several parts and their lengths."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()
