"""Tuning job: tunes an adapter on all examples of a category and puts it in use."""

from __future__ import annotations

import asyncio
from functools import partial
from math import isfinite

import numpy as np
from jaxtyping import Bool, UInt8

from app.images.masks import decode_mask
from app.images.photo import decode_photo
from app.method.backbone import Backbone
from app.method.frame import mask_to_input
from app.method.pieces import Pieces, Value, advance
from app.method.pipeline import encode_one
from app.method.prompts import Prompts, Query
from app.method.selection import Outcome, select
from app.method.shot import IGNORE, Shot
from app.method.tuning import COMPETING_CATEGORIES, CategoryTuning, Recipe
from app.metrics import Metrics
from app.services.job_engine import JobEngine
from app.services.models import Models
from app.storage.categories import CategoryStore
from app.storage.category_records import CategoryRecord, Example
from app.storage.jobs import Job, now
from app.storage.names import CategoryName

# Below this overlap with its own examples a category is hardly found in other photos.
_LEARNT_IOU = 0.6

_SUPERSEDED = "The category was taught anew or deleted."


class TuningJob:
    """Work of the jobs of kind `tune`.

    A run is idempotent per generation: it commits only if the category still waits for the job's generation. It stops
    between steps if the job was cancelled or superseded.

    Args:
        models: The loaded backbones; categories are tuned on the default.
        categories: Store of categories and examples.
        engine: Delivers the jobs and keeps their records.
        recipe: Settings of tuning.
        background: Background words.
        max_pixels: Largest photo.
        metrics: Records the gain of each adapter over the words.
    """

    def __init__(
        self,
        models: Models,
        categories: CategoryStore,
        engine: JobEngine,
        *,
        recipe: Recipe,
        background: tuple[str, ...],
        max_pixels: int,
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._categories = categories
        self._engine = engine
        self._recipe = recipe
        self._background = background
        self._max_pixels = max_pixels
        self._metrics = metrics
        engine.register("tune", self.run, withdraw=self._withdraw)

    async def run(self, job: Job) -> None:
        """Run a job from its examples to its end."""
        category = await self._categories.get(job.category_id)
        if category is None or category.generation != job.generation:
            await self._engine.end(job, "superseded", error=_SUPERSEDED)
            return
        if category.adapter_generation != job.generation and not await self._tune(job, category):
            return
        await self._conclude(job, category.id)

    async def _tune(self, job: Job, category: CategoryRecord) -> bool:
        """Tune and commit. False if the job was stopped."""
        shots = await self._shots(job, category)
        if shots is None:
            return False
        if not any(shot.shows for shot in shots):  # the category was emptied meanwhile
            return True
        tuning = await self._lay_out(category, shots)
        outcome = await self._outcome(job, tuning)
        if outcome is None:
            return False
        await self._commit(job, category, tuning, outcome)
        return True

    async def _shots(self, job: Job, category: CategoryRecord) -> list[Shot] | None:
        """The examples with their photos encoded, one lane call each. None if the job was stopped."""
        model = self._models.default
        shots: list[Shot] = []
        for example_id in await self._categories.example_ids(category.id):
            example = await self._categories.example(category.id, example_id)
            if await self._engine.stopped(job):
                return None
            if example is None:  # deleted meanwhile, which supersedes this job
                continue
            photo, mask = await asyncio.to_thread(self._decode, example)
            make = partial(make_shot, model.backbone, photo, mask)
            shots.append(await model.lane.run(make, kind="tune"))
        return shots

    def _decode(self, example: Example) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
        photo = decode_photo(example.image, max_pixels=self._max_pixels)
        mask = decode_mask(example.mask, photo_hw=(example.height, example.width), max_pixels=self._max_pixels)
        return photo.rgb, mask

    async def _lay_out(self, category: CategoryRecord, shots: list[Shot]) -> CategoryTuning:
        """Initial state of tuning. The categories taught last compete with this one."""
        model = self._models.default
        latest = await self._categories.latest(COMPETING_CATEGORIES + 1)  # this category may be among them
        # A category whose name is one of this one's words is no rival: they are the same prompt.
        own = {category.id, *(CategoryName(word).id for word in category.words)}
        names = [other.name for other in latest if other.id not in own]
        others = [Query((name,)) for name in names[-COMPETING_CATEGORIES:]]
        layers = (await self._models.layers_of(model)).layers
        lay_out = partial(
            CategoryTuning,
            model.backbone,
            shots,
            category.words,
            others=Prompts.of(others, self._background, taken=category.words),
            layers=layers,
            recipe=self._recipe,
        )
        return await model.lane.run(lay_out, kind="tune")

    async def _outcome(self, job: Job, tuning: CategoryTuning) -> Outcome | None:
        """All steps and the selection, in short lane calls. None if the job was stopped."""
        steps = self._recipe.steps
        for step in range(1, steps + 1):
            pieces = tuning.step_in_pieces()
            while (loss := await self._on_lane(pieces)) is None:
                pass
            # JSON has no NaN; parameters that come of it are dropped, and the words are kept.
            if not await self._engine.step(job, step=step, steps=steps, loss=loss if isfinite(loss) else None):
                return None
        selection = select(tuning)
        while (outcome := await self._on_lane(selection)) is None:
            if await self._engine.stopped(job):
                return None
        return outcome

    async def _on_lane(self, pieces: Pieces[Value]) -> Value | None:
        """The next piece, as `advance`."""
        return await self._models.default.lane.run(partial(advance, pieces), kind="tune")

    async def _commit(self, job: Job, category: CategoryRecord, tuning: CategoryTuning, outcome: Outcome) -> None:
        """Put the outcome in use, unless the category waits for a newer generation or has this one's outcome."""
        version = await self._categories.next_version(category.id)
        finish = partial(outcome.adapter, tuning, category.name, version=version, created_at=now())
        adapter = await self._models.default.lane.run(finish, kind="tune")
        if await self._categories.commit(category.id, adapter, generation=job.generation):
            self._metrics.taught(category.name, gain=adapter.example_iou - adapter.zero_shot_example_iou)

    async def _conclude(self, job: Job, category_id: str) -> None:
        """End the job by the state of the category, since an earlier run may have committed and died."""
        category = await self._categories.get(category_id)
        if category is None or category.adapter is None or category.adapter_generation != job.generation:
            await self._engine.end(job, "superseded", error=_SUPERSEDED)
            return
        result = category.result or category.adapter
        await self._engine.end(
            job,
            "succeeded",
            adapter_version=result.version,
            example_iou=result.example_iou,
            not_learned=max(result.example_iou, result.zero_shot_example_iou) < _LEARNT_IOU,
            step=job.steps,
        )

    async def _withdraw(self, job: Job) -> bool:
        return await self._categories.withdraw(job.category_id, generation=job.generation)


def make_shot(
    backbone: Backbone, photo: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"]
) -> Shot:
    """An example on the network's input, its photo encoded once."""
    rgb, frame = backbone.preprocess(photo)
    share = mask_to_input(mask, frame, outside=IGNORE)
    return Shot.of(backbone, encode_one(backbone, rgb), share)
