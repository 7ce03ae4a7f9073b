"""Image tokens in memory: the same photo asked again, for other categories, is not encoded again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from app.metrics import Metrics


class ImageCache:
    """Image tokens by photo and model, the least recently used dropped first. Any thread may call it.

    Args:
        max_bytes: Memory for tokens.
        metrics: Where hits and misses are recorded.
    """

    def __init__(self, *, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._tokens: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, revision: str, sha256: str, encode: Callable[[], Tensor]) -> Tensor:
        """Tokens of a photo; nobody may write to them.

        Args:
            revision: Of the backbone: two may have one name, one after the other.
            sha256: Of the photo's file.
            encode: Makes them if they are not in memory.
        """
        key = (revision, sha256)
        with self._lock:
            found = self._tokens.get(key)
            if found is not None:
                self._tokens.move_to_end(key)
                self._metrics.image_cache_hits.inc()
                return found
        self._metrics.image_cache_misses.inc()
        made = encode()
        with self._lock:
            # One that is larger than all the memory would drive out all others and then go itself.
            if key not in self._tokens and made.nbytes <= self._max_bytes:
                self._tokens[key] = made
                self._bytes += made.nbytes
            while self._bytes > self._max_bytes:
                _, dropped = self._tokens.popitem(last=False)
                self._bytes -= dropped.nbytes
            self._metrics.image_cache_bytes.set(self._bytes)
        return made
