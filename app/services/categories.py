"""What can be asked of a category besides segmenting: look, delete, go back to a version, export, import."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from app.errors import ConflictError, InvalidInputError, NotFoundError
from app.method.adapter import TOKEN_IDS, TOKEN_ROWS, Adapter, adapter_from_bytes
from app.services.models import Models
from app.services.segmentation import fits
from app.storage import keys
from app.storage.categories import AdapterInfo, CategoryRecord, CategoryStore, Example
from app.storage.jobs import JobStore

MAX_NAME_LENGTH = 64


def clean_name(name: str, *, field: str = "name") -> str:
    """A name as it is stored: composed form, no blanks around it.

    Raises:
        InvalidInputError: If it is empty, too long, or has a slash or a control character.
    """
    try:
        cleaned = unicodedata.normalize("NFC", name).strip()
        cleaned.encode()
    except UnicodeEncodeError:
        raise InvalidInputError("A name is Unicode text: this one has half a surrogate pair.", field=field) from None
    if not 1 <= len(cleaned) <= MAX_NAME_LENGTH:
        raise InvalidInputError(
            f"A name has 1 to {MAX_NAME_LENGTH} characters: this one has {len(cleaned)}.", field=field
        )
    if "/" in cleaned:
        raise InvalidInputError("A name has no slash: use a space or a hyphen.", field=field)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in cleaned):
        raise InvalidInputError("A name has no control characters: remove line breaks and tabs.", field=field)
    return cleaned


def clean_names(names: Sequence[str], *, field: str, limit: int) -> tuple[str, ...]:
    """Names of a request, each once.

    Raises:
        InvalidInputError: If one is no name, or there are too many.
    """
    if len(names) > limit:
        raise InvalidInputError(
            f"{len(names)} {field} are too many: at most {limit} in one request (EXEMPLAR_MAX_CATEGORIES).", field=field
        )
    cleaned = [clean_name(name, field=field) for name in names]
    return tuple({keys.category_id(name): name for name in reversed(cleaned)}.values())[::-1]


class Categories:
    """Categories and their versions.

    Args:
        store: Where they are.
        jobs: Records of the jobs that make them.
        models: The loaded backbones; the default's adapters are what is imported.
    """

    def __init__(self, store: CategoryStore, jobs: JobStore, models: Models) -> None:
        self._store = store
        self._jobs = jobs
        self._models = models

    async def list(self) -> list[CategoryRecord]:
        """All categories, the oldest first."""
        return await self._store.list()

    async def get(self, name: str) -> CategoryRecord:
        """One category.

        Raises:
            NotFoundError: If it was never taught.
        """
        record = await self._store.get(keys.category_id(clean_name(name)))
        if record is None:
            raise NotFoundError(
                f"There is no category {name!r}: teach it with POST /categories/{{name}}/example.", field="name"
            )
        return record

    async def delete(self, name: str) -> None:
        """Remove a category with its examples and versions, and supersede its job."""
        record = await self.get(name)
        await self._store.delete(record.id)
        if record.job:
            await self._jobs.end(record.job, "superseded", error="The category was deleted.")

    async def versions(self, name: str) -> list[AdapterInfo]:
        """Adapter versions that are kept, the newest first."""
        return await self._store.versions((await self.get(name)).id)

    async def rollback(self, name: str, version: int) -> CategoryRecord:
        """Use an older version again.

        Raises:
            NotFoundError: If that version isn't kept.
        """
        record = await self.get(name)
        if not await self._store.rollback(record.id, version):
            kept = ", ".join(str(info.version) for info in await self._store.versions(record.id)) or "none"
            raise NotFoundError(f"{record.name} has no version {version}: kept are {kept}.", field="version")
        return await self.get(name)

    async def export(self, name: str) -> bytes:
        """The adapter in use, as safetensors.

        Raises:
            NotFoundError: If there is none yet.
        """
        record = await self.get(name)
        raw = await self._store.adapter_bytes(record.id, record.adapter.version) if record.adapter else None
        if raw is None:
            raise NotFoundError(f"{record.name} has no adapter yet: wait for its job, or teach it.", field="name")
        return raw

    async def import_(self, name: str, raw: bytes) -> CategoryRecord:
        """Put an exported adapter in use under this name; it gets a version number of its own.

        Raises:
            InvalidInputError: If it isn't an adapter.
            ConflictError: If it was tuned on another backbone.
        """
        cleaned = clean_name(name)
        try:
            adapter = adapter_from_bytes(raw)
        except ValueError as error:
            raise InvalidInputError(
                f"The body is not an adapter: send what GET /categories/{{name}}/adapter gave ({error}).", field="body"
            ) from error
        self._check(adapter)
        prompts = tuple(clean_name(word, field="prompts") for word in adapter.prompts)
        words = [word for word in prompts if keys.category_id(word) != keys.category_id(cleaned)]
        generation = await self._store.install(cleaned, words)
        category_id = keys.category_id(cleaned)
        version = await self._store.next_version(category_id)
        adapter = replace(adapter, category=cleaned, version=version)
        if not await self._store.commit(category_id, adapter, generation=generation):
            raise ConflictError(
                f"{cleaned} was taught at the same moment: send the adapter again if it should replace that."
            )
        return await self.get(cleaned)

    async def examples(self, name: str) -> list[Example]:
        """What the category was taught from."""
        return await self._store.examples((await self.get(name)).id)

    async def example(self, name: str, example_id: str) -> Example:
        """One example.

        Raises:
            NotFoundError: If it isn't there.
        """
        record = await self.get(name)
        example = await self._store.example(record.id, example_id)
        if example is None:
            raise NotFoundError(f"{record.name} has no example {example_id!r}: see GET /categories/{{name}}/examples.")
        return example

    def _check(self, adapter: Adapter) -> None:
        """Refuse an adapter that the default backbone can't run."""
        backbone = self._models.default.backbone
        if not fits(adapter, backbone):
            raise ConflictError(
                f"The adapter was tuned on {adapter.backbone} ({adapter.revision}) and this service runs {backbone.name} "
                f"({backbone.revision}): teach the category here, or start the service with that backbone."
            )
        if max(adapter.layers) >= backbone.layer_count or min(adapter.layers) < 0:
            raise InvalidInputError("The adapter names layers that the backbone doesn't have.", field="body")
        if not adapter.tensors:
            return
        expected = backbone.trainable(adapter.layers, backbone.tokenize(adapter.prompts))
        rows = len(adapter.tensors.get(TOKEN_IDS, ()))
        for tensors in (expected, adapter.tensors):
            if set(tensors) != set(expected):
                raise InvalidInputError("The adapter's tensors are not those that the backbone tunes.", field="body")
        for name, tensor in expected.items():
            shape = (rows, *tensor.shape[1:]) if name in (TOKEN_IDS, TOKEN_ROWS) else tuple(tensor.shape)
            given = adapter.tensors[name]
            if tuple(given.shape) != shape or given.is_floating_point() != tensor.is_floating_point():
                raise InvalidInputError(
                    f"The adapter's {name} is not of the shape that the backbone tunes.", field="body"
                )
