"""Examples and jobs that several tests of the services use."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from app.images.photo import decode_photo
from app.services.teaching import NewExample
from app.storage.jobs import Job, JobStore
from app.storage.names import CategoryName
from app.wiring import Service

CAT = CategoryName("cat")


def an_example(name: str = "cat", *, seed: int = 3) -> NewExample:
    """Random photo with a rectangle marked."""
    pixels = np.random.default_rng(seed).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    mask = np.zeros((31, 47), dtype=bool)
    mask[5:20, 10:30] = True
    return NewExample(name=CategoryName(name), photo=decode_photo(file.getvalue(), max_pixels=10_000), mask=mask)


async def ended(live: Service, job: Job) -> Job:
    """The job at its end."""
    async with asyncio.timeout(20):
        async with live.jobs.events(job.id) as states:
            async for state in states:
                last = state
    assert last.ended
    return last


async def all_jobs(store: JobStore, **chosen: Any) -> Sequence[Job]:
    """Every record that can be read, the newest first, or those chosen by category or status."""
    return (await store.page(limit=100, cursor=None, **chosen)).items
