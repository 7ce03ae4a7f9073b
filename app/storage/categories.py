"""Store of categories, their examples and their adapter versions. A version never changes."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal
from urllib.parse import unquote
from uuid import uuid4

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import ResponseError

from app.errors import CHANGED, ConflictError, PreconditionFailedError
from app.method.adapter import Adapter

from . import keys
from .adapter_file import adapter_from_bytes, adapter_to_bytes
from .category_records import (
    EXAMPLE_FIELDS,
    AdapterInfo,
    CategoryRecord,
    Example,
    ExampleInfo,
    Seen,
    adapter_info,
    example_items,
    read_adapter_info,
    read_category,
    read_example,
    read_example_info,
)
from .jobs import Job, final_fields, job_argument, now
from .lua import script
from .names import CategoryName
from .pages import Page, read_page
from .records import damaged, replies_of, reply_of, sound
from .replies import as_bytes, as_fields, as_texts
from .unreadable import RecordKind, Unreadable, UnreadableRecord

# Why an example was not added.
Refusal = Literal["full", "wordy", "unknown", "known"]


class CategoryStore:
    """Categories in Redis.

    Args:
        redis: Client that returns bytes.
        versions_kept: Adapter versions kept per category.
        max_examples: Largest number of examples of a category.
        max_prompts: Largest number of other words for a category.
        job_ttl_s: Seconds that a superseded job can be read.
        unreadable: Register of the records that can't be read.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        versions_kept: int,
        max_examples: int,
        max_prompts: int = 32,
        job_ttl_s: float,
        unreadable: Unreadable | None = None,
    ) -> None:
        self._redis = redis
        self._unreadable = unreadable or Unreadable()
        self._versions_kept = versions_kept
        self._max_examples = max_examples
        self._max_prompts = max_prompts
        self._job_ttl_s = int(job_ttl_s)
        self._teach_example = script(redis, "teach_example", needs=("job", "examples"))
        self._forget_example = script(redis, "forget_example", needs=("job", "examples", "receipt"), when_full=True)
        self._delete_category = script(redis, "delete_category", needs=("job", "unchanged", "receipt"), when_full=True)
        self._commit_adapter = script(redis, "commit_adapter", needs=("use_adapter",))
        self._adopt_adapter = script(redis, "adopt_adapter", needs=("job", "use_adapter", "unchanged", "receipt"))
        self._withdraw_generation = script(redis, "withdraw_generation", when_full=True)
        self._roll_back = script(redis, "roll_back", needs=("job", "unchanged", "receipt"))

    async def get(self, category_id: str) -> CategoryRecord | None:
        """The category, or None.

        Raises:
            ConflictError: If its record can't be read.
        """
        record = (await self.get_many([category_id]))[0]
        if record is None and (found := self._unreadable.find(keys.category(category_id))):
            raise _unreadable_category(category_id, found.detail)
        return record

    async def exists(self, category_id: str) -> bool:
        """True if there is something of this category, readable or not."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(keys.category(category_id))
            pipe.zscore(keys.CATEGORIES, category_id)
            stored, listed = await replies_of(pipe)
        return bool(stored) or isinstance(listed, float)

    async def all(self) -> list[CategoryRecord]:
        """All categories that can be read, the oldest first."""
        return await self._between(0, -1)

    async def page(self, *, limit: int, cursor: str | None) -> Page[CategoryRecord]:
        """Some of the categories that can be read, the oldest first.

        Raises:
            InvalidInputError: If no page gave this cursor.
        """
        return await read_page(
            self._redis, keys.CATEGORIES, self.get_many, limit=limit, cursor=cursor, newest_first=False
        )

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
        """Categories by id, in one round trip; None for one that is unknown or can't be read."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for category_id in category_ids:
                pipe.hgetall(keys.category(category_id))
                pipe.llen(keys.example_ids(category_id))
                pipe.hgetall(keys.versions(category_id))
            answers = await replies_of(pipe)
        triples = zip(answers[::3], answers[1::3], answers[2::3], strict=True)
        return [
            self._category(category_id, fields, examples, versions)
            for category_id, (fields, examples, versions) in zip(category_ids, triples, strict=True)
        ]

    def _category(self, category_id: str, fields: Any, examples: Any, versions: Any) -> CategoryRecord | None:
        """The category of three replies; None if there is none, or it can't be read, which is noted."""
        key = keys.category(category_id)
        try:
            record = self._record(category_id, as_fields(sound(fields)), sound(examples), versions) if fields else None
        except ValueError as error:
            self._note("category", unquote(category_id), error, key)
            return None
        self._unreadable.forget(key)
        return record

    def _record(self, category_id: str, fields: Mapping[bytes, bytes], examples: int, versions: Any) -> CategoryRecord:
        stored = read_category(category_id, fields)
        in_use = stored.adapter_version or ""
        adapter, problem = self._info(category_id, in_use, versions)
        result = self._info(category_id, stored.result_version or "", versions)[0]
        return CategoryRecord(
            id=category_id,
            name=stored.name,
            prompts=stored.prompts,
            examples=examples,
            generation=stored.generation,
            job=stored.job,
            adapter=adapter,
            adapter_generation=stored.adapter_generation,
            result=result,
            created_at=stored.created_at,
            adapter_sha256=fields.get(f"sha256_{in_use}".encode(), b"").decode(errors="replace"),
            adapter_problem=problem,
            adapter_version=in_use,
        )

    def _info(self, category_id: str, version: str, versions: Any) -> tuple[AdapterInfo | None, str | None]:
        """Description of a version; None if it is not kept, or can't be read, and then what is wrong with it."""
        key = keys.versions(category_id)
        try:
            raw = sound(versions).get(version.encode()) if version else None
            info = read_adapter_info(version, as_bytes(raw)) if raw is not None else None
        except ValueError as error:
            self._note("adapter", f"{unquote(category_id)}, version {version}", error, key, version)
            return None, str(error)
        self._unreadable.forget(key, version)
        return info, None

    def _note(self, kind: RecordKind, id: str, error: ValueError, key: str, member: str = "") -> None:
        self._unreadable.note(UnreadableRecord(kind, id, str(error), key, member))

    async def _run(self, script: AsyncScript, category_id: str, *, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script that changes a category.

        Raises:
            ConflictError: If it met something that it can't read.
        """
        return await _guarded(category_id, script(keys=keys, args=args))

    async def teach(
        self,
        name: CategoryName,
        example: Example,
        *,
        prompts: Sequence[str],
        replace: bool,
        job: Job,
        once: bool = False,
        instead: str | None = None,
    ) -> tuple[Job, str | None] | Refusal:
        """Add an example and record the job that tunes on all examples, which supersedes the one before.

        Args:
            name: Of the category, made if it is new.
            example: With an id that was never used.
            prompts: Other words for the category.
            replace: True to delete its other examples and words.
            job: Made by `new_job`; if it is recorded already, nothing is changed.
            once: True to refuse an example of a photo and mask that the category has already.
            instead: Id of an example that it takes the place of, if that is still there.

        Returns:
            The job with its generation, and the id of the job that it superseded, if any. `full` if the category has
            as many examples as it may; `wordy` if the new words would be more than it may have; `unknown` if the
            example lacks the category and no other shows it; `known` if it is refused since it is there.
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
            "once": once,
            "instead": instead or False,  # cjson reads null as a value that is true
            "max_examples": self._max_examples,
            "max_prompts": self._max_prompts,
            "job": job_argument(job),
            "superseded": self._superseded("A newer example came in."),
        }
        reply = await self._run(
            self._teach_example,
            category_id,
            keys=[
                keys.category(category_id),
                keys.counters(category_id),
                keys.example_ids(category_id),
                keys.example(category_id, example.id),
                keys.CATEGORIES,
                keys.job(job.id),
                keys.JOBS,
            ],
            args=[json.dumps(lesson), *example_items(example)],
        )
        if not isinstance(reply, list):
            refusal: Refusal = as_bytes(reply).decode()  # type: ignore[assignment]  # the script knows these
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
            "receipt_ttl_s": keys.RECEIPT_TTL_S,
        }
        reply = await self._run(
            self._forget_example,
            category_id,
            keys=[
                keys.category(category_id),
                keys.counters(category_id),
                keys.example_ids(category_id),
                keys.example(category_id, example_id),
                keys.job(job.id),
                keys.JOBS,
                keys.receipt(job.id),
            ],
            args=[json.dumps(removal)],
        )
        if reply is None:
            return None
        left, generation, superseded = json.loads(reply)
        return dataclasses.replace(job, generation=generation) if left else None, superseded or None

    async def delete(self, category_id: str, *, seen: Seen | None = None) -> str | None:
        """Delete a category with its examples and versions, readable or not; no version number is used again.

        Args:
            category_id: Its id.
            seen: State that the category must have; None for any.

        Returns:
            Id of the job that was superseded.

        Raises:
            PreconditionFailedError: If it has another state.
        """
        strays = await self._strays(category_id)
        category = {
            "category_id": category_id,
            "time": int(time.time()),
            "example_prefix": keys.example_prefix(category_id),
            "adapter_prefix": keys.adapter_prefix(category_id),
            "superseded": self._superseded("The category was deleted."),
            "seen": seen or False,
            "receipt_ttl_s": keys.RECEIPT_TTL_S,
        }
        superseded = await self._run(
            self._delete_category,
            category_id,
            keys=[
                keys.category(category_id),
                keys.example_ids(category_id),
                keys.versions(category_id),
                keys.CATEGORIES,
                keys.counters(category_id),
                _new_receipt(),
                *strays,
            ],
            args=[json.dumps(category)],
        )
        deleted = _id(_of_unchanged(superseded))
        self._unreadable.forget(keys.category(category_id))
        return deleted

    async def _strays(self, category_id: str) -> list[str]:
        """Keys of examples and adapters whose list is of another type; all keys of the store are looked through."""
        lists = {keys.example_ids(category_id): b"list", keys.versions(category_id): b"hash"}
        kinds = [await self._redis.type(key) for key in lists]
        if all(found in (kind, b"none") for found, kind in zip(kinds, lists.values(), strict=True)):
            return []
        prefixes = (keys.example_prefix(category_id), keys.adapter_prefix(category_id))
        return [found for prefix in prefixes async for found in self._redis.scan_iter(f"{prefix}*", count=1000)]

    async def example_ids(self, category_id: str) -> list[str]:
        """Ids of a category's examples, in the order in which they were added.

        Raises:
            ConflictError: If the list can't be read.
        """
        return as_texts(await _guarded(category_id, self._redis.lrange(keys.example_ids(category_id), 0, -1)))

    async def example(self, category_id: str, example_id: str) -> Example | None:
        """One example, or None.

        Raises:
            ConflictError: If it can't be read.
        """
        fields = await reply_of(self._redis.hgetall(keys.example(category_id, example_id)))
        if not fields:
            return None
        try:
            return read_example(example_id, as_fields(sound(fields)))
        except ValueError as error:
            self._note_example(category_id, example_id, error)
            raise ConflictError(
                f"The stored example {example_id} of {unquote(category_id)!r} can't be read ({error}): delete it with "
                "DELETE /categories/{name}/examples/{id}.",
                field="id",
            ) from error

    async def example_infos(self, category_id: str) -> list[ExampleInfo]:
        """Descriptions of the readable examples. The files are not read: those of one category may take a gigabyte."""
        ids = await self.example_ids(category_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            for example_id in ids:
                pipe.hmget(keys.example(category_id, example_id), EXAMPLE_FIELDS)
            answers = await replies_of(pipe)
        infos = [self._example_info(category_id, id_, reply) for id_, reply in zip(ids, answers, strict=True)]
        return [info for info in infos if info]

    def _example_info(self, category_id: str, example_id: str, reply: Any) -> ExampleInfo | None:
        """The description of a reply; None if there is none, or it can't be read, which is noted."""
        try:
            values = sound(reply)
            info = read_example_info(example_id, values) if any(value is not None for value in values) else None
        except ValueError as error:
            self._note_example(category_id, example_id, error)
            return None
        self._unreadable.forget(keys.example(category_id, example_id))
        return info

    def _note_example(self, category_id: str, example_id: str, error: ValueError) -> None:
        id = f"{unquote(category_id)}, example {example_id}"
        self._note("example", id, error, keys.example(category_id, example_id))

    async def next_version(self, category_id: str) -> int:
        """A version number that this name has never used."""
        return int(await _guarded(category_id, self._redis.hincrby(keys.counters(category_id), "version", 1)))

    async def commit(self, category_id: str, adapter: Adapter, *, generation: int) -> bool:
        """Put an adapter in use if the category still waits for this generation. False if it does not."""
        committed = await self._run(
            self._commit_adapter,
            category_id,
            keys=_adapter_keys(category_id, adapter),
            args=[*await asyncio.to_thread(self._adapter_args, category_id, adapter), generation],
        )
        return bool(committed)

    async def withdraw(self, category_id: str, *, generation: int) -> bool:
        """Refuse a generation's adapter from now on. False if it is in use."""
        withdrawn = await self._run(
            self._withdraw_generation,
            category_id,
            keys=[keys.category(category_id), keys.counters(category_id)],
            args=[generation],
        )
        return bool(withdrawn)

    async def adopt(
        self, name: CategoryName, adapter: Adapter, *, prompts: Sequence[str], seen: Seen | None = None
    ) -> str | None:
        """Put an adapter in use that comes from elsewhere, in a category that is made if it is new.

        Args:
            name: Of the category.
            adapter: With a version number that was never used.
            prompts: Other words for the category.
            seen: State that the category must have; None for any.

        Returns:
            Id of the job that was superseded.

        Raises:
            PreconditionFailedError: If it has another state.
        """
        category_id = name.id
        category = {
            "category_id": category_id,
            "name": name.text,
            "prompts": json.dumps(list(prompts), ensure_ascii=False),
            "created_at": now(),
            "time": time.time(),
            "superseded": self._superseded("An adapter was imported."),
            "seen": seen or False,
            "receipt_ttl_s": keys.RECEIPT_TTL_S,
        }
        superseded = await self._run(
            self._adopt_adapter,
            category_id,
            keys=[*_adapter_keys(category_id, adapter), keys.counters(category_id), keys.CATEGORIES, _new_receipt()],
            args=[*await asyncio.to_thread(self._adapter_args, category_id, adapter), json.dumps(category)],
        )
        return _id(_of_unchanged(superseded))

    def _superseded(self, error: str) -> dict[str, Any]:
        """Argument of `supersede_job` in Lua."""
        return {
            "job_prefix": keys.JOB_PREFIX,
            "channel_prefix": keys.JOB_CHANNEL_PREFIX,
            "fields": final_fields("superseded", error=error),
            "ttl_s": self._job_ttl_s,
        }

    def _adapter_args(self, category_id: str, adapter: Adapter) -> tuple[int, str, bytes, int, str, str]:
        """First arguments of a script that uses `use_adapter`; call it in a thread, an adapter may be tens of MiB."""
        raw = adapter_to_bytes(adapter)
        info = json.dumps(asdict(adapter_info(adapter, len(raw))))
        return adapter.version, info, raw, self._versions_kept, keys.adapter_prefix(category_id), _sha256(raw)

    async def adapter_bytes(self, category_id: str, version: int, *, sha256: str = "") -> bytes | None:
        """File of an adapter that `adapter` can read, or None."""
        loaded = await self._load(category_id, version, sha256)
        return loaded[0] if loaded else None

    async def adapter(self, category_id: str, version: int, *, sha256: str = "") -> Adapter | None:
        """An adapter, or None if there is none or it can't be read.

        Args:
            category_id: Its category.
            version: Its number.
            sha256: Hash that its file must have; empty if it is not known.
        """
        loaded = await self._load(category_id, version, sha256)
        return loaded[1] if loaded else None

    async def _load(self, category_id: str, version: int, sha256: str) -> tuple[bytes, Adapter] | None:
        key = keys.adapter(category_id, version)
        raw = await reply_of(self._redis.get(key))
        try:
            loaded = (raw, await asyncio.to_thread(_adapter_of, sound(raw), sha256)) if raw is not None else None
        except ValueError as error:
            self._note("adapter", f"{unquote(category_id)}, version {version}", error, key)
            return None
        self._unreadable.forget(key)
        return loaded

    async def versions(self, category_id: str) -> list[AdapterInfo]:
        """Versions of a category that are kept and described readably, the newest first."""
        described = await reply_of(self._redis.hgetall(keys.versions(category_id)))
        names = [] if isinstance(described, Exception) else as_texts(described)
        found = [self._info(category_id, name, described)[0] for name in names]
        return sorted((info for info in found if info), key=lambda info: info.version, reverse=True)

    async def rollback(self, category_id: str, version: int, *, seen: Seen | None = None) -> tuple[bool, str | None]:
        """Use an older version again.

        Returns:
            False if it is not kept, and the id of the job that was superseded, if any.

        Raises:
            PreconditionFailedError: If the category has another state than the one seen, if any.
        """
        given = {
            "superseded": self._superseded("An older version was put in use."),
            "seen": seen or False,
            "receipt_ttl_s": keys.RECEIPT_TTL_S,
        }
        reply = await self._run(
            self._roll_back,
            category_id,
            keys=[
                keys.category(category_id),
                keys.versions(category_id),
                keys.counters(category_id),
                _new_receipt(),
            ],
            args=[version, json.dumps(given)],
        )
        found, superseded = _of_unchanged(reply)
        return bool(found), _id(superseded)


def _adapter_keys(category_id: str, adapter: Adapter) -> list[str]:
    """First keys of a script that uses `use_adapter`."""
    return [keys.category(category_id), keys.versions(category_id), keys.adapter(category_id, adapter.version)]


def _new_receipt() -> str:
    """Key that a call's receipt will have."""
    return keys.receipt(uuid4().hex)


def _of_unchanged(reply: Any) -> Any:
    """Reply of a script that compares what was seen."""
    if reply is None:
        raise PreconditionFailedError(CHANGED)
    return reply


def _id(reply: bytes) -> str | None:
    """An id that a script returned; '' stands for none."""
    return as_bytes(reply).decode() or None


async def _guarded(category_id: str, change: Awaitable[Any]) -> Any:
    """Reply of a change of a category.

    Raises:
        ConflictError: If it met something that it can't read.
    """
    try:
        return await change
    except ResponseError as error:
        if not damaged(error):
            raise
        raise _unreadable_category(category_id, "one of its values has another type") from error


def _unreadable_category(category_id: str, detail: str) -> ConflictError:
    return ConflictError(
        f"What is stored of the category {unquote(category_id)!r} can't be read ({detail}): delete it with DELETE "
        "/categories/{name}, and teach it again.",
        field="name",
    )


def _adapter_of(raw: bytes, sha256: str) -> Adapter:
    if sha256 and _sha256(raw) != sha256:
        raise ValueError("its file was changed: the hash differs")
    return adapter_from_bytes(raw)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
