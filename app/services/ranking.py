"""Ranking of the layers by InfoScore on unlabelled photos; the best layers are read from then on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float, UInt8

from app.errors import InvalidInputError
from app.method.backbone import Backbone
from app.method.evidence import prompt_evidence
from app.method.infoscore import LayerStatistics, prompt_shares
from app.method.pipeline import encode_one
from app.method.prompts import Prompts, Query, free_background
from app.method.scores import prompt_scores
from app.services.category_lookup import check_count
from app.services.job_engine import JobEngine
from app.services.models import Models
from app.services.photo_reader import PhotoReader
from app.storage.categories import CategoryStore
from app.storage.jobs import Job, JobStore
from app.storage.layers import LayerStore, StoredStatistics
from app.storage.rankings import RankingStore

_EXPIRED = "Its photos have expired: send them again."


class Ranking:
    """Accepts photos and runs the jobs of kind `rank`.

    Args:
        models: The loaded backbones; the default's layers are ranked.
        categories: Store of the categories whose names are the prompts, unless the request names others.
        jobs: Store of job records.
        engine: Runs the jobs.
        layers: Store of the statistics.
        rankings: Store of the photos and names that wait for a job.
        photos: Decodes photos.
        background: Background words; each is a class here.
        max_categories: Largest number of categories of a job.
    """

    def __init__(
        self,
        models: Models,
        categories: CategoryStore,
        jobs: JobStore,
        engine: JobEngine,
        layers: LayerStore,
        rankings: RankingStore,
        photos: PhotoReader,
        *,
        background: tuple[str, ...],
        max_categories: int,
    ) -> None:
        self._models = models
        self._categories = categories
        self._jobs = jobs
        self._engine = engine
        self._layers = layers
        self._rankings = rankings
        self._photos = photos
        self._background = background
        self._max_categories = max_categories
        engine.register("rank", self.rank, clear=self._clear)

    async def start(self, images: Sequence[bytes], names: Sequence[str], *, id: str | None = None) -> Job:
        """Store the photos and queue the job.

        Args:
            images: Files of the photos.
            names: Category names to rank with; empty for every category taught.
            id: Id for the job if the request may be sent again, else None. While that job has not ended, the same
                request sent again changes nothing.

        Raises:
            InvalidInputError: If there is no photo, or one cannot be read, or the request names no categories and more
                are taught than one request may have; nothing is stored then.
            OverloadedError: If the photos of other requests leave no memory to check one; nothing is stored either.
        """
        if not images:
            raise InvalidInputError("Send at least one photo in the field images.", field="images")
        if not names:
            check_count(await self._categories.count(), self._max_categories)
        for raw in images:
            with self._photos.request() as reader:  # one at a time: only their files are kept
                await reader.photo(raw, field="images")
        known = await self._jobs.get(id) if id else None
        if known and not known.ended:
            # The same request sent again: its photos are stored, its job may not have been queued.
            await self._engine.add(known)
            return known
        job_id = self._jobs.free(id, known) or uuid4().hex
        # Photos first: a process that starts meanwhile queues every job that has a record.
        await self._rankings.put(job_id, images=images, names=names)
        job = await self._jobs.create("rank", category=None, steps=len(images), id=job_id)
        await self._engine.add(job)
        return job

    async def rank(self, job: Job) -> None:
        """Run a job, one photo per step."""
        model = self._models.default
        prompts = await self._prompts(job)
        statistics = LayerStatistics.empty(model.backbone.layer_count, len(prompts))
        count = await self._rankings.image_count(job.id)
        if not count:
            await self._engine.end(job, "failed", error=_EXPIRED)
            return
        for index in range(count):
            raw = await self._rankings.image(job.id, index)
            if raw is None:  # expired, or deleted by a cancellation, which this does not change
                await self._engine.end(job, "failed", error=_EXPIRED)
                return
            photo = await self._photos.stored(raw)
            shares = await model.lane.run(partial(image_shares, model.backbone, photo.rgb, prompts), kind="rank")
            statistics = statistics.add(shares)
            if not await self._engine.step(job, step=index + 1, steps=count):
                return
        await self._layers.add(model.backbone.revision, StoredStatistics(prompts, statistics, job.id))
        await self._engine.end(job, "succeeded")

    async def _clear(self, job: Job) -> None:
        await self._rankings.delete(job.id)

    async def _prompts(self, job: Job) -> tuple[str, ...]:
        names = await self._rankings.names(job.id)
        if not names:  # more may have been taught since the request
            names = [record.name for record in await self._categories.latest(self._max_categories)]
        return (*free_background(self._background, names), *names)


@torch.no_grad()
def image_shares(
    backbone: Backbone, photo: UInt8[np.ndarray, "height width 3"], prompts: Sequence[str]
) -> Float[torch.Tensor, "layer prompt"]:
    """Share of each prompt in a photo, at every layer."""
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
