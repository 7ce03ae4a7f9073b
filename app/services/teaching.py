"""Teach a category from an example: store it, and start the job that tunes an adapter on all of its examples."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.errors import ConflictError, NotFoundError
from app.images.masks import decode_mask
from app.images.photo import Photo, decode_photo
from app.masks.pictures import mask_to_png
from app.method.backbone import Backbone
from app.method.frame import mask_to_input
from app.method.pipeline import encode_one
from app.method.prompts import Prompts, Query
from app.method.selection import Outcome, advance, select
from app.method.shot import IGNORE, Shot
from app.method.tuning import COMPETING_CATEGORIES, CategoryTuning, Recipe
from app.metrics import Metrics
from app.services.job_engine import JobEngine
from app.services.models import Models
from app.storage.categories import CategoryRecord, CategoryStore, Example, new_example
from app.storage.jobs import Job, JobStore, new_job, now
from app.storage.names import CategoryName

_NOT_WANTED = "The category was taught anew or deleted."


@dataclass(frozen=True)
class Lesson:
    """An example as it comes in: a photo, the mask on it, and how it joins what is there.

    Attributes:
        id: Of the job, where the lesson may be a repeated one: while that job hasn't ended the lesson is given only
            once.
    """

    name: CategoryName
    photo: Photo
    mask: np.ndarray
    prompts: tuple[CategoryName, ...] = ()
    replace: bool = False
    id: str | None = None


class Teaching:
    """The service's second verb.

    Args:
        models: The loaded backbones; categories are tuned on the default.
        metrics: Where the gain of each example over the words is recorded.
        categories: Where categories and examples are.
        jobs: Where job records are.
        engine: Runs the jobs.
        recipe: How a category is tuned.
        background: Background words.
        max_pixels: Largest photo.
    """

    def __init__(
        self,
        models: Models,
        categories: CategoryStore,
        jobs: JobStore,
        engine: JobEngine,
        *,
        recipe: Recipe,
        background: tuple[str, ...],
        max_pixels: int,
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._models = models
        self._categories = categories
        self._jobs = jobs
        self._engine = engine
        self._recipe = recipe
        self._background = background
        self._max_pixels = max_pixels
        engine.register("tune", self.tune, withdraw=self._withdraw)

    async def teach(self, lesson: Lesson) -> tuple[Job, CategoryRecord]:
        """Store an example and queue its job; a job that still works on fewer examples is superseded.

        Raises:
            ConflictError: If the category has as many examples as it may.
        """
        known_job = await self._jobs.get(lesson.id) if lesson.id else None
        if known_job and not known_job.ended:
            # The same request sent again: its example is stored, its job may not have been queued.
            await self._engine.add(known_job)
            return known_job, await self._get(lesson.name)
        known = await self._categories.get(lesson.name.id)
        name = known.name if known else lesson.name.text
        scheduled = await self._categories.teach(
            lesson.name,
            await asyncio.to_thread(_example_of, lesson),
            prompts=_new_words(lesson, known),
            replace=lesson.replace,
            job=new_job("tune", category=name, steps=self._recipe.steps, id=None if known_job else lesson.id),
        )
        if scheduled is None:
            raise ConflictError(
                f"{name} has as many examples as it may (EXEMPLAR_MAX_EXAMPLES): delete one, or send mode=replace.",
                field="image",
            )
        job, superseded = scheduled
        self._engine.note_superseded(superseded)
        await self._engine.add(job)
        return job, await self._get(lesson.name)

    async def forget(self, name: CategoryName, example_id: str) -> Job | None:
        """Take an example away and tune on those that are left; without any the category has no adapter.

        Returns:
            The new job, or None if no example is left.

        Raises:
            NotFoundError: If there is no such category or example.
        """
        record = await self._get(name)
        job = new_job("tune", category=record.name, steps=self._recipe.steps)
        scheduled = await self._categories.forget(record.id, example_id, job=job)
        if scheduled is None:
            raise NotFoundError(
                f"{record.name} has no example {example_id!r}: see GET /categories/{{name}}/examples.", field="id"
            )
        next_job, superseded = scheduled
        self._engine.note_superseded(superseded)
        if next_job:
            await self._engine.add(next_job)
        return next_job

    async def tune(self, job: Job) -> None:
        """The job: idempotent per generation, stops between steps when it isn't wanted any more."""
        category = await self._categories.get(job.category_id)
        if category is None or category.generation != job.generation:
            await self._engine.end(job, "superseded", error=_NOT_WANTED)
            return
        if category.adapter_generation != job.generation:
            shots = await self._shots(job, category)
            if shots is None:
                return
            if shots:  # else the category was emptied just now
                tuning = await self._lay_out(category, shots)
                outcome = await self._run(job, tuning)
                if outcome is None:
                    return
                await self._commit(job, category, tuning, outcome)
        await self._conclude(job, category.id)

    async def _run(self, job: Job, tuning: CategoryTuning) -> Outcome | None:
        """All steps and the selection, piece by piece on the lane. None if the job isn't wanted any more."""
        lane, steps = self._models.default.lane, self._recipe.steps
        for step in range(1, steps + 1):
            loss = await lane.run(tuning.step, kind="tune")
            if not await self._engine.step(job, step=step, steps=steps, loss=loss):
                return None
        selection = select(tuning)
        while (outcome := await lane.run(partial(advance, selection), kind="tune")) is None:
            if await self._engine.stopped(job):
                return None
        return outcome

    async def _commit(self, job: Job, category: CategoryRecord, tuning: CategoryTuning, outcome: Outcome) -> None:
        """Put the outcome in use, unless the category waits for a newer one by now or has this one already."""
        model = self._models.default
        version = await self._categories.next_version(category.id)
        finish = partial(outcome.adapter, tuning, category.name, version=version, created_at=now())
        adapter = await model.lane.run(finish, kind="tune")
        if await self._categories.commit(category.id, adapter, generation=job.generation):
            self._metrics.taught(category.name, gain=adapter.example_iou - adapter.zero_shot_example_iou)

    async def _conclude(self, job: Job, category_id: str) -> None:
        """End the job by what the category says: this run may have committed, or one before it that died then."""
        category = await self._categories.get(category_id)
        if category is None or category.adapter is None or category.adapter_generation != job.generation:
            await self._engine.end(job, "superseded", error=_NOT_WANTED)
            return
        result = category.result or category.adapter
        await self._engine.end(
            job,
            "succeeded",
            adapter_version=result.version,
            example_iou=result.example_iou,
            step=job.steps,
        )

    async def _shots(self, job: Job, category: CategoryRecord) -> list[Shot] | None:
        """Encode the examples; one call on the lane for each. None if the job isn't wanted any more."""
        model = self._models.default
        shots: list[Shot] = []
        for example_id in await self._categories.example_ids(category.id):
            example = await self._categories.example(category.id, example_id)
            if await self._engine.stopped(job):
                return None
            if example is None:  # taken away just now, so that this job is superseded
                continue
            photo, mask = await asyncio.to_thread(self._decode, example)
            make = partial(make_shot, model.backbone, photo, mask)
            shots.append(await model.lane.run(make, kind="tune"))
        return shots

    async def _lay_out(self, category: CategoryRecord, shots: list[Shot]) -> CategoryTuning:
        model = self._models.default
        latest = await self._categories.latest(COMPETING_CATEGORIES + 1)  # it may be one of them itself
        names = [other.name for other in latest if other.id != category.id]
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

    def _decode(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        photo = decode_photo(example.image, max_pixels=self._max_pixels)
        mask = decode_mask(example.mask, photo_hw=(example.height, example.width), max_pixels=self._max_pixels)
        return photo.rgb, mask

    async def _withdraw(self, job: Job) -> bool:
        return await self._categories.withdraw(job.category_id, generation=job.generation)

    async def _get(self, name: CategoryName) -> CategoryRecord:
        record = await self._categories.get(name.id)
        if record is None:
            raise NotFoundError(f"There is no category {name.text!r}: see GET /categories.", field="name")
        return record


def _example_of(lesson: Lesson) -> Example:
    height, width = lesson.mask.shape
    return new_example(
        image=lesson.photo.raw,
        media_type=lesson.photo.media_type,
        mask=mask_to_png(lesson.mask),
        width=width,
        height=height,
        area=int(lesson.mask.sum()),
        sha256=lesson.photo.sha256,
    )


def _new_words(lesson: Lesson, known: CategoryRecord | None) -> list[str]:
    """The lesson's words, without those that the category has already in any spelling."""
    known_words = {CategoryName(word) for word in known.words} if known and not lesson.replace else set()
    return [word.text for word in lesson.prompts if word not in known_words]


def make_shot(backbone: Backbone, photo: np.ndarray, mask: np.ndarray) -> Shot:
    """An example on the network's input, its image encoded once."""
    rgb, frame = backbone.preprocess(photo)
    share = mask_to_input(mask, frame, outside=IGNORE)
    return Shot.of(backbone, encode_one(backbone, rgb), share)
