"""Decodes the photos and masks of requests, within the limits on their size and on the memory of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from app.images.files import TakeBytes
from app.images.masks import read_mask
from app.images.photo import Photo, decode_photo
from app.masks import Mask
from app.services.photo_memory import PhotoMemory


class RequestReader:
    """Decodes what one request sent, made by `PhotoReader.request`."""

    def __init__(self, take_bytes: TakeBytes, *, max_pixels: int) -> None:
        self._take_bytes = take_bytes
        self._max_pixels = max_pixels

    async def photo(self, raw: bytes, *, field: str = "image") -> Photo:
        """Decode a photo, off the event loop.

        Args:
            raw: Its file.
            field: The form field that an error names.

        Raises:
            OverloadedError: If the photos of other requests leave no memory for it.
            AppError: As `decode_photo`.
        """
        return await asyncio.to_thread(
            decode_photo, raw, max_pixels=self._max_pixels, field=field, take_bytes=self._take_bytes
        )

    async def mask(
        self, photo: Photo, *, mask: bytes | None = None, segmentation: str | None = None, box: str | None = None
    ) -> Mask:
        """Read the one form of mask that was sent with a photo, off the event loop.

        Raises:
            OverloadedError: As `photo`.
            AppError: As `read_mask`.
        """
        return await asyncio.to_thread(
            read_mask,
            mask=mask,
            segmentation=segmentation,
            box=box,
            photo_hw=(photo.rgb.shape[0], photo.rgb.shape[1]),
            max_pixels=self._max_pixels,
            take_bytes=self._take_bytes,
        )


class PhotoReader:
    """Gives each request its reader.

    Args:
        memory: Limit on the memory of all requests.
        max_pixels: Largest photo or mask.
    """

    def __init__(self, memory: PhotoMemory, *, max_pixels: int) -> None:
        self.memory = memory
        self._max_pixels = max_pixels

    @contextmanager
    def request(self) -> Iterator[RequestReader]:
        """Gives the reader of one request; what it has read counts until the end."""
        with self.memory.request() as take_bytes:
            yield RequestReader(take_bytes, max_pixels=self._max_pixels)

    async def stored(self, raw: bytes) -> Photo:
        """Decode a photo that waited in the store for a job.

        It does not count: jobs decode one photo at a time, and must not have requests refused.
        """
        return await asyncio.to_thread(decode_photo, raw, max_pixels=self._max_pixels)
