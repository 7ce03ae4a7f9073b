"""The shares of a photo, and a ranking job that runs twice but counts once."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
import torch
from PIL import Image

from app.errors import OverloadedError
from app.services.ranking import image_shares
from app.storage.jobs import Job
from app.wiring import Service
from tests.services.examples import all_jobs


def photo() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (31, 47, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_shares_sum_to_one_at_every_layer(tiny) -> None:
    shares = image_shares(tiny, np.zeros((31, 47, 3), np.uint8), ["sky", "cat", "dog"])
    assert shares.shape == (4, 3)
    assert torch.allclose(shares.sum(dim=1), torch.ones(4, dtype=shares.dtype))


async def test_a_job_that_counted_and_died_counts_once(wire, tiny) -> None:
    async with wire(worker=False) as live:
        job = await live.ranking.start([photo(), photo()], ["cat"])
        images = await live.redis.lrange(f"exemplar:ranking:{job.id}:images", 0, -1)
        for _ in range(2):
            await live.jobs.start(job.id, steps=2)
            await live.ranking.rank(job)
            # As if its process had died before the record's last change.
            await live.redis.hset(f"exemplar:job:{job.id}", "status", '"running"')
            await live.redis.rpush(f"exemplar:ranking:{job.id}:images", *images)
            await live.redis.rpush(f"exemplar:ranking:{job.id}:names", "cat")
        assert (await live.models.layers_of(live.models.default)).images == 2


async def test_a_job_whose_photos_have_expired_fails_and_says_so(wire) -> None:
    async with wire(worker=False) as live:
        job = await live.ranking.start([photo()], [])
        await live.redis.delete(f"exemplar:ranking:{job.id}:images")
        await live.ranking.rank(job)
        failed = await live.jobs.get(job.id)
        assert failed.status == "failed"
        assert "expired" in failed.error


async def test_photos_are_not_decoded_while_those_of_other_requests_fill_the_memory(wire) -> None:
    async with wire(worker=False, photo_memory_bytes=1) as live:
        with live.photos.memory.request() as take:
            take(1)
            with pytest.raises(OverloadedError, match="EXEMPLAR_PHOTO_MEMORY_BYTES"):
                await live.ranking.start([photo()], ["cat"])
        assert not await all_jobs(live.jobs)
        await live.ranking.rank(await live.ranking.start([photo(), photo()], ["cat"]))


async def waiting(live: Service) -> list[bytes]:
    """Photos and names that are stored for ranking jobs."""
    return [key async for key in live.redis.scan_iter("exemplar:ranking:*")]


async def test_a_request_sent_again_after_the_store_broke_down_makes_one_job(wire, monkeypatch) -> None:
    async with wire(worker=False) as live:
        once, add = [ConnectionError()], live.engine.add

        async def breaks_down_once(job: Job) -> None:
            if once:
                raise once.pop()
            await add(job)

        monkeypatch.setattr(live.engine, "add", breaks_down_once)
        with pytest.raises(ConnectionError):
            await live.ranking.start([photo()], ["cat"], id="1" * 32)
        job = await live.ranking.start([photo()], ["cat"], id="1" * 32)
        assert [each.id for each in await all_jobs(live.jobs)] == [job.id] == ["1" * 32]
        await live.jobs.end(job.id, "failed")
        assert (await live.ranking.start([photo()], ["cat"], id="1" * 32)).id != job.id


async def test_a_job_that_is_cancelled_in_the_queue_keeps_no_photos(wire) -> None:
    async with wire(worker=False) as live:
        job = await live.ranking.start([photo(), photo()], ["cat"])
        assert len(await waiting(live)) == 2
        await live.engine.cancel(job)
        assert not await waiting(live)
        await live.ranking.rank(job)  # as if it had begun just then
        assert (await live.jobs.get(job.id)).status == "cancelled"
        assert (await live.models.layers_of(live.models.default)).images == 0


async def test_a_job_that_is_cancelled_at_work_keeps_no_photos_and_counts_none(wire, monkeypatch) -> None:
    loop = asyncio.get_running_loop()
    async with wire(worker=False) as live:

        def cancelled_meanwhile(*photo_and_prompts) -> torch.Tensor:
            assert asyncio.run_coroutine_threadsafe(live.engine.cancel(job), loop).result(10)
            return image_shares(*photo_and_prompts)

        monkeypatch.setattr("app.services.ranking.image_shares", cancelled_meanwhile)
        job = await live.ranking.start([photo(), photo()], ["cat"])
        await live.jobs.start(job.id, steps=2)
        await live.ranking.rank(job)
        assert (await live.jobs.get(job.id)).status == "cancelled"
        assert not await waiting(live)
        assert (await live.models.layers_of(live.models.default)).images == 0


async def test_a_job_that_fails_keeps_no_photos(wire, monkeypatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("app.services.ranking.image_shares", out_of_memory)
    async with wire(worker=True) as live:
        job = await live.ranking.start([photo()], ["cat"])
        assert (await ended(live, job)).status == "failed"
        async with asyncio.timeout(10):
            while await waiting(live):
                await asyncio.sleep(0.01)


async def ended(live: Service, job: Job) -> Job:
    async with asyncio.timeout(20), live.jobs.events(job.id) as states:
        async for state in states:
            last = state
    return last
