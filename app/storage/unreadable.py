"""Register of stored records that can't be read: each is skipped, logged once and named until it is gone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from redis.asyncio import Redis

from .records import replies_of

RecordKind = Literal["job", "category", "example", "adapter", "ranking"]
RECORD_KINDS: tuple[RecordKind, ...] = get_args(RecordKind)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnreadableRecord:
    """A stored record that can't be read.

    Attributes:
        kind: Kind of record.
        id: Name of the record as the API has it.
        detail: What is wrong with it.
        key: Its key in the store.
        member: Its field, if the key is a hash with several records; else empty.
    """

    kind: RecordKind
    id: str
    detail: str
    key: str
    member: str = ""


class Unreadable:
    """The unreadable records that this process has met.

    Args:
        count: Called with a kind and the number of its unreadable records whenever that number changes.
    """

    def __init__(self, count: Callable[[RecordKind, int], object] = lambda kind, number: None) -> None:
        self._count = count
        self._records: dict[tuple[str, str], UnreadableRecord] = {}

    def __iter__(self) -> Iterator[UnreadableRecord]:
        return iter(self._records.values())

    def note(self, record: UnreadableRecord) -> None:
        """Add a record, and log it unless it is known."""
        place = (record.key, record.member)
        known = place in self._records
        self._records[place] = record
        if not known:
            _log.warning("the stored %s %r can't be read and is skipped: %s", record.kind, record.id, record.detail)
            self._tell(record.kind)

    def find(self, key: str, member: str = "") -> UnreadableRecord | None:
        """The unreadable record at this place, or None."""
        return self._records.get((key, member))

    def forget(self, key: str, member: str = "") -> None:
        """Drop the record at this place, because it was read or is gone."""
        if record := self._records.pop((key, member), None):
            self._tell(record.kind)

    async def refresh(self, redis: Redis) -> None:
        """Drop records that somebody deleted meanwhile."""
        records = list(self._records.values())
        if records:
            async with redis.pipeline(transaction=False) as pipe:
                for record in records:
                    if record.member:
                        pipe.hexists(record.key, record.member)
                    else:
                        pipe.exists(record.key)
                there = await replies_of(pipe)
            for record, found in zip(records, there, strict=True):
                if not found:
                    self.forget(record.key, record.member)

    def _tell(self, kind: RecordKind) -> None:
        self._count(kind, Counter(record.kind for record in self._records.values())[kind])
