"""Limit on the memory that the photos and masks of current requests take together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import OverloadedError
from app.metrics import Metrics


class PhotoMemory:
    """Counts the bytes of decoded photos, from before they are decoded until their request is answered.

    The queue's limit counts requests, whose photos differ in size by a factor of thousands.

    Args:
        max_bytes: Limit on the bytes of all requests. A request that is alone may exceed it.
        metrics: Counts refusals.
    """

    def __init__(self, *, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._taken = 0
        self._lock = threading.Lock()

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """Gives the function by which one request takes bytes, from any thread; they are given back at the end.

        A negative number gives bytes back before the end. The function raises OverloadedError if the bytes of all
        requests would exceed the limit, and RuntimeError after the end: nothing would give those bytes back.
        """
        own = 0
        ended = False

        def take(count: int) -> None:
            nonlocal own
            with self._lock:
                if ended:  # the request was cancelled, and the thread that decodes its photo runs on
                    raise RuntimeError("the request has ended")
                others = self._taken - own
                if count > 0 and others and self._taken + count > self._max_bytes:
                    self._metrics.rejected.labels(reason="photo_memory_full").inc()
                    raise OverloadedError(
                        f"The photos of other requests fill the {self._max_bytes} bytes for photos "
                        "(EXEMPLAR_PHOTO_MEMORY_BYTES): try again in a second."
                    )
                self._taken += count
                own += count

        try:
            yield take
        finally:
            with self._lock:
                ended = True
                self._taken -= own
