"""LRU cache of encoded images: a photo sent again, for other categories, is not encoded again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor

from app.images.photo import Photo
from app.method.backbone import Backbone, EncodedImage
from app.method.pipeline import Encode, encode_one
from app.metrics import Metrics
from app.services.lru import LruCache


class ImageCache:
    """Byte-bounded LRU cache of encoded images by photo and model. Any thread may call it.

    Args:
        max_bytes: Memory for encoded images.
        metrics: Records hits and misses.
    """

    def __init__(self, *, max_bytes: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._images: LruCache[tuple[str, str], EncodedImage] = LruCache(max_bytes=max_bytes)
        self._lock = threading.Lock()

    def encoder(self, backbone: Backbone, photo: Photo) -> Encode:
        """Encodes the network inputs of a photo, the whole and its tiles, with this cache."""

        def encode(rgb: Float[Tensor, "3 size size"], number: int) -> EncodedImage:
            return self.get(backbone.revision, f"{photo.sha256}/{number}", partial(encode_one, backbone, rgb))

        return encode

    def get(self, revision: str, sha256: str, encode: Callable[[], EncodedImage]) -> EncodedImage:
        """The encoded photo. Its tensors are shared and must not be changed.

        Args:
            revision: Revision of the backbone; its name may stand for other weights after a restart.
            sha256: Hash of the photo's file, with the number of the tile.
            encode: Encodes the photo if it is not cached.
        """
        key = (revision, sha256)
        with self._lock:
            found = self._images.get(key)
            if found is not None:
                self._metrics.image_cache_hits.inc()
                return found
        self._metrics.image_cache_misses.inc()
        made = encode()
        with self._lock:
            self._images.put(key, made)
            self._metrics.image_cache_bytes.set(self._images.nbytes)
        return made
