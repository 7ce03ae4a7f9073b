"""Examples from annotations: teaches what people mark in Label Studio, replaces it and takes it away."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import numpy as np

from app.errors import AppError, ConflictError, FullCategoryError, NotFoundError
from app.masks import MalformedMaskError, Mask
from app.services.batch import patiently
from app.services.photo_reader import PhotoReader, RequestReader
from app.services.teaching import NewExample, Teaching
from app.storage.annotations import Annotation, AnnotationStore, LabelExample
from app.storage.categories import CategoryStore
from app.storage.names import CategoryName

from .config import Control, controls_of
from .photos import LabelStudioClient
from .regions import mask_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Marked:
    """An annotation that was made or changed.

    Attributes:
        id: Its id in Label Studio.
        task: Id of its task.
        data: Data of its task.
        regions: Its regions, unchecked JSON; none if the task was skipped.
        config: Label config of its project.
        updated_at: Time of the change, as Label Studio writes it.
        project: Id of its project; None in a change that an older release stored.
    """

    id: int
    task: int
    data: Mapping[str, Any]
    regions: Sequence[Any]
    config: str
    updated_at: str
    project: int | None = None


class Annotations:
    """Keeps the examples of annotations as the annotations are.

    There is one example for each label of an annotation: the union of its regions of that label.

    Args:
        store: Which examples were made of which annotation.
        categories: Store of categories and examples.
        teaching: Accepts and deletes examples.
        client: Reads photos.
        photos: Decodes photos.
    """

    def __init__(
        self,
        store: AnnotationStore,
        categories: CategoryStore,
        teaching: Teaching,
        client: LabelStudioClient,
        photos: PhotoReader,
    ) -> None:
        self._store = store
        self._categories = categories
        self._teaching = teaching
        self._client = client
        self._photos = photos

    async def learn(self, marked: Marked) -> None:
        """Teach an annotation's labels; what it taught before and does not show any more is deleted.

        A label whose category has as many examples as it may is left out. So is one whose category can't be taught for
        another reason, and what was taught of it before stays.

        Raises:
            AppError: If its photo or config can't be read.
        """
        known = await self._store.get(marked.id)
        if known and _is_earlier(marked.updated_at, known.updated_at):
            return  # overtaken by a later change

        async def once() -> None:
            with self._photos.request() as reader:
                await self._replace(marked, known, await self._new_examples(marked, reader))

        await patiently(once)

    async def forget(self, id: int) -> None:
        """Delete the examples of an annotation."""
        known = await self._store.get(id)
        for example in known.examples if known else ():
            await self._forget(example)
        await self._store.delete(id)

    async def forget_tasks(self, tasks: Collection[int]) -> None:
        """Delete the examples of the annotations of some tasks."""
        for id in await self._store.of_tasks(tasks):
            await self.forget(id)

    async def of_project(self, project: int) -> list[int]:
        """Ids of the annotations of a project that taught something."""
        return await self._store.of_project(project)

    async def _new_examples(self, marked: Marked, reader: RequestReader) -> list[NewExample]:
        """One example for each label that marks something, of each photo of the task."""
        by_address: dict[str, list[tuple[Control, Mapping[str, Any]]]] = {}
        controls = {control.name: control for control in controls_of(marked.config)}
        for region in marked.regions:
            control = controls.get(str(region.get("from_name"))) if isinstance(region, Mapping) else None
            address = control.address(marked.data) if control else None
            if control and address:
                by_address.setdefault(address, []).append((control, region))
        new_examples = []
        for address, regions in by_address.items():
            photo = await reader.photo(await self._client.photo(address))
            for name, mask in (await asyncio.to_thread(_masks, regions, photo.rgb.shape[:2])).items():
                new_examples.append(NewExample(name, photo, mask, example_id=uuid4().hex))
        return new_examples

    async def _replace(self, marked: Marked, known: Annotation | None, new_examples: Sequence[NewExample]) -> None:
        before = known.examples if known else ()
        contents = await asyncio.to_thread(lambda: [_content(new_example) for new_example in new_examples])
        there = [example for example in before if example.content in contents and await self._exists(example)]
        taught = {example.content for example in there}
        new = [
            (new_example, LabelExample(new_example.name.text, new_example.example_id or "", content))
            for new_example, content in zip(new_examples, contents, strict=True)
            if content not in taught
        ]
        # First all that there will be at any time: an end of this process in between leaves nothing without a trace.
        both = (*before, *(example for _, example in new))
        await self._store.put(marked.id, Annotation(marked.task, marked.updated_at, both, marked.project))
        gone = [example for example in before if example not in there]
        stored = []
        for new_example, example in new:
            earlier = [one for one in gone if CategoryName(one.category) == new_example.name]
            try:
                await self._teach(new_example, earlier)
                stored.append(example)
            except ConflictError as error:
                _log.warning("the label %s of an annotation is not taught: %s", new_example.name.text, error)
                if not isinstance(error, FullCategoryError):
                    # Nothing replaces the earlier ones, and the new one may have been stored before the error.
                    gone = [one for one in gone if one not in earlier]
                    there += [*earlier, example]
        for example in gone:
            await self._forget(example)
        after = (*there, *stored)
        await self._store.put(marked.id, Annotation(marked.task, marked.updated_at, after, marked.project))

    async def _teach(self, new_example: NewExample, earlier: Sequence[LabelExample]) -> None:
        """Teach an example; where there is no room for both, what it replaces is deleted first.

        Raises:
            FullCategoryError, ConflictError: As `Teaching.teach`.
        """
        try:
            await self._teaching.teach(new_example)
        except FullCategoryError:
            if not earlier:
                raise
            for example in earlier:
                await self._forget(example)
            await self._teaching.teach(new_example)

    async def _exists(self, example: LabelExample) -> bool:
        """False if somebody deleted it elsewhere."""
        infos = await self._categories.example_infos(CategoryName(example.category).id)
        return example.id in {info.id for info in infos}

    async def _forget(self, example: LabelExample) -> None:
        try:
            await self._teaching.forget(CategoryName(example.category), example.id)
        except NotFoundError:
            _log.info("an example of %s is deleted already", example.category)


def marked_of(task: Mapping[str, Any], config: str, project: int) -> list[Marked]:
    """The annotations of a task with its annotations, as Label Studio's API gives it."""
    found = []
    for annotation in task.get("annotations") or ():
        skipped = annotation.get("was_cancelled", False)
        found.append(
            Marked(
                id=int(annotation["id"]),
                task=int(task["id"]),
                data=task.get("data") or {},
                regions=() if skipped else annotation.get("result") or (),
                config=config,
                updated_at=str(annotation.get("updated_at", "")),
                project=project,
            )
        )
    return found


