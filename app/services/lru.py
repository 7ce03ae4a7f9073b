"""Byte-bounded LRU cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Value of a known size in memory."""

    @property
    def nbytes(self) -> int:
        """Size in bytes; it never changes."""


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


class LruCache(Generic[Key, Value]):
    """Byte-bounded cache of immutable values; the least recently used is evicted first.

    Args:
        max_bytes: Memory for all values.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value, marked as used last, or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._values))

    def discard(self, key: Key) -> None:
        """Drop a value, if it is there."""
        if key in self._values:
            self.nbytes -= self._values.pop(key).nbytes

    def put(self, key: Key, value: Value) -> int:
        """Add a value unless its key is present; return the number of evicted values."""
        # A value larger than the cache would evict all others and then itself.
        if key in self._values or value.nbytes > self._max_bytes:
            return 0
        self._values[key] = value
        self.nbytes += value.nbytes
        before = len(self)
        while self.nbytes > self._max_bytes:
            _, dropped = self._values.popitem(last=False)
            self.nbytes -= dropped.nbytes
        return before - len(self)
