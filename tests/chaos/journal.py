"""Journal of what clients asked for and were told, and what the lists of examples may and must hold after it.

An operation takes effect at some time between its begin and its end. Two operations whose times overlap have no known
order, so both orders are accepted. What was not acknowledged may have happened or not. What had a try without an answer
may also happen late: a hanging server executes what it had received.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

Action = Literal["append", "replace", "absent", "delete example", "delete category", "import", "rollback", "cancel"]
Outcome = Literal["open", "acknowledged", "refused", "unknown"]

# Time for which a command that nobody waits for may still be under way: the longest pause of a process, and more.
LATE_S = 12.0

_TEACHES: frozenset[Action] = frozenset({"append", "replace", "absent"})


@dataclass
class Entry:
    """An operation of a client; times are those of one monotonic clock.

    Attributes:
        photo: Hash of the photo that is taught or deleted; empty if the operation concerns no single one.
        doubtful: True if one of its tries had no answer.
        job: Id of the job of its answer.
    """

    action: Action
    category: str
    photo: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float = inf
    outcome: Outcome = "open"
    doubtful: bool = False
    status: int = 0
    job: str = ""

    @property
    def last(self) -> float:
        """The latest time at which it may take effect."""
        return self.ended + (LATE_S if self.doubtful or self.outcome == "unknown" else 0.0)

    @property
    def teaches(self) -> bool:
        """True if it adds an example."""
        return self.action in _TEACHES

    @property
    def may_have_happened(self) -> bool:
        """False if it certainly had no effect."""
        return self.outcome != "refused" or self.doubtful

    def removes(self, photo: str) -> bool:
        """True if it takes a photo out of its category."""
        if self.action == "delete example":
            return self.photo == photo
        return self.action == "delete category" or (self.action == "replace" and self.photo != photo)


class Journal:
    """All operations, in the order in which they began."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._lock = threading.Lock()

    def begin(self, action: Action, category: str, photo: str = "") -> Entry:
        """Note an operation that begins now."""
        entry = Entry(action, category, photo)
        with self._lock:
            self._entries.append(entry)
        return entry

    def entries(self, category: str | None = None) -> list[Entry]:
        """All operations, or those of one category."""
        with self._lock:
            found = list(self._entries)
        return [entry for entry in found if category in (None, entry.category)]

    def doubt(self, since: float, until: float) -> int:
        """Take back what was acknowledged in a time whose writes the store may have lost; the number of operations."""
        taken = [
            entry
            for entry in self.entries()
            if entry.outcome == "acknowledged" and entry.ended >= since and entry.began <= until
        ]
        for entry in taken:
            entry.outcome = "unknown"
        return len(taken)

    def faults(self, category: str, listed: Sequence[str], *, asked: float = inf, answered: float = inf) -> list[str]:
        """What is wrong with a list of examples.

        Args:
            category: Whose.
            listed: Hashes of the photos.
            asked: When the list was asked for.
            answered: When it was there.
        """
        entries = [entry for entry in self.entries(category) if entry.began < answered]
        taught = {entry.photo: entry for entry in entries if entry.teaches}
        settled = {photo for photo, entry in taught.items() if entry.last < asked}
        found = [f"{category}: {photo[:8]} is listed twice" for photo in settled if listed.count(photo) > 1]
        found += [f"{category}: {photo[:8]} is listed, but nobody taught it" for photo in set(listed) - taught.keys()]
        for photo, entry in taught.items():
            removers = [other for other in entries if other is not entry and other.removes(photo)]
            if photo in listed:
                found += _wrongly_there(entry, removers, asked)
            elif entry.outcome == "acknowledged" and entry.ended < asked:
                found += _wrongly_gone(entry, removers)
        return found

    def write(self, path: Path) -> None:
        """Write one JSON line per operation."""
        path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in self.entries()))


def _wrongly_there(entry: Entry, removers: Iterable[Entry], asked: float) -> list[str]:
    if not entry.may_have_happened:
        return [f"{entry.category}: {entry.photo[:8]} is listed, but was refused with {entry.status}"]
    after = [
        other
        for other in removers
        if other.outcome == "acknowledged" and other.ended < asked and other.began > entry.last
    ]
    return [f"{entry.category}: {entry.photo[:8]} is listed, after {other.action}" for other in after[:1]]


def _wrongly_gone(entry: Entry, removers: Iterable[Entry]) -> list[str]:
    if any(other.may_have_happened and other.last > entry.began for other in removers):
        return []
    return [f"{entry.category}: {entry.photo[:8]} ({entry.action}) was acknowledged, but is not listed"]
