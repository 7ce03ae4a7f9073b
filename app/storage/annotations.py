"""Store of which examples were made of which Label Studio annotation, so that they can be replaced and deleted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from . import keys
from .records import json_value, validated, wrong_type
from .replies import as_bytes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelExample:
    """An example made of the regions of one label.

    Attributes:
        category: Name of its category.
        id: Its id.
        content: Hash of its category, photo and mask.
    """

    category: str
    id: str
    content: str


@dataclass(frozen=True)
class Annotation:
    """What was made of an annotation.

    Attributes:
        task: Id of its task.
        updated_at: Time of its last change, as Label Studio writes it.
        examples: The examples made of it.
        project: Id of its project; None in a record that an older release stored.
    """

    task: int
    updated_at: str
    examples: tuple[LabelExample, ...]
    project: int | None = None


_ANNOTATION = TypeAdapter(Annotation)


class AnnotationStore:
    """Annotations in Redis, by their id in Label Studio.

    Args:
        redis: Client that returns bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, id: int) -> Annotation | None:
        """What was made of an annotation, or None. A record that can't be read counts as none."""
        try:
            raw = await self._redis.hget(keys.ANNOTATIONS, str(id))
        except ResponseError as error:
            await self._drop(error)
            return None
        return _read(raw) if raw is not None else None

    async def put(self, id: int, annotation: Annotation) -> None:
        """Store what was made of an annotation; nothing is kept of one without examples."""
        if annotation.examples:
            await self._redis.hset(keys.ANNOTATIONS, str(id), json.dumps(asdict(annotation)))
        else:
            await self.delete(id)

    async def delete(self, id: int) -> None:
        """Delete what is stored of an annotation."""
        await self._redis.hdel(keys.ANNOTATIONS, str(id))

    async def of_tasks(self, tasks: Collection[int]) -> list[int]:
        """Ids of the annotations of some tasks."""
        return await self._ids(lambda annotation: annotation.task in tasks)

    async def of_project(self, project: int) -> list[int]:
        """Ids of a project's annotations, without those that an older release stored."""
        return await self._ids(lambda annotation: annotation.project == project)

    async def _ids(self, condition: Callable[[Annotation], bool]) -> list[int]:
        found = []
        try:
            async for id, raw in self._redis.hscan_iter(keys.ANNOTATIONS):
                annotation = _read(raw)
                if annotation and condition(annotation):
                    found.append(int(id))
        except ResponseError as error:
            await self._drop(error)
        return found

    async def _drop(self, error: ResponseError) -> None:
        """Delete what another type of key holds, so that annotations can be stored again; raise any other error."""
        if not wrong_type(error):
            raise error
        _log.error("what was made of annotations is no hash and is deleted: who else writes to the store?")
        await self._redis.delete(keys.ANNOTATIONS)


def _read(raw: object) -> Annotation | None:
    try:
        return validated(_ANNOTATION, json_value("annotation", as_bytes(raw)))
    except ValueError as error:
        _log.warning("what was made of an annotation can't be read (%s)", error)
        return None
