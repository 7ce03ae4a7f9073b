"""A photo's shares, and a ranking job that runs twice and counts once."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from app.services.ranking import image_shares


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


async def test_a_cancelled_job_keeps_no_photos(wire) -> None:
    async with wire(worker=False) as live:
        job = await live.ranking.start([photo(), photo()], ["cat"])
        await live.engine.cancel(job)
        await live.ranking.rank(job)
        assert (await live.jobs.get(job.id)).status == "cancelled"
        assert not [key async for key in live.redis.scan_iter("exemplar:ranking:*")]
        assert (await live.models.layers_of(live.models.default)).images == 0
