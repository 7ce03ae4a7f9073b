"""Decodes the photos and masks of requests, within the limits on their size and on the memory of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from app.images.files import TakeBytes
from app.images.masks import read_mask
from app.images.photo import Photo, decode_photo
from app.masks import Mask
from app.services.photo_memory import PhotoMemory

Decoded = TypeVar("Decoded")


class RequestReader:
    """Decodes what one request sent, made by `PhotoReader.request`.

    Args:
        take_bytes: Counts the request's bytes.
        turn: Held while something is decoded.
        max_pixels: Largest photo or mask.
    """

    def __init__(self, take_bytes: TakeBytes, turn: asyncio.Semaphore, *, max_pixels: int) -> None:
        self._take_bytes = take_bytes
        self._turn = turn
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
        return await self._in_turn(partial(decode_photo, raw, field=field))

    async def mask(
        self, photo: Photo, *, mask: bytes | None = None, segmentation: str | None = None, box: str | None = None
    ) -> Mask:
        """Read the one form of mask that was sent with a photo, off the event loop.

        Raises:
            OverloadedError: As `photo`.
            AppError: As `read_mask`.
        """
        photo_hw = photo.rgb.shape[0], photo.rgb.shape[1]
        return await self._in_turn(partial(read_mask, mask=mask, segmentation=segmentation, box=box, photo_hw=photo_hw))

    async def _in_turn(self, decode: Callable[..., Decoded]) -> Decoded:
        await self._turn.acquire()
        decoding = asyncio.create_task(
            asyncio.to_thread(decode, max_pixels=self._max_pixels, take_bytes=self._take_bytes)
        )
        decoding.add_done_callback(self._end_turn)
        # Of a request that is cancelled the thread runs on, and with it its turn.
        return await asyncio.shield(decoding)

    def _end_turn(self, decoding: asyncio.Task[Any]) -> None:
        self._turn.release()
        if not decoding.cancelled():
            decoding.exception()  # nobody else asks for that of a cancelled request


class PhotoReader:
    """Gives each request its reader.

    Args:
        memory: Limit on the memory of all requests.
        max_pixels: Largest photo or mask.
        side_by_side: Photos or masks decoded at a time. Decoding takes four times the memory of a decoded photo, so
            that more of them than cores would only fill it.
    """

    def __init__(self, memory: PhotoMemory, *, max_pixels: int, side_by_side: int) -> None:
        self.memory = memory
        self._max_pixels = max_pixels
        self._turn = asyncio.Semaphore(side_by_side)

    @contextmanager
    def request(self) -> Iterator[RequestReader]:
        """Gives the reader of one request; what it has read counts until the end."""
        with self.memory.request() as take_bytes:
            yield RequestReader(take_bytes, self._turn, max_pixels=self._max_pixels)

    async def stored(self, raw: bytes) -> Photo:
        """Decode a photo that waited in the store for a job.

        It does not count: jobs decode one photo at a time, and must not have requests refused.
        """
        return await asyncio.to_thread(decode_photo, raw, max_pixels=self._max_pixels)