def _is_earlier(time: str, other: str) -> bool:
    """True if a time of Label Studio is before another one; it leaves out a fraction of zero."""
    try:
        return datetime.fromisoformat(time) < datetime.fromisoformat(other)
    except (ValueError, TypeError):  # no time at all, or one without its zone beside one with it
        return time < other


def _masks(regions: Sequence[tuple[Control, Mapping[str, Any]]], photo_hw: tuple[int, int]) -> dict[CategoryName, Mask]:
    """The union of the regions of each label, without those that mark nothing or all of the photo, which is logged."""
    masks: dict[CategoryName, Mask] = {}
    for control, region in regions:
        try:
            mask = mask_of(region, control.kind, photo_hw)
        except (MalformedMaskError, AppError) as error:
            _log.warning("a region of Label Studio is left out: %s", error)
            continue
        texts = region["value"].get(control.kind)
        for label in control.labels:
            if isinstance(texts, list) and label.text in texts:
                masks[label.name] = masks.get(label.name, np.zeros(photo_hw, bool)) | mask
    for name, mask in list(masks.items()):
        if not mask.any() or mask.all():
            marked = "all of the photo" if mask.any() else "nothing"
            _log.warning("the regions of the label %s are no example: they mark %s", name.text, marked)
            del masks[name]
    return masks


def _content(new_example: NewExample) -> str:
    parts = (new_example.name.id.encode(), new_example.photo.sha256.encode(), np.packbits(new_example.mask).tobytes())
    return hashlib.sha256(b"\n".join(parts)).hexdigest()
