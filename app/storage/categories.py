"""Store of categories, their examples and their adapter versions. A version never changes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from uuid import uuid4

from redis.asyncio import Redis

from app.method.adapter import Adapter

from . import keys
from .adapter_file import adapter_from_bytes, adapter_to_bytes
from .jobs import Job, final_fields, job_argument, now
from .lua import script
from .names import CategoryName
from .replies import as_bytes, as_fields, as_texts

# Why an example was not added.
Refusal = Literal["full", "unknown"]


@dataclass(frozen=True)
class AdapterInfo:
    """Description of an adapter. The HTTP API returns the same fields under the same names."""

    version: int
    backbone: str
    layers: tuple[int, ...]
    ensemble: tuple[float, ...]
    example_iou: float
    zero_shot_example_iou: float
    bytes: int
    created_at: str


@dataclass(frozen=True)
class CategoryRecord:
    """Stored state of a category.

    Attributes:
        id: Id of its name.
        name: Its name as first given.
        prompts: Other words for it, without the name.
        examples: Number of examples.
        generation: Number that every change of the examples increases; a job's result is valid for one generation.
        job: Id of the job whose result it waits for, or of the last one; None if it has no job.
        adapter: Version in use, or None.
        adapter_generation: Generation of the adapter committed last. After a rollback another adapter is in use.
        result: Adapter committed last, or None if that version was deleted.
        created_at: Time of its first example or import.
    """

    id: str
    name: str
    prompts: tuple[str, ...]
    examples: int
    generation: int
    job: str | None
    adapter: AdapterInfo | None
    adapter_generation: int | None
    result: AdapterInfo | None
    created_at: str

    @property
    def words(self) -> tuple[str, ...]:
        """Its name and the other words for it."""
        return (self.name, *self.prompts)


@dataclass(frozen=True)
class ExampleInfo:
    """Description of an example. Width, height and area are in pixels after EXIF rotation.

    The mask of an example without the category is empty: its area is 0.
    """

    id: str
    media_type: str
    width: int
    height: int
    area: int
    sha256: str
    created_at: str

    @property
    def absent(self) -> bool:
        """True for a photo without the category."""
        return not self.area


@dataclass(frozen=True)
class Example(ExampleInfo):
    """An example with its files: the photo as sent, and the mask as a PNG of the photo's size."""

    image: bytes = field(repr=False)
    mask: bytes = field(repr=False)


_INFO_FIELDS = tuple(name for name in ExampleInfo.__dataclass_fields__ if name != "id")


