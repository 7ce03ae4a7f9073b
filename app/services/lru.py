"""Byte-bounded LRU cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What knows how much memory it takes."""

    @property
    def nbytes(self) -> int:
        """Bytes, the same for as long as it lives."""


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


class LruCache(Generic[Key, Value]):
    """Values that never change, the least recently used dropped first.

    Args:
        max_bytes: Memory for all of them.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value, which is now the one used last; or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Key, value: Value) -> int:
        """Keep a value, unless there is one of that key; returns how many were dropped for it."""
        # One that is larger than all the memory would drive out all others and then go itself.
        if key in self._values or value.nbytes > self._max_bytes:
            return 0
        self._values[key] = value
        self.nbytes += value.nbytes
        before = len(self)
        while self.nbytes > self._max_bytes:
            _, dropped = self._values.popitem(last=False)
            self.nbytes -= dropped.nbytes
        return before - len(self)
