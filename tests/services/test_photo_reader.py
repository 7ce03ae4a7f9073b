"""The photos and masks of a request, decoded within the memory of all requests."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import AsyncExitStack

import numpy as np
import pytest

from app.errors import OverloadedError, TooLargeError
from app.images.photo import Photo
from app.masks.rle import mask_to_rle
from app.metrics import Metrics
from app.services import photo_reader
from app.services.photo_memory import PhotoMemory
from app.services.photo_reader import PhotoReader
from tests.images.cases import COLOURED, HW, MARKED, file_of

PHOTO, MASK = file_of(COLOURED), file_of(MARKED)
# All that is left of the two once they are decoded.
HELD = len(PHOTO) + len(MASK) + 4 * MARKED.size


def reader_of(max_bytes: int, *, max_pixels: int = MARKED.size) -> PhotoReader:
    memory = PhotoMemory(max_bytes=max_bytes, metrics=Metrics())
    return PhotoReader(memory, max_pixels=max_pixels, side_by_side=1)


async def test_a_photo_and_its_mask_count_until_the_end_of_their_request() -> None:
    photos = reader_of(HELD)
    with photos.memory.request() as take:
        with photos.request() as reader:
            photo = await reader.photo(PHOTO)
            mask = await reader.mask(photo, mask=MASK)
            assert np.array_equal(photo.rgb, COLOURED)
            assert np.array_equal(mask, MARKED)
            with pytest.raises(OverloadedError):
                take(1)
        take(HELD)


async def test_a_photo_is_refused_while_others_fill_the_memory_and_named_by_its_field() -> None:
    photos = reader_of(HELD)
    with photos.memory.request() as take, photos.request() as reader:
        take(HELD)
        with pytest.raises(OverloadedError):
            await reader.photo(PHOTO)
    with reader_of(HELD, max_pixels=MARKED.size - 1).request() as reader:
        with pytest.raises(TooLargeError) as refusal:
            await reader.photo(PHOTO, field="tasks")
        assert refusal.value.field == "tasks"


async def test_a_mask_sent_as_a_text_counts_too() -> None:
    sent = json.dumps(mask_to_rle(MARKED))
    photos = reader_of(len(PHOTO) + 16 * MARKED.size)
    with photos.memory.request() as take, photos.request() as reader:
        photo = await reader.photo(PHOTO)
        assert np.array_equal(await reader.mask(photo, segmentation=sent), MARKED)
        take(12 * MARKED.size - len(sent))  # all that the photo, the text and the mask leave
        with pytest.raises(OverloadedError):
            take(1)
    with photos.memory.request() as take, photos.request() as reader:
        take(1)
        with pytest.raises(OverloadedError):
            await reader.mask(photo, segmentation="1" * 16 * MARKED.size)


async def test_a_photo_of_a_job_does_not_count() -> None:
    photos = reader_of(HELD)
    with photos.memory.request() as take:
        take(HELD)
        assert (await photos.stored(PHOTO)).rgb.shape[:2] == HW


async def test_a_request_that_is_cancelled_while_its_photo_is_decoded_leaves_nothing_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client of a batch that went away: the thread can't be stopped, and comes to take bytes when all is over."""
    photos, entered, go_on, done = reader_of(HELD), threading.Event(), threading.Event(), threading.Event()
    decode = photo_reader.decode_photo

    def slowly(raw: bytes, **options: object) -> Photo:
        entered.set()
        go_on.wait()
        try:
            return decode(raw, **options)  # type: ignore[arg-type]
        finally:
            done.set()

    async def request() -> None:
        with photos.request() as reader:
            await reader.photo(PHOTO)

    monkeypatch.setattr(photo_reader, "decode_photo", slowly)
    running = asyncio.create_task(request())
    await asyncio.to_thread(entered.wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    await asyncio.to_thread(done.wait)
    with photos.memory.request() as first, photos.memory.request() as second:
        first(HELD - 1)
        second(1)


async def test_a_cancelled_request_keeps_its_turn_until_its_photo_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    photos, entered, go_on = reader_of(100 * HELD), threading.Event(), threading.Event()
    decode, begun = photo_reader.decode_photo, []

    def slowly(raw: bytes, **options: object) -> Photo:
        begun.append(raw)
        entered.set()
        go_on.wait()
        return decode(raw, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(photo_reader, "decode_photo", slowly)
    with photos.request() as first, photos.request() as second:
        gone = asyncio.create_task(first.photo(PHOTO))
        await asyncio.to_thread(entered.wait)
        gone.cancel()
        waiting = asyncio.create_task(second.photo(PHOTO))
        await asyncio.wait([waiting], timeout=0.05)
        begun_by_then = len(begun)
        go_on.set()
        assert begun_by_then == 1
        assert np.array_equal((await waiting).rgb, COLOURED)


async def test_no_more_photos_are_decoded_at_a_time_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five requests come at once; the picture of each takes four times as much memory as the photo that stays of it."""
    running, most = 0, 0
    decode = photo_reader.decode_photo

    def counted(raw: bytes, **options: object) -> Photo:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return decode(raw, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(photo_reader, "decode_photo", counted)
    photos = reader_of(100 * HELD)
    async with AsyncExitStack() as requests:
        readers = [requests.enter_context(photos.request()) for _ in range(5)]
        await asyncio.gather(*(reader.photo(PHOTO) for reader in readers))
    assert most == 1
