"""Teaching of a category: stores or deletes an example, and queues the job that tunes on all of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from app.errors import AppError, ConflictError, FullCategoryError, NotFoundError
from app.images.masks import decode_mask
from app.images.photo import Photo
from app.masks import Mask
from app.masks.pictures import mask_to_png
from app.services.job_engine import JobEngine
from app.storage.categories import CategoryStore
from app.storage.category_records import CategoryRecord, Example, ExampleInfo, new_example
from app.storage.jobs import Job, JobStore, new_job
from app.storage.names import CategoryName

# Looks for the same example in the store, each of which another client may have made out of date.
_TRIES = 3


class _AlreadyThereError(Exception):
    """The category has had the same example since it was looked for."""


@dataclass(frozen=True)
class NewExample:
    """An example of a request.

    Attributes:
        name: Its category.
        photo: The decoded photo.
        mask: True where the photo shows the category; nowhere in an example without it.
        prompts: Other words for the category.
        replace: True to delete the category's other examples and words.
        id: Id for the job if the request may be sent again, else None. While that job has not ended, the same example
            sent again changes nothing.
        example_id: Id for the example, never used before; None for one of the store's own.
    """

    name: CategoryName
    photo: Photo
    mask: Mask
    prompts: tuple[CategoryName, ...] = ()
    replace: bool = False
    id: str | None = None
    example_id: str | None = None


@dataclass(frozen=True)
class Accepted:
    """What an example led to.

    Attributes:
        job: The job that tunes on it.
        category: Its category.
        repeated: True if the category had this photo with this mask already.
        contradicted: Ids of the category's examples that say the opposite of this photo: that it shows the category, or
            that it does not.
    """

    job: Job
    category: CategoryRecord
    repeated: bool = False
    contradicted: tuple[str, ...] = ()


class Teaching:
    """Accepts and deletes examples.

    Args:
        categories: Store of categories and examples.
        jobs: Store of job records.
        engine: Runs the jobs.
        steps: Tuning steps of a job.
    """

    def __init__(self, categories: CategoryStore, jobs: JobStore, engine: JobEngine, *, steps: int) -> None:
        self._categories = categories
        self._jobs = jobs
        self._engine = engine
        self._steps = steps

    async def accept(self, new: NewExample) -> Accepted:
        """Store an example and queue its job; of a photo and mask that the category has already, nothing is stored.

        Its job is then the category's. If that job ended without a result that is in use, or the new one brings
        words, the example takes the place of the earlier one, so that a new job runs.

        Raises:
            FullCategoryError, ConflictError: As `teach`.
        """
        accepted = await self._accept(new)
        absent = not new.mask.any()
        same_photo = await self._examples_of(new.name, new.photo)
        return replace(accepted, contradicted=tuple(info.id for info in same_photo if info.absent != absent))

    async def _accept(self, new: NewExample) -> Accepted:
        if new.replace:
            return Accepted(*await self.teach(new))
        for _ in range(_TRIES):
            earlier = await self._same_example(new)
            category = await self._categories.get(new.name.id) if earlier else None
            job = await self._jobs.get(category.job) if category and category.job else None
            if category and job and _still_holds(job, category) and not _new_words(new, category):
                return Accepted(job, category, repeated=True)
            with suppress(_AlreadyThereError):
                taught = await self.teach(new, once=True, instead=earlier)
                return Accepted(*taught, repeated=category is not None)
        # The store has it, and it can't be read: it teaches nothing, so this one is no repetition.
        return Accepted(*await self.teach(new))

    async def teach(
        self, new: NewExample, *, once: bool = False, instead: str | None = None
    ) -> tuple[Job, CategoryRecord]:
        """Store an example and queue its job, which supersedes a job on fewer examples.

        Args:
            new: The example.
            once: True to refuse a photo and mask that the category has already; see `CategoryStore.teach`.
            instead: Id of an example that it takes the place of, if that is still there.

        Raises:
            FullCategoryError: If the category has as many examples as it may.
            ConflictError: If it would have more words than it may, or the example lacks the category and no other shows
                it, or the category can't be read or is deleted at the same time.
        """
        known_job = await self._jobs.get(new.id) if new.id else None
        if known_job and not known_job.ended:
            # The same request sent again: its example is stored, its job may not have been queued.
            await self._engine.add(known_job)
            return known_job, await self._taught(new.name)
        known = await self._categories.get(new.name.id)
        name = known.name if known else new.name.text
        scheduled = await self._categories.teach(
            new.name,
            await asyncio.to_thread(_example_of, new),
            prompts=_new_words(new, known),
            replace=new.replace,
            job=new_job("tune", category=name, steps=self._steps, id=self._jobs.free(new.id, known_job)),
            once=once,
            instead=instead,
        )
        if scheduled == "known":
            raise _AlreadyThereError
        if scheduled == "full":
            raise FullCategoryError(
                f"{name} has as many examples as it may (EXEMPLAR_MAX_EXAMPLES): delete one, or send mode=replace.",
                field="image",
            )
        if scheduled == "wordy":
            raise ConflictError(
                f"{name} would have more other words than it may (EXEMPLAR_MAX_PROMPTS): send fewer, or mode=replace.",
                field="prompts",
            )
        if scheduled == "unknown":
            raise ConflictError(
                f"No example shows {name}: send a photo with its mask first, then photos without it.", field="absent"
            )
        job, superseded = scheduled
        self._engine.note_superseded(superseded)
        await self._engine.add(job)
        return job, await self._taught(new.name)

    async def forget(self, name: CategoryName, example_id: str) -> Job | None:
        """Delete an example and queue a job on those that are left; without one that shows it, it has no adapter.

        Returns:
            The new job, or None if no example that shows the category is left.

        Raises:
            NotFoundError: If there is no such category or example.
        """
        record = await self._get(name)
        new = new_job("tune", category=record.name, steps=self._steps)
        scheduled = await self._categories.forget(record.id, example_id, job=new)
        if scheduled is None:
            raise NotFoundError(
                f"{record.name} has no example {example_id!r}: see GET /categories/{{name}}/examples.", field="id"
            )
        job, superseded = scheduled
        self._engine.note_superseded(superseded)
        if job:
            await self._engine.add(job)
        return job

    async def _same_example(self, new: NewExample) -> str | None:
        """Id of the category's example with this photo and mask, or None; None for a request that is sent again."""
        job = await self._jobs.get(new.id) if new.id else None
        if job and not job.ended:
            return None
        area = int(new.mask.sum())
        alike = [info.id for info in await self._examples_of(new.name, new.photo) if info.area == area]
        for id in alike:
            example = await self._categories.example(new.name.id, id)
            if example is not None and await asyncio.to_thread(_has_mask, example, new.mask):
                return id
        return None

    async def _examples_of(self, name: CategoryName, photo: Photo) -> list[ExampleInfo]:
        """The category's examples of this photo."""
        return [info for info in await self._categories.example_infos(name.id) if info.sha256 == photo.sha256]

    async def _taught(self, name: CategoryName) -> CategoryRecord:
        """The category right after an example of it was stored."""
        try:
            return await self._get(name)
        except NotFoundError as error:
            raise ConflictError(f"{name.text} was deleted while it was taught: send the example again.") from error

    async def _get(self, name: CategoryName) -> CategoryRecord:
        record = await self._categories.get(name.id)
        if record is None:
            raise NotFoundError(f"There is no category {name.text!r}: see GET /categories.", field="name")
        return record


