"""Rank the layers by InfoScore from unlabelled photos; the best are read from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8
from redis.asyncio import Redis

from app.errors import InvalidInputError
from app.images.photo import decode_photo
from app.method.backbone import Backbone
from app.method.evidence import prompt_evidence
from app.method.infoscore import LayerStatistics, prompt_shares
from app.method.pipeline import encode_one
from app.method.prompts import Prompts, Query, free_background
from app.method.scores import prompt_scores
from app.services.job_engine import JobEngine
from app.services.models import Models
from app.storage import keys
from app.storage.categories import CategoryStore
from app.storage.jobs import Job, JobStore
from app.storage.layers import LayerStore, StoredStatistics
from app.storage.replies import as_bytes, as_texts

_EXPIRED = "Its photos have expired: send them again."


class Ranking:
    """The service's third verb.

    Args:
        models: The loaded backbones; the default's layers are ranked.
        categories: Their names are prompts unless the request names others.
        jobs: Job records.
        engine: Runs the job.
        layers: Where the statistics are kept.
        redis: Where the photos wait for the job.
        background: Background words; each is a class of its own here.
        max_pixels: Largest photo.
    """

    def __init__(
        self,
        models: Models,
        categories: CategoryStore,
        jobs: JobStore,
        engine: JobEngine,
        layers: LayerStore,
        redis: Redis,
        *,
        background: tuple[str, ...],
        max_pixels: int,
    ) -> None:
        self._models = models
        self._categories = categories
        self._jobs = jobs
        self._engine = engine
        self._layers = layers
        self._redis = redis
        self._background = background
        self._max_pixels = max_pixels
        engine.register("rank", self.rank, clear=self._clear)

    async def start(self, images: Sequence[bytes], names: Sequence[str], *, id: str | None = None) -> Job:
        """Store the photos and queue the job.

        Args:
            images: Files.
            names: Of the categories to rank with; all that are taught if there are none.
            id: Of the job, where the request may be a repeated one: it makes only one.

        Raises:
            InvalidInputError: If there is no photo, or one can't be read; nothing is stored then.
        """
        if not images:
            raise InvalidInputError("Send at least one photo in the field images.", field="images")
        for raw in images:
            await asyncio.to_thread(decode_photo, raw, max_pixels=self._max_pixels, field="images")
        job = await self._jobs.create("rank", category=None, steps=len(images), id=id)
        if job.status != "queued":
            return job
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(keys.ranking_images(job.id), keys.ranking_names(job.id))
            pipe.rpush(keys.ranking_images(job.id), *images)
            pipe.expire(keys.ranking_images(job.id), keys.RANKING_IMAGES_TTL_S)
            if names:
                pipe.rpush(keys.ranking_names(job.id), *names)
                pipe.expire(keys.ranking_names(job.id), keys.RANKING_IMAGES_TTL_S)
            await pipe.execute()
        await self._engine.add(job)
        return job

    async def rank(self, job: Job) -> None:
        """The job: one photo per step."""
        model = self._models.default
        prompts = await self._prompts(job)
        statistics = LayerStatistics.empty(model.backbone.layer_count, len(prompts))
        count = await self._redis.llen(keys.ranking_images(job.id))
        if not count:
            await self._engine.end(job, "failed", error=_EXPIRED)
            return
        for index in range(count):
            raw = await self._redis.lindex(keys.ranking_images(job.id), index)
            if raw is None:  # where it was cancelled just now, this changes nothing
                await self._engine.end(job, "failed", error=_EXPIRED)
                return
            photo = await asyncio.to_thread(decode_photo, as_bytes(raw), max_pixels=self._max_pixels)
            shares = await model.lane.run(partial(image_shares, model.backbone, photo.rgb, prompts), kind="rank")
            statistics = statistics.add(shares)
            if not await self._engine.step(job, step=index + 1, steps=count):
                return
        await self._layers.add(model.backbone.revision, StoredStatistics(prompts, statistics, job.id))
        await self._engine.end(job, "succeeded")

    async def _clear(self, job: Job) -> None:
        """Delete its photos, up to hundreds of MiB, and its names."""
        await self._redis.delete(keys.ranking_images(job.id), keys.ranking_names(job.id))

    async def _prompts(self, job: Job) -> tuple[str, ...]:
        asked = as_texts(await self._redis.lrange(keys.ranking_names(job.id), 0, -1))
        names = asked or [record.name for record in await self._categories.all()]
        return (*free_background(self._background, names), *names)


@torch.no_grad()
def image_shares(
    backbone: Backbone, photo: UInt8[np.ndarray, "height width 3"], prompts: Sequence[str]
) -> Float[torch.Tensor, "layer prompt"]:
    """Each prompt's share of a photo at every layer."""
    rgb, _ = backbone.preprocess(photo)
    layers = range(backbone.layer_count)
    classes = Prompts(tuple(Query((word,)) for word in prompts))
    evidence = prompt_evidence(backbone, encode_one(backbone, rgb), classes, layers)
    size = (backbone.input_size, backbone.input_size)
    return torch.stack(
        [
            prompt_shares(prompt_scores(logits, evidence.match_score), backbone.patch_grid_hw, size)
            for logits in evidence.patch_logits
        ]
    )
