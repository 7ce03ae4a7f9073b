"""Management of categories: read, delete, roll back to a version, export and import an adapter."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import datetime
from functools import partial

import torch

from app.errors import ConflictError, InvalidInputError, NotFoundError
from app.method.adapter import Adapter, OtherBackboneError
from app.method.backbone import Backbone, EncodedImage
from app.method.evidence import usable
from app.method.pipeline import encode_one
from app.services.job_engine import JobEngine
from app.services.models import Models
from app.storage.adapter_file import adapter_from_bytes
from app.storage.categories import CategoryStore
from app.storage.category_records import AdapterInfo, CategoryRecord, Example, ExampleInfo, Seen
from app.storage.names import CategoryName, other_words
from app.storage.pages import Page, Place, page_of

# What a caller is told of a category whose adapter is stored, but can't be read.
UNREADABLE_ADAPTER = (
    "its adapter can't be read; use an older one with POST /categories/{name}/rollback, or teach the category again."
)


class Categories:
    """Reads and changes categories and their adapter versions.

    Args:
        store: Store of categories.
        engine: Counts the jobs that a change supersedes.
        models: The loaded backbones; adapters are imported for the default.
        max_prompts: Largest number of other words for a category.
    """

    def __init__(self, store: CategoryStore, engine: JobEngine, models: Models, *, max_prompts: int) -> None:
        self._store = store
        self._engine = engine
        self._models = models
        self._max_prompts = max_prompts

    async def page(self, *, limit: int, cursor: str | None) -> Page[CategoryRecord]:
        """Some of the categories, the oldest first."""
        return await self._store.page(limit=limit, cursor=cursor)

    async def get(self, name: CategoryName) -> CategoryRecord:
        """One category.

        Raises:
            NotFoundError: If it was never taught.
            ConflictError: If its record can't be read.
        """
        record = await self._store.get(name.id)
        if record is None:
            raise _unknown(name)
        return record

    async def delete(self, name: CategoryName, *, seen: Seen | None = None) -> None:
        """Delete a category with its examples and versions, readable or not, and supersede its job.

        Raises:
            NotFoundError: If there is no such category.
            PreconditionFailedError: If it has another state than the one seen, if any.
        """
        if not await self._store.exists(name.id):
            raise _unknown(name)
        self._engine.note_superseded(await self._store.delete(name.id, seen=seen))

    async def versions(self, name: CategoryName) -> list[AdapterInfo]:
        """Adapter versions of a category that are kept, the newest first."""
        return await self._store.versions((await self.get(name)).id)

    async def versions_page(self, name: CategoryName, *, limit: int, cursor: str | None) -> Page[AdapterInfo]:
        """Some of the versions."""
        return page_of(await self.versions(name), _place_of_version, limit=limit, cursor=cursor)

    async def rollback(self, name: CategoryName, version: int, *, seen: Seen | None = None) -> CategoryRecord:
        """Use an older version again, and supersede the job whose adapter would take its place.

        Raises:
            NotFoundError: If that version is not kept.
            PreconditionFailedError: If the category has another state than the one seen, if any.
        """
        record = await self.get(name)
        kept = [info.version for info in await self._store.versions(record.id)]
        found, superseded = (
            await self._store.rollback(record.id, version, seen=seen) if version in kept else (False, None)
        )
        if not found:
            told = ", ".join(map(str, kept)) or "none"
            raise NotFoundError(f"{record.name} has no version {version}: kept are {told}.", field="version")
        self._engine.note_superseded(superseded)
        return await self.get(name)

    async def export(self, name: CategoryName) -> bytes:
        """The adapter in use, as safetensors.

        Raises:
            NotFoundError: If the category has no adapter yet.
            ConflictError: If its adapter can't be read.
        """
        record = await self.get(name)
        if record.adapter is None and record.adapter_problem is None:
            raise NotFoundError(f"{record.name} has no adapter yet: wait for its job, or teach it.", field="name")
        raw = None
        if record.adapter:
            version = record.adapter.version
            raw = await self._store.adapter_bytes(record.id, version, sha256=record.adapter_sha256)
        if raw is None:
            raise ConflictError(f"{record.name}: {UNREADABLE_ADAPTER}", field="name")
        return raw

    async def adapter_sha256(self, record: CategoryRecord) -> str | None:
        """Hash of the file of a category's adapter; None if it has none, or an unreadable one of an unknown hash."""
        if record.adapter_sha256 or record.adapter is None:
            return record.adapter_sha256 or None
        raw = await self._store.adapter_bytes(record.id, record.adapter.version)
        return (await asyncio.to_thread(hashlib.sha256, raw)).hexdigest() if raw is not None else None

    async def read_adapter(self, raw: bytes) -> Adapter:
        """An exported adapter that fits the default backbone.

        Raises:
            InvalidInputError: If the bytes are not an adapter.
            ConflictError: If it was tuned on another backbone.
        """
        try:
            adapter = await asyncio.to_thread(adapter_from_bytes, raw)
        except ValueError as error:
            raise InvalidInputError(
                f"The body is not an adapter: send what GET /categories/{{name}}/adapter gave ({error}).", field="body"
            ) from error
        model = self._models.default
        await model.lane.run(partial(check_adapter, adapter, model.backbone), kind="tune")
        return adapter

    async def import_(self, name: CategoryName, adapter: Adapter, *, seen: Seen | None = None) -> CategoryRecord:
        """Put an adapter that was read in use under this name, as a new version.

        Raises:
            InvalidInputError: If it has words that are none, or more than a category may have.
            PreconditionFailedError: If the category has another state than the one seen, if any.
        """
        most = 1 + self._max_prompts  # with the name that it was taught under
        if len(adapter.prompts) > most:
            raise InvalidInputError(
                f"The adapter has {len(adapter.prompts)} prompts: at most {most} are allowed (EXEMPLAR_MAX_PROMPTS "
                "and the name).",
                field="body",
            )
        words = other_words([CategoryName.parse(word, field="body") for word in adapter.prompts], name)
        version = await self._store.next_version(name.id)
        superseded = await self._store.adopt(
            name,
            replace(adapter, category=name.text, version=version),
            prompts=[word.text for word in words],
            seen=seen,
        )
        self._engine.note_superseded(superseded)
        return await self.get(name)

    async def examples(self, name: CategoryName) -> list[ExampleInfo]:
        """Descriptions of the category's examples."""
        return await self._store.example_infos((await self.get(name)).id)

    async def examples_page(self, name: CategoryName, *, limit: int, cursor: str | None) -> Page[ExampleInfo]:
        """Some of the descriptions."""
        return page_of(await self.examples(name), _place_of_example, limit=limit, cursor=cursor)

    async def example(self, name: CategoryName, example_id: str) -> Example:
        """One example.

        Raises:
            NotFoundError: If there is no such category or example.
        """
        record = await self.get(name)
        example = await self._store.example(record.id, example_id)
        if example is None:
            raise NotFoundError(
                f"{record.name} has no example {example_id!r}: see GET /categories/{{name}}/examples.", field="id"
            )
        return example


