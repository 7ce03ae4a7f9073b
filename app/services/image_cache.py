"""Image tokens in memory: the same photo asked again, for other categories, is not encoded again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor

from app.metrics import Metrics
from app.services.lru import LruCache


class ImageCache:
    """Image tokens by photo and model, the least recently used dropped first. Any thread may call it.

    Args:
        max_bytes: Memory for tokens.
        metrics: Where hits and misses are recorded.
    """

    def __init__(self, *, max_bytes: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tokens: LruCache[tuple[str, str], Tensor] = LruCache(max_bytes=max_bytes)
        self._lock = threading.Lock()

    def get(self, model: str, sha256: str, encode: Callable[[], Tensor]) -> Tensor:
        """Tokens of a photo; nobody may write to them.

        Args:
            model: Name of the backbone.
            sha256: Of the photo's file.
            encode: Makes them if they are not in memory.
        """
        key = (model, sha256)
        with self._lock:
            found = self._tokens.get(key)
            if found is not None:
                self._metrics.image_cache_hits.inc()
                return found
        self._metrics.image_cache_misses.inc()
        made = encode()
        with self._lock:
            self._tokens.put(key, made)
            self._metrics.image_cache_bytes.set(self._tokens.nbytes)
        return made
