"""Categories, their examples and their adapters' versions. A name points to a version; a version never changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from app.method.adapter import Adapter

from . import keys
from .adapter_file import adapter_from_bytes, adapter_to_bytes
from .jobs import now
from .replies import as_bytes, as_fields, as_texts

# Add an example (or replace them all) and make `job` the one whose result the category waits for.
# KEYS: category, counters, example ids, example, categories   ARGV: name, prompts, job, time, score, example id,
# replace, limit, id, then the example's fields.   Returns {generation, previous job}, {0, ''} if the limit is reached.
# Sent again because its answer was lost, it changes nothing; nor does `_FORGET`.
_TEACH = """
if redis.call('EXISTS', KEYS[4]) == 1 then return {tonumber(redis.call('HGET', KEYS[1], 'generation')), ''} end
local old = redis.call('LRANGE', KEYS[3], 0, -1)
if ARGV[7] == '1' then
  for _, id in ipairs(old) do redis.call('DEL', KEYS[1] .. ':example:' .. id) end
  redis.call('DEL', KEYS[3])
elseif #old >= tonumber(ARGV[8]) then return {0, ''} end
redis.call('HSETNX', KEYS[1], 'name', ARGV[1])
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[4])
redis.call('ZADD', KEYS[5], 'NX', ARGV[5], ARGV[9])
local prompts = cjson.decode(ARGV[2])
if ARGV[7] ~= '1' then
  local known = cjson.decode(redis.call('HGET', KEYS[1], 'prompts') or '[]')
  local seen = {}
  for _, word in ipairs(known) do seen[word] = true end
  for _, word in ipairs(prompts) do if not seen[word] then known[#known + 1] = word end end
  prompts = known
end
redis.call('HSET', KEYS[1], 'prompts', #prompts == 0 and '[]' or cjson.encode(prompts))
redis.call('RPUSH', KEYS[3], ARGV[6])
redis.call('HSET', KEYS[4], unpack(ARGV, 10))
local generation = redis.call('HINCRBY', KEYS[2], 'generation', 1)
local previous = redis.call('HGET', KEYS[1], 'job') or ''
redis.call('HSET', KEYS[1], 'generation', generation, 'job', ARGV[3])
return {generation, previous}
"""

# Take an example away. KEYS: category, counters, example ids, example   ARGV: example id, job
# Returns {removed, left, generation, previous job}; with nothing left the category has no adapter any more.
_FORGET = """
if redis.call('LREM', KEYS[3], 1, ARGV[1]) == 0 then
  if redis.call('HGET', KEYS[1], 'job') ~= ARGV[2] then return {0, 0, 0, ''} end
  return {1, redis.call('LLEN', KEYS[3]), tonumber(redis.call('HGET', KEYS[1], 'generation')), ''}
end
redis.call('DEL', KEYS[4])
local left = redis.call('LLEN', KEYS[3])
local generation = redis.call('HINCRBY', KEYS[2], 'generation', 1)
local previous = redis.call('HGET', KEYS[1], 'job') or ''
redis.call('HSET', KEYS[1], 'generation', generation)
if left == 0 then redis.call('HDEL', KEYS[1], 'job', 'adapter_version', 'adapter_generation', 'result_version')
else redis.call('HSET', KEYS[1], 'job', ARGV[2]) end
return {1, left, generation, previous}
"""

# Remove a category; its counters stay. KEYS: category, example ids, versions, categories   ARGV: id
# Returns {removed, job}. A script, so that no example or version that comes in meanwhile is left behind.
_DELETE = """
local removed = redis.call('EXISTS', KEYS[1])
local job = redis.call('HGET', KEYS[1], 'job') or ''
for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do redis.call('DEL', KEYS[1] .. ':example:' .. id) end
for _, version in ipairs(redis.call('HKEYS', KEYS[3])) do redis.call('DEL', KEYS[1] .. ':adapter:' .. version) end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[1])
return {removed, job}
"""

# Store an adapter, point the category at it, and drop the oldest of the others: imports may end in crossed order, so
# that the one in use is not the youngest.
# KEYS: category, versions, adapter, …   ARGV: version, description, bytes, versions kept, …
_USE = """
local function use(generation)
  redis.call('SET', KEYS[3], ARGV[3])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  redis.call('HSET', KEYS[1], 'adapter_version', ARGV[1], 'adapter_generation', generation,
    'result_version', ARGV[1])
  local versions = redis.call('HKEYS', KEYS[2])
  table.sort(versions, function(a, b) return tonumber(a) > tonumber(b) end)
  local kept = 1
  for _, version in ipairs(versions) do
    if version ~= ARGV[1] then
      kept = kept + 1
      if kept > tonumber(ARGV[4]) then
        redis.call('HDEL', KEYS[2], version)
        redis.call('DEL', KEYS[1] .. ':adapter:' .. version)
      end
    end
  end
end
"""

# Use an adapter if the category still waits for this generation and has no result of it yet. ARGV: …, generation
_COMMIT = f"""{_USE}
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[5] then return 0 end
if redis.call('HGET', KEYS[1], 'adapter_generation') == ARGV[5] then return 0 end
use(ARGV[5])
return 1
"""

# Make sure that a generation's result is not used any more. KEYS: category, counters   ARGV: generation
_WITHDRAW = """
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[1], 'adapter_generation') == ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'generation', redis.call('HINCRBY', KEYS[2], 'generation', 1))
return 1
"""

# Use an adapter that comes from elsewhere, whatever the category waits for; make the category if there is none.
# KEYS: …, counters, categories   ARGV: …, name, prompts, time, score, id.   Returns the job it waited for.
_ADOPT = f"""{_USE}
local generation = redis.call('HINCRBY', KEYS[4], 'generation', 1)
redis.call('HSETNX', KEYS[1], 'name', ARGV[5])
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[7])
redis.call('HSET', KEYS[1], 'generation', generation, 'prompts', ARGV[6])
redis.call('ZADD', KEYS[5], 'NX', ARGV[8], ARGV[9])
use(generation)
return redis.call('HGET', KEYS[1], 'job') or ''
"""

# Point a category back at a version it still has. KEYS: category, versions   ARGV: version
_ROLLBACK = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'adapter_version', ARGV[1])
return 1
"""


