"""Idempotency-Key: a retried request gets the first answer (draft-ietf-httpapi-idempotency-key-header-06)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable

from app.errors import ConflictError, InvalidInputError
from app.storage.idempotency import Answer, IdempotencyStore

_MAX_KEY_LENGTH = 255
# Hex digits of a UUID, as in other ids.
_ID_LENGTH = 32


class Idempotency:
    """Does the work of a request once per key, and repeats its answer for a day.

    Args:
        store: Store of the keys' slots.
    """

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store

    async def once(
        self, key: str | None, parts: Iterable[bytes], work: Callable[[str | None], Awaitable[Answer]]
    ) -> Answer:
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
        claim = await self._store.claim(key_hash, request)
        if claim is None:
            return await self._known_answer(key_hash, request)
        try:
            answer = await work(digest([key_hash.encode(), request.encode()])[:_ID_LENGTH])
        except BaseException:
            # The key is free again, for the same request or a corrected one, unless it was lost to another by its age.
            await self._store.release(claim)
            raise
        await self._store.answer(claim, answer)
        return answer

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
