"""Records of categories, examples and adapters as the store keeps them, and how they are read from its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any
from uuid import uuid4

from pydantic import AllowInfNan, Field, TypeAdapter

from app.method.adapter import Adapter, Kept

from . import keys
from .jobs import now
from .records import json_value, text, validated

# Numbers that JSON can tell to a caller.
Finite = Annotated[float, AllowInfNan(False)]
# Sent to callers as a header.
MediaType = Annotated[str, Field(pattern=r"^[a-z]+/[a-z0-9.+-]+$")]

# Descriptions of adapters kept in memory, half a kilobyte each: they never change, and a request that names no
# categories reads those of all.
_INFOS_REMEMBERED = 4096


@dataclass(frozen=True)
class AdapterInfo:
    """Description of an adapter. The HTTP API returns the same fields under the same names.

    The fields with defaults may be missing in the store: other releases may not know them. See `Adapter` for `kept`.
    """

    version: int
    backbone: str = ""
    layers: tuple[int, ...] = ()
    ensemble: tuple[Finite, ...] = ()
    example_iou: Finite = 0.0
    zero_shot_example_iou: Finite = 0.0
    kept: Kept = "adapter"
    bytes: int = 0
    created_at: str = ""


# State of a category that a caller has seen: its generation and the version of the adapter in use, as stored.
Seen = tuple[str, str]
# The state of a category that is not there.
NOT_THERE: Seen = ("0", "")


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
        adapter_sha256: Hash of the file of the adapter in use; empty if an earlier release stored it.
        adapter_problem: Why the adapter in use can't be read; then `adapter` is None. Else None.
        adapter_version: Version of the adapter in use, readable or not; empty if there is none.
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
    adapter_sha256: str = ""
    adapter_problem: str | None = None
    adapter_version: str = ""

    @property
    def seen(self) -> Seen:
        """The part of the record that every change of it changes, as stored."""
        return str(self.generation), self.adapter_version

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
    media_type: MediaType
    width: int
    height: int
    area: int
    sha256: str = ""
    created_at: str = ""

    @property
    def absent(self) -> bool:
        """True for a photo without the category."""
        return not self.area


@dataclass(frozen=True)
class Example(ExampleInfo):
    """An example with its files: the photo as sent, and the mask as a PNG of the photo's size."""

    image: bytes = field(repr=False, kw_only=True)
    mask: bytes = field(repr=False, kw_only=True)


@dataclass(frozen=True)
class StoredCategory:
    """Fields of a category's hash. Those with defaults may be missing: other releases may not know them."""

    name: str
    prompts: tuple[str, ...] = ()
    generation: int = 0
    job: str | None = None
    adapter_version: str | None = None
    adapter_generation: int | None = None
    result_version: str | None = None
    created_at: str = ""


_CATEGORY, _ADAPTER, _EXAMPLE = TypeAdapter(StoredCategory), TypeAdapter(AdapterInfo), TypeAdapter(ExampleInfo)
EXAMPLE_FIELDS = tuple(name for name in ExampleInfo.__dataclass_fields__ if name != "id")


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
    """A new example, with an id of its own unless one is given that was never used."""
    return Example(id or uuid4().hex, media_type, width, height, area, sha256, now(), image=image, mask=mask)


def example_items(example: Example) -> list[Any]:
    """Fields of an example's hash, each followed by its value."""
    fields = asdict(example)
    del fields["id"]
    return [part for item in fields.items() for part in item]


def adapter_info(adapter: Adapter, size: int) -> AdapterInfo:
    """Description of an adapter whose file has so many bytes."""
    return AdapterInfo(
        version=adapter.version,
        backbone=adapter.backbone,
        layers=adapter.layers,
        ensemble=adapter.ensemble,
        example_iou=adapter.example_iou,
        zero_shot_example_iou=adapter.zero_shot_example_iou,
        kept=adapter.kept,
        bytes=size,
        created_at=adapter.created_at,
    )


def read_category(category_id: str, fields: Mapping[bytes, bytes]) -> StoredCategory:
    """A category's hash.

    Raises:
        ValueError: If it can't be read.
    """
    known = [name for name in StoredCategory.__dataclass_fields__ if name != "prompts"]
    values: dict[str, Any] = {name: text(name, fields[name.encode()]) for name in known if name.encode() in fields}
    if b"prompts" in fields:
        values["prompts"] = json_value("prompts", fields[b"prompts"])
    stored = validated(_CATEGORY, values)
    if keys.category_id(stored.name) != category_id:
        raise ValueError("name: it is that of another category")
    return stored


def read_example_info(example_id: str, values: Sequence[bytes | None]) -> ExampleInfo:
    """An example's description.

    Args:
        example_id: Its id.
        values: Of `EXAMPLE_FIELDS`; None for one that is missing.

    Raises:
        ValueError: If it can't be read.
    """
    given = zip(EXAMPLE_FIELDS, values, strict=True)
    fields = {name: text(name, value) for name, value in given if value is not None}
    return validated(_EXAMPLE, {**fields, "id": example_id})


def read_example(example_id: str, fields: Mapping[bytes, bytes]) -> Example:
    """An example's hash.

    Raises:
        ValueError: If it can't be read.
    """
    info = read_example_info(example_id, [fields.get(name.encode()) for name in EXAMPLE_FIELDS])
    return Example(**asdict(info), image=_file(fields, "image"), mask=_file(fields, "mask"))


def _file(fields: Mapping[bytes, bytes], name: str) -> bytes:
    if name.encode() not in fields:
        raise ValueError(f"{name}: Field required")
    return fields[name.encode()]


@lru_cache(maxsize=_INFOS_REMEMBERED)
def read_adapter_info(version: str, raw: bytes) -> AdapterInfo:
    """A version's description.

    Raises:
        ValueError: If it can't be read.
    """
    fields = json_value("description", raw)
    if not isinstance(fields, dict):
        raise ValueError("description: not a JSON object")
    info = validated(_ADAPTER, {"version": version, **fields})
    # Earlier releases told by the two scores alone that the words were kept.
    if "kept" not in fields and info.example_iou < info.zero_shot_example_iou:
        return replace(info, kept="words")
    return info