@dataclass(frozen=True)
class AdapterInfo:
    """What is told of an adapter; the fields and their names are the HTTP contract's."""

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
    """A category as it is stored.

    Attributes:
        id: The key of its name.
        name: As first given.
        prompts: Other words for it, without the name.
        generation: Counts what it was taught; a job's result counts for one generation only.
        job: The job it waits for or waited for last.
        adapter: The version in use, or None.
        adapter_generation: The generation whose adapter was put in use last; by a rollback another one is now.
        result: That adapter, while it is kept.
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
    """What is told of an example. Width, height and area are in pixels after EXIF rotation."""

    id: str
    media_type: str
    width: int
    height: int
    area: int
    sha256: str
    created_at: str


@dataclass(frozen=True)
class Example(ExampleInfo):
    """What a category was taught from: the file as sent, and its mask as a PNG of the photo's size."""

    image: bytes = field(repr=False)
    mask: bytes = field(repr=False)


_INFO_FIELDS = tuple(name for name in ExampleInfo.__dataclass_fields__ if name != "id")


class CategoryStore:
    """Categories in Redis.

    Args:
        redis: Connection that returns bytes.
        versions_kept: Adapter versions kept per category.
        max_examples: Most examples of one category.
    """

    def __init__(self, redis: Redis, *, versions_kept: int, max_examples: int) -> None:
        self._redis = redis
        self._versions_kept = versions_kept
        self._max_examples = max_examples

    async def get(self, category_id: str) -> CategoryRecord | None:
        """The category, or None."""
        return (await self.get_many([category_id]))[0]

    async def all(self) -> list[CategoryRecord]:
        """All categories, the oldest first."""
        return await self._between(0, -1)

    async def latest(self, count: int) -> list[CategoryRecord]:
        """The youngest categories, at most so many, the oldest of them first."""
        return await self._between(-count, -1) if count else []

    async def count(self) -> int:
        """How many categories there are."""
        return int(await self._redis.zcard(keys.CATEGORIES))

    async def _between(self, first: int, last: int) -> list[CategoryRecord]:
        ids = as_texts(await self._redis.zrange(keys.CATEGORIES, first, last))
        return [record for record in await self.get_many(ids) if record is not None]

    async def get_many(self, category_ids: Sequence[str]) -> list[CategoryRecord | None]:
        """The categories with these ids, None where there is none, in one round trip."""
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
        self, name: str, example: Example, *, prompts: Sequence[str], replace: bool, job_id: str
    ) -> tuple[int, str | None]:
        """Add an example; the category waits for `job_id` from now on.

        Returns:
            The category's new generation (0 if it has as many examples as it may), and the job it waited for before.
        """
        category_id = keys.category_id(name)
        generation, previous = await self._redis.eval(
            _TEACH, 5,
            keys.category(category_id), keys.counters(category_id), keys.example_ids(category_id),
            keys.example(category_id, example.id), keys.CATEGORIES,
            name, json.dumps(list(prompts), ensure_ascii=False), job_id, now(), datetime.now(UTC).timestamp(),
            example.id, int(replace), self._max_examples, category_id, *_flat(example),
        )  # fmt: skip
        return int(generation), previous.decode() or None

    async def forget(self, category_id: str, example_id: str, *, job_id: str) -> tuple[bool, int, int, str | None]:
        """Take an example away; the category waits for `job_id` if any is left.

        Returns:
            Whether there was such an example, how many are left, the new generation, the job it waited for before.
        """
        removed, left, generation, previous = await self._redis.eval(
            _FORGET, 4,
            keys.category(category_id), keys.counters(category_id), keys.example_ids(category_id),
            keys.example(category_id, example_id), example_id, job_id,
        )  # fmt: skip
        return bool(removed), int(left), int(generation), previous.decode() or None

    async def delete(self, category_id: str) -> tuple[bool, str | None]:
        """Remove a category with its examples and versions. Its counters stay: no version number comes back.

        Returns:
            Whether there was such a category, and the job it waited for.
        """
        removed, job = await self._redis.eval(
            _DELETE, 4,
            keys.category(category_id), keys.example_ids(category_id), keys.versions(category_id), keys.CATEGORIES,
            category_id,
        )  # fmt: skip
        return bool(removed), job.decode() or None

    async def example_ids(self, category_id: str) -> list[str]:
        """Ids of its examples, in the order they were given."""
        return as_texts(await self._redis.lrange(keys.example_ids(category_id), 0, -1))

    async def example(self, category_id: str, example_id: str) -> Example | None:
        """One example, or None."""
        fields = as_fields(await self._redis.hgetall(keys.example(category_id, example_id)))
        if not fields:
            return None
        info = _example_info(example_id, [fields[name.encode()] for name in _INFO_FIELDS])
        return Example(**asdict(info), image=fields[b"image"], mask=fields[b"mask"])

    async def example_infos(self, category_id: str) -> list[ExampleInfo]:
        """What is told of its examples, their files left where they are: those of one category may be a gigabyte."""
        ids = await self.example_ids(category_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            for example_id in ids:
                pipe.hmget(keys.example(category_id, example_id), _INFO_FIELDS)
            answers = await pipe.execute()
        return [_example_info(id_, values) for id_, values in zip(ids, answers, strict=True) if None not in values]

    async def next_version(self, category_id: str) -> int:
        """A version number that was never used for this name."""
        return int(await self._redis.hincrby(keys.counters(category_id), "version", 1))

    async def commit(self, category_id: str, adapter: Adapter, *, generation: int) -> bool:
        """Put an adapter in use if the category still waits for this generation. False if it doesn't."""
        committed = await self._redis.eval(
            _COMMIT, 3,
            keys.category(category_id), keys.versions(category_id), keys.adapter(category_id, adapter.version),
            *await asyncio.to_thread(self._described, adapter), generation,
        )  # fmt: skip
        return bool(committed)

    async def withdraw(self, category_id: str, *, generation: int) -> bool:
        """Refuse this generation's adapter from now on. False if it is in use already, or wasn't waited for."""
        category, counters = keys.category(category_id), keys.counters(category_id)
        return bool(await self._redis.eval(_WITHDRAW, 2, category, counters, generation))

    async def adopt(self, name: str, adapter: Adapter, *, prompts: Sequence[str]) -> str | None:
        """Put an adapter in use that comes from elsewhere; returns the job that the category waited for."""
        category_id = keys.category_id(name)
        previous = await self._redis.eval(
            _ADOPT, 5,
            keys.category(category_id), keys.versions(category_id), keys.adapter(category_id, adapter.version),
            keys.counters(category_id), keys.CATEGORIES,
            *await asyncio.to_thread(self._described, adapter),
            name, json.dumps(list(prompts), ensure_ascii=False), now(),
            datetime.now(UTC).timestamp(), category_id,
        )  # fmt: skip
        return as_bytes(previous).decode() or None

    def _described(self, adapter: Adapter) -> tuple[int, str, bytes, int]:
        """What `_USE` is told of an adapter; work for a thread, since one may have tens of MiB."""
        raw = adapter_to_bytes(adapter)
        return adapter.version, json.dumps(asdict(_info(adapter, len(raw)))), raw, self._versions_kept

    async def adapter_bytes(self, category_id: str, version: int) -> bytes | None:
        """An adapter's safetensors, or None."""
        raw = await self._redis.get(keys.adapter(category_id, version))
        return as_bytes(raw) if raw is not None else None

    async def adapter(self, category_id: str, version: int) -> Adapter | None:
        """An adapter, or None."""
        raw = await self.adapter_bytes(category_id, version)
        return adapter_from_bytes(raw) if raw is not None else None

    async def versions(self, category_id: str) -> list[AdapterInfo]:
        """The versions that are kept, the newest first."""
        described = as_fields(await self._redis.hgetall(keys.versions(category_id)))
        found = [_read_info(raw) for raw in described.values()]
        return sorted(found, key=lambda info: info.version, reverse=True)

    async def rollback(self, category_id: str, version: int) -> bool:
        """Point the category at an older version. False if it isn't kept."""
        return bool(
            await self._redis.eval(_ROLLBACK, 2, keys.category(category_id), keys.versions(category_id), version)
        )


def new_example(
    *,
    image: bytes,
    media_type: str,
    mask: bytes,
    width: int,
    height: int,
    area: int,
    sha256: str,
    id: str | None = None,
) -> Example:
    """An example; without an id it gets one of its own."""
    return Example(id or uuid4().hex, media_type, width, height, area, sha256, now(), image=image, mask=mask)


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
