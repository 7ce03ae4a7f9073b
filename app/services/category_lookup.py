"""Look-up of the categories of a segmentation: in the store, or in memory while the store is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from app.errors import InvalidInputError
from app.metrics import Metrics
from app.services.lru import LruCache
from app.storage.breaker import StoreAwayError
from app.storage.categories import CategoryStore
from app.storage.category_records import CategoryRecord
from app.storage.names import check_number

# Records take one to two kilobytes: enough for the largest list that one request may have (10,000).
_MEMORY_BYTES = 32 * 1024 * 1024

# Of a record without its texts, and of a character in them, at most.
_RECORD_BYTES = 1500
_CHARACTER_BYTES = 4


@dataclass(frozen=True)
class Found:
    """Result of a look-up.

    Attributes:
        records: Records; None for a name that was not taught.
        age_s: None if the store answered. Else the time since the oldest part of the answer was read from it.
    """

    records: list[CategoryRecord | None]
    age_s: float | None = None


@dataclass(frozen=True)
class _Seen:
    """What a look-up found: a record, or None for a category that was deleted."""

    record: CategoryRecord | None
    read_at: float

    @property
    def nbytes(self) -> int:
        """Estimate of its memory."""
        texts = self.record.words if self.record else ()
        return _RECORD_BYTES + _CHARACTER_BYTES * sum(map(len, texts))


class CategoryLookup:
    """Looks categories up in the store and remembers them for the time that it is away.

    The memory is written by answers of the store and read by nothing but look-ups during an outage.

    Args:
        store: Store of categories.
        most: Largest number of categories in a request.
        metrics: Counts the look-ups answered from memory.
        max_bytes: Memory for the records.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        store: CategoryStore,
        *,
        most: int,
        metrics: Metrics,
        max_bytes: int = _MEMORY_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._most = most
        self._metrics = metrics
        self._clock = clock
        self._seen: LruCache[str, _Seen] = LruCache(max_bytes=max_bytes)
        self._complete = False  # all categories are in memory, but for those made since by others
        self._listed_at = clock()

    async def named(self, ids: Sequence[str], *, field: str = "categories") -> Found:
        """Categories by id. While the store is away, an id that is not in memory counts as not taught.

        Args:
            ids: Their ids.
            field: The field of the request that has their names.

        Raises:
            InvalidInputError: If there are more than one request may have.
        """
        check_number(len(ids), of="categories", field=field, limit=self._most)
        started = self._clock()
        try:
            records = await self._store.get_many(ids)
        except StoreAwayError:
            return self._from_memory(ids)
        for id_, record in zip(ids, records, strict=True):
            self._remember(id_, record, started)
        return Found(records)

    async def taught(self) -> Found:
        """All categories, the oldest first.

        Raises:
            InvalidInputError: If there are more than one request may have.
            StoreAwayError: If the store is away, and its list was never read or did not fit into memory.
        """
        started = self._clock()
        try:
            check_count(await self._store.count(), self._most)
            records = await self._store.all()
        except StoreAwayError:
            if not self._complete:
                raise
            known = [seen.record for id_ in self._seen if (seen := self._seen.get(id_)) and seen.record]
            check_count(len(known), self._most)
            known.sort(key=lambda record: record.created_at)
            return self._from_memory([record.id for record in known], since=self._listed_at)
        self._remember_all(records, started)
        return Found(list(records))

    def _from_memory(self, ids: Iterable[str], *, since: float | None = None) -> Found:
        self._metrics.lookups_from_memory.inc()
        seen = [self._seen.get(id_) for id_ in ids]
        # What is known of a name that is not in memory is that it was not in the list.
        read_at = [one.read_at if one else self._listed_at for one in seen]
        oldest = min(read_at, default=self._listed_at)
        oldest = oldest if since is None else min(oldest, since)
        return Found([one.record if one else None for one in seen], self._clock() - oldest)

    def _remember_all(self, records: Sequence[CategoryRecord], read_at: float) -> None:
        self._complete, self._listed_at = True, read_at
        listed = {record.id for record in records}
        for id_ in self._seen:
            if id_ not in listed:
                self._remember(id_, None, read_at)
        for record in records:
            self._remember(record.id, record, read_at)

    def _remember(self, id_: str, record: CategoryRecord | None, read_at: float) -> None:
        known = self._seen.get(id_)
        # A look-up that was overtaken by a later one must not undo it. A name that was never taught is not kept.
        if (known and known.read_at > read_at) or not (known or record):
            return
        self._seen.discard(id_)
        if self._seen.put(id_, _Seen(record, read_at)) or (record and self._seen.get(id_) is None):
            self._complete = False


def check_count(taught: int, most: int) -> None:
    """Refuse a request for all categories.

    Raises:
        InvalidInputError: If more are taught than one request may have.
    """
    if taught > most:
        raise InvalidInputError(
            f"{taught} categories are taught, at most {most} can be asked for in one request "
            "(EXEMPLAR_MAX_CATEGORIES): name those you want.",
            field="categories",
        )