def _place_of_version(info: AdapterInfo) -> Place:
    return Place(-info.version, str(info.version))  # the newest comes first


def _place_of_example(example: ExampleInfo) -> Place:
    try:
        added_at = datetime.fromisoformat(example.created_at).timestamp()
    except (ValueError, OverflowError):  # stored by an earlier release, or by somebody else
        added_at = 0.0
    return Place(added_at, example.id)


def _unknown(name: CategoryName) -> NotFoundError:
    return NotFoundError(
        f"There is no category {name.text!r}: teach it with POST /categories/{{name}}/example.", field="name"
    )


def check_adapter(adapter: Adapter, backbone: Backbone) -> None:
    """Refuse an adapter that does not fit a backbone.

    Raises:
        ConflictError: If it was tuned on other weights.
        InvalidInputError: If its tensors are not those that this backbone tunes.
    """
    try:
        adapter.check(backbone)
    except OtherBackboneError as error:
        raise ConflictError(
            f"The adapter was tuned on {adapter.backbone} ({adapter.revision}), this service runs {backbone.name} "
            f"({backbone.revision}): teach the category here, or start the service with that backbone."
        ) from error
    except ValueError as error:
        raise InvalidInputError(
            f"The adapter does not fit the backbone: {error}. Export it again.", field="body"
        ) from error
    if not usable(adapter, backbone, _trial_image(backbone)):
        raise InvalidInputError(
            "The adapter's numbers are so large that it gives no usable scores: export it again.", field="body"
        )


def _trial_image(backbone: Backbone) -> EncodedImage:
    """An image of noise."""
    generator = torch.Generator().manual_seed(0)
    return encode_one(backbone, torch.rand(3, backbone.input_size, backbone.input_size, generator=generator))