def _still_holds(job: Job, category: CategoryRecord) -> bool:
    """True if a category's job has not ended, or its result is in use and can be read."""
    if not job.ended:
        return True
    in_use = category.adapter is not None and category.adapter_problem is None
    return job.status == "succeeded" and in_use and category.adapter == category.result


def _example_of(new: NewExample) -> Example:
    height, width = new.mask.shape
    return new_example(
        image=new.photo.raw,
        media_type=new.photo.media_type,
        mask=mask_to_png(new.mask),
        width=width,
        height=height,
        area=int(new.mask.sum()),
        sha256=new.photo.sha256,
        id=new.example_id,
    )


def _has_mask(example: Example, mask: Mask) -> bool:
    """True if an example has this mask. Files are not compared: another Pillow may write the same mask otherwise."""
    try:
        stored = decode_mask(example.mask, photo_hw=(mask.shape[0], mask.shape[1]), max_pixels=mask.size)
    except AppError:  # damaged in the store
        return False
    return np.array_equal(stored, mask)


def _new_words(new: NewExample, known: CategoryRecord | None) -> list[str]:
    """Its words, without those that the category has already in any spelling."""
    known_words = {CategoryName(word) for word in known.words} if known and not new.replace else set()
    return [word.text for word in new.prompts if word not in known_words]