class CategoryStore:
    """Categories in Redis.

    Args:
        redis: Client that returns bytes.
        versions_kept: Adapter versions kept per category.
        max_examples: Largest number of examples of a category.
        job_ttl_s: Seconds that a superseded job can be read.
    """

    def __init__(self, redis: Redis, *, versions_kept: int, max_examples: int, job_ttl_s: float) -> None:
        self._redis = redis
        self._versions_kept = versions_kept
        self._max_examples = max_examples
        self._job_ttl_s = int(job_ttl_s)
        self._teach_example = script(redis, "teach_example", needs=("job", "examples"))
        self._forget_example = script(redis, "forget_example", needs=("job", "examples"))
        self._delete_category = script(redis, "delete_category", needs=("job",))
        self._commit_adapter = script(redis, "commit_adapter", needs=("use_adapter",))
        self._adopt_adapter = script(redis, "adopt_adapter", needs=("job", "use_adapter"))
        self._withdraw_generation = script(redis, "withdraw_generation")
        self._roll_back = script(redis, "roll_back")

    async def get(self, category_id: str) -> CategoryRecord | None:
        """The category, or None."""
        return (await self.get_many([category_id]))[0]

    async def all(self) -> list[CategoryRecord]:
        """All categories, the oldest first."""
        return await self._between(0, -1)

    async def latest(self, count: int) -> list[CategoryRecord]:
        """At most `count` of the newest categories, the oldest of them first."""
        return await self._between(-count, -1) if count else []

    async def count(self) -> int:
        """Number of categories."""
        return int(await self._redis.zcard(keys.CATEGORIES))

    async def _between(self, first: int, last: int) -> list[CategoryRecord]:
        ids = as_texts(await self._redis.zrange(keys.CATEGORIES, first, last))
        return [record for record in await self.get_many(ids) if record is not None]

    async def get_many(self, category_ids: Sequence[str]) -> list[CategoryRecord | None]:
        """Categories by id, in one round trip; None for an unknown id."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for category_id in category_ids:
                pipe.hgetall(keys.category(category_id))
                pipe.llen(keys.example_ids(category_id))
                pipe.hgetall(keys.versions(category_id))
            answers = await pipe.execute()
        triples = zip(answers[::3], answers[1::3], answers[2::3], strict=True)
        return [
            _category(category_id, fields, examples, versions) if fields else None
            for category_id, (fields, examples, versions) in zip(category_ids, triples, strict=True)
        ]

    async def teach(
        self, name: CategoryName, example: Example, *, prompts: Sequence[str], replace: bool, job: Job
    ) -> tuple[Job, str | None] | Refusal:
        """Add an example and record the job that tunes on all examples, which supersedes the one before.

        Args:
            name: Of the category, made if it is new.
            example: With an id that was never used.
            prompts: Other words for the category.
            replace: True to delete its other examples and words.
            job: Made by `new_job`; if it is recorded already, nothing is changed.

        Returns:
            The job with its generation, and the id of the job that it superseded, if any. `full` if the category has
            as many examples as it may; `unknown` if the example lacks the category and no other shows it.
        """
        category_id = name.id
        lesson = {
            "category_id": category_id,
            "name": name.text,
            "prompts": list(prompts),
            "created_at": now(),
            "time": time.time(),
            "example_id": example.id,
            "example_prefix": keys.example_prefix(category_id),
            "absent": example.absent,
            "replace": replace,
            "max_examples": self._max_examples,
            "job": job_argument(job),
            "superseded": self._superseded("A newer example came in."),
        }
        reply = await self._teach_example(
            keys=[
                keys.category(category_id),
                keys.counters(category_id),
                keys.example_ids(category_id),
                keys.example(category_id, example.id),
                keys.CATEGORIES,
                keys.job(job.id),
                keys.JOBS,
            ],
            args=[json.dumps(lesson), *_flat(example)],
        )
        if not isinstance(reply, list):
            refusal: Refusal = as_bytes(reply).decode()  # type: ignore[assignment]  # the script knows these two
            return refusal
        generation, superseded = reply
        return dataclasses.replace(job, generation=generation), _id(superseded)

    async def forget(self, category_id: str, example_id: str, *, job: Job) -> tuple[Job | None, str | None] | None:
        """Delete an example and, if others that show the category are left, record the job that tunes on them.

        Returns:
            The job with its generation, or None if no such example is left, and the id of the job that was superseded,
            if any. None if there is no such example.
        """
        removal = {
            "example_id": example_id,
            "example_prefix": keys.example_prefix(category_id),
            "job": job_argument(job),
            "superseded": self._superseded("An example was deleted."),
        }
        reply = await self._forget_example(
            keys=[
                keys.category(category_id),
                keys.counters(category_id),
                keys.example_ids(category_id),
                keys.example(category_id, example_id),
                keys.job(job.id),
                keys.JOBS,
            ],
            args=[json.dumps(removal)],
        )
        if reply is None:
            return None
        left, generation, superseded = reply
        return dataclasses.replace(job, generation=generation) if left else None, _id(superseded)

    async def delete(self, category_id: str) -> str | None:
        """Delete a category with its examples and versions; no version number is used again.

        Returns:
            Id of the job that was superseded.
        """
        category = {
            "category_id": category_id,
            "example_prefix": keys.example_prefix(category_id),
            "adapter_prefix": keys.adapter_prefix(category_id),
            "superseded": self._superseded("The category was deleted."),
        }
        superseded = await self._delete_category(
            keys=[
                keys.category(category_id),
                keys.example_ids(category_id),
                keys.versions(category_id),
                keys.CATEGORIES,
            ],
            args=[json.dumps(category)],
        )
        return _id(superseded)

    async def example_ids(self, category_id: str) -> list[str]:
        """Ids of a category's examples, in the order in which they were added."""
        return as_texts(await self._redis.lrange(keys.example_ids(category_id), 0, -1))

    async def example(self, category_id: str, example_id: str) -> Example | None:
        """One example, or None."""
        fields = as_fields(await self._redis.hgetall(keys.example(category_id, example_id)))
        if not fields:
            return None
        info = _example_info(example_id, [fields[name.encode()] for name in _INFO_FIELDS])
        return Example(**asdict(info), image=fields[b"image"], mask=fields[b"mask"])

    async def example_infos(self, category_id: str) -> list[ExampleInfo]:
        """Descriptions of a category's examples. The files are not read: those of one category may take a gigabyte."""
        ids = await self.example_ids(category_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            for example_id in ids:
                pipe.hmget(keys.example(category_id, example_id), _INFO_FIELDS)
            answers = await pipe.execute()
        return [_example_info(id_, values) for id_, values in zip(ids, answers, strict=True) if None not in values]

    async def next_version(self, category_id: str) -> int:
        """A version number that this name has never used."""
        return int(await self._redis.hincrby(keys.counters(category_id), "version", 1))

    async def commit(self, category_id: str, adapter: Adapter, *, generation: int) -> bool:
        """Put an adapter in use if the category still waits for this generation. False if it does not."""
        committed = await self._commit_adapter(
            keys=_adapter_keys(category_id, adapter),
            args=[*await asyncio.to_thread(self._adapter_args, category_id, adapter), generation],
        )
        return bool(committed)

    async def withdraw(self, category_id: str, *, generation: int) -> bool:
        """Refuse a generation's adapter from now on. False if it is in use, or the category waits for another one."""
        withdrawn = await self._withdraw_generation(
            keys=[keys.category(category_id), keys.counters(category_id)], args=[generation]
        )
        return bool(withdrawn)

    async def adopt(self, name: CategoryName, adapter: Adapter, *, prompts: Sequence[str]) -> str | None:
        """Put an adapter in use that comes from elsewhere, in a category that is made if it is new.

        Returns:
            Id of the job that was superseded.
        """
        category_id = name.id
        category = {
            "category_id": category_id,
            "name": name.text,
            "prompts": json.dumps(list(prompts), ensure_ascii=False),
            "created_at": now(),
            "time": time.time(),
            "superseded": self._superseded("An adapter was imported."),
        }
        superseded = await self._adopt_adapter(
            keys=[*_adapter_keys(category_id, adapter), keys.counters(category_id), keys.CATEGORIES],
            args=[*await asyncio.to_thread(self._adapter_args, category_id, adapter), json.dumps(category)],
        )
        return _id(superseded)

    def _superseded(self, error: str) -> dict[str, Any]:
        """Argument of `supersede_job` in Lua."""
        return {
            "job_prefix": keys.JOB_PREFIX,
            "channel_prefix": keys.JOB_CHANNEL_PREFIX,
            "fields": final_fields("superseded", error=error),
            "ttl_s": self._job_ttl_s,
        }

    def _adapter_args(self, category_id: str, adapter: Adapter) -> tuple[int, str, bytes, int, str]:
        """First arguments of a script that uses `use_adapter`; call it in a thread, an adapter may be tens of MiB."""
        raw = adapter_to_bytes(adapter)
        info = json.dumps(asdict(_info(adapter, len(raw))))
        return adapter.version, info, raw, self._versions_kept, keys.adapter_prefix(category_id)

    async def adapter_bytes(self, category_id: str, version: int) -> bytes | None:
        """File of an adapter, or None."""
        raw = await self._redis.get(keys.adapter(category_id, version))
        return as_bytes(raw) if raw is not None else None

    async def adapter(self, category_id: str, version: int) -> Adapter | None:
        """An adapter, or None."""
        raw = await self.adapter_bytes(category_id, version)
        return adapter_from_bytes(raw) if raw is not None else None

    async def versions(self, category_id: str) -> list[AdapterInfo]:
        """Versions of a category that are kept, the newest first."""
        described = as_fields(await self._redis.hgetall(keys.versions(category_id)))
        found = [_read_info(raw) for raw in described.values()]
        return sorted(found, key=lambda info: info.version, reverse=True)

    async def rollback(self, category_id: str, version: int) -> bool:
        """Use an older version again. False if it is not kept."""
        found = await self._roll_back(keys=[keys.category(category_id), keys.versions(category_id)], args=[version])
        return bool(found)


def new_example(
    *,
    image: bytes,
    media_type: str,
    mask: bytes,
    width: int,
    height: int,
    area: int,
    sha256: str,
) -> Example:
    """A new example with an id of its own."""
    return Example(uuid4().hex, media_type, width, height, area, sha256, now(), image=image, mask=mask)


def _adapter_keys(category_id: str, adapter: Adapter) -> list[str]:
    """First keys of a script that uses `use_adapter`."""
    return [keys.category(category_id), keys.versions(category_id), keys.adapter(category_id, adapter.version)]


def _id(reply: bytes) -> str | None:
    """An id that a script returned; '' stands for none."""
    return as_bytes(reply).decode() or None


def _flat(example: Example) -> list[Any]:
    fields = asdict(example)
    del fields["id"]
    return [part for item in fields.items() for part in item]


def _example_info(example_id: str, values: Sequence[bytes]) -> ExampleInfo:
    fields = dict(zip(_INFO_FIELDS, (value.decode() for value in values), strict=True))
    return ExampleInfo(
        id=example_id,
        media_type=fields["media_type"],
        width=int(fields["width"]),
        height=int(fields["height"]),
        area=int(fields["area"]),
        sha256=fields["sha256"],
        created_at=fields["created_at"],
    )


def _category(
    category_id: str, fields: Mapping[bytes, bytes], examples: int, versions: Mapping[bytes, bytes]
) -> CategoryRecord:
    adapter, result = (versions.get(fields.get(name, b"")) for name in (b"adapter_version", b"result_version"))
    return CategoryRecord(
        id=category_id,
        name=fields[b"name"].decode(),
        prompts=tuple(json.loads(fields.get(b"prompts", b"[]"))),
        examples=examples,
        generation=int(fields.get(b"generation", 0)),
        job=fields[b"job"].decode() if b"job" in fields else None,
        adapter=_read_info(adapter) if adapter else None,
        adapter_generation=int(fields[b"adapter_generation"]) if b"adapter_generation" in fields else None,
        result=_read_info(result) if result else None,
        created_at=fields[b"created_at"].decode(),
    )


def _info(adapter: Adapter, size: int) -> AdapterInfo:
    return AdapterInfo(
        version=adapter.version,
        backbone=adapter.backbone,
        layers=adapter.layers,
        ensemble=adapter.ensemble,
        example_iou=adapter.example_iou,
        zero_shot_example_iou=adapter.zero_shot_example_iou,
        bytes=size,
        created_at=adapter.created_at,
    )


def _read_info(raw: bytes) -> AdapterInfo:
    fields = json.loads(raw)
    return AdapterInfo(**{**fields, "layers": tuple(fields["layers"]), "ensemble": tuple(fields["ensemble"])})
