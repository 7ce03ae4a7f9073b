"""Changes of annotations, which wait in the store until they are learnt."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.errors import AppError, OverloadedError, UnavailableError
from app.services.renewal import renewing
from app.storage.annotation_changes import AnnotationChanges
from app.storage.connection import StoreError, is_outage
from app.storage.records import json_value, validated

from .annotations import Annotations, Marked, marked_of
from .photos import LabelStudioClient

# Changes of other processes are looked for so often.
_LOOK_S = 2.0
# After the death of the process that makes the changes, another one goes on after this time.
_LOCK_S = 12.0

_TRIES = 4
# Longest pause between them, whatever the error asks for: all other changes wait meanwhile.
_MAX_PAUSE_S = 60.0

_PAGE_SIZE = 50

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learn:
    """An annotation is to be learnt."""

    marked: Marked
    kind: Literal["learn"] = "learn"


@dataclass(frozen=True)
class Forget:
    """The examples of an annotation are to be deleted."""

    annotation: int
    kind: Literal["forget"] = "forget"


@dataclass(frozen=True)
class ForgetTasks:
    """The examples of the annotations of some tasks are to be deleted."""

    tasks: tuple[int, ...]
    kind: Literal["forget-tasks"] = "forget-tasks"


@dataclass(frozen=True)
class ForgetTask:
    """The examples of a task's annotations are to be deleted, as older releases wrote it."""

    task: int
    kind: Literal["forget-task"] = "forget-task"


@dataclass(frozen=True)
class LearnProject:
    """All annotations of a project are to be learnt, under its label config, and those that are gone forgotten."""

    project: int
    config: str
    kind: Literal["learn-project"] = "learn-project"


Change = Learn | Forget | ForgetTasks | ForgetTask | LearnProject

_CHANGES: TypeAdapter[list[Change]] = TypeAdapter(list[Annotated[Change, Field(discriminator="kind")]])


class Changes:
    """Makes changes one after another, in the order in which they came, whichever process was told of them.

    Args:
        pending: Those that wait. Those that came together are one entry.
        annotations: Keeps examples as annotations are.
        client: Reads the tasks of a project.
    """

    def __init__(self, pending: AnnotationChanges, annotations: Annotations, client: LabelStudioClient) -> None:
        self._pending = pending
        self._annotations = annotations
        self._client = client
        self._told = asyncio.Event()

    async def add(self, changes: Sequence[Change]) -> None:
        """Have changes made in the background. They outlive this process.

        Raises:
            OverloadedError: If too many wait; then none of these is made.
        """
        if not changes:
            return
        # Regions of a brush are lists of up to a million numbers.
        raw = await asyncio.to_thread(lambda: json.dumps([asdict(change) for change in changes]).encode())
        if not await self._pending.add(raw):
            raise OverloadedError("Too many annotations wait to be learnt: send this one again later.")
        self._told.set()

    async def work(self) -> None:
        """Make the changes, for ever."""
        away = False
        while True:
            try:
                await self._make_all()
                away = False
            except StoreError as error:
                if not away:  # one line for each outage
                    _log.warning("annotations wait to be learnt: %s", error)
                away = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _LOOK_S)
            self._told.clear()

    async def _make_all(self) -> None:
        if await self._pending.first() is None:
            return
        async with self._lock() as owned:
            while (raw := await self._pending.first()) is not None:
                # After an outage or the death of this process, all are made again, which changes nothing.
                for change in _read(raw):
                    # Who slept too long has lost it, and an old change must not follow a newer one of another process.
                    if not await owned():
                        return
                    await self._make(change)
                await self._pending.remove(raw)

    @asynccontextmanager
    async def _lock(self) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        """Held while this process makes the changes, unless another one does; tells if it is."""
        lock = self._pending.lock(seconds=_LOCK_S)
        if not await lock.acquire(blocking=False):
            yield lock.owned
            return
        async with renewing(lock.reacquire, every_s=_LOCK_S / 4):
            try:
                yield lock.owned
            finally:
                with suppress(StoreError):  # it expires
                    await lock.release()

    async def _make(self, change: Change) -> None:
        try:
            await self._tried(self._action(change))
        except Exception as error:
            if is_outage(error):  # its entry stays the first, and is made once the store is back
                raise
            # A bug: with this change left in front, no other would ever be made.
            _log.exception("an annotation is not learnt")

    def _action(self, change: Change) -> Callable[[], Awaitable[None]]:
        match change:
            case Learn(marked):
                return partial(self._annotations.learn, marked)
            case Forget(annotation):
                return partial(self._annotations.forget, annotation)
            case ForgetTasks(tasks):
                return partial(self._annotations.forget_tasks, tasks)
            case ForgetTask(task):
                return partial(self._annotations.forget_tasks, (task,))
            case LearnProject(project, config):
                return partial(self._learn_project, project, config)

    async def _tried(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do it, again after the pause that the error asks for if Label Studio or a photo's host does not answer."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return await action()
            except UnavailableError as error:
                _log.warning("an annotation waits to be learnt: %s", error)
                if tries_left:
                    await asyncio.sleep(min(error.retry_after_s or 0, _MAX_PAUSE_S))
            except AppError as error:
                _log.warning("an annotation is not learnt: %s", error)
                return None
        _log.error("an annotation is not learnt; start the training in Label Studio to learn it")
        return None

    async def _learn_project(self, project: int, config: str) -> None:
        there = set()
        async for task in self._tasks(project):
            for marked in marked_of(task, config, project):
                there.add(marked.id)
                await self._tried(partial(self._annotations.learn, marked))
        for id in await self._annotations.of_project(project):
            # Where tasks are deleted while the pages are read, others move to a page that was read before.
            if id not in there and not await self._client.has_annotation(id):
                await self._annotations.forget(id)

    async def _tasks(self, project: int) -> AsyncIterator[Mapping[str, Any]]:
        for page in count(1):
            tasks = await self._client.tasks(project, page=page, page_size=_PAGE_SIZE)
            for task in tasks:
                yield task
            if len(tasks) < _PAGE_SIZE:
                return


def _read(raw: bytes) -> list[Change]:
    """The changes of an entry; older releases made an entry of each change."""
    try:
        value = json_value("change", raw)
        return validated(_CHANGES, value if isinstance(value, list) else [value])
    except ValueError as error:
        _log.error("a change of an annotation can't be read and is dropped: %s", error)
        return []
