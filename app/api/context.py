"""Shared parts of the routes: the service of a request, names in paths, uploads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Request, UploadFile
from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app.api.paths import under_prefix
from app.errors import InvalidInputError, TooLargeError
from app.storage.names import CategoryName
from app.wiring import Service

Value = TypeVar("Value")


def live_service(request: Request) -> Service:
    """The running service, started by the lifespan."""
    return cast(Service, request.state.service)


Live = Annotated[Service, Depends(live_service)]


async def category_name(name: str) -> CategoryName:
    """The category that the path names."""
    return CategoryName.parse(name)


async def new_category_name(name: str) -> CategoryName:
    """The category that the path names, which the call may make."""
    parsed = CategoryName.parse(name)
    parsed.check_new()
    return parsed


Name = Annotated[CategoryName, Depends(category_name)]
NewName = Annotated[CategoryName, Depends(new_category_name)]


class _NeverNull:
    """Removes null from a field's schema, because forms, queries and headers can't carry null."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        choices = [choice for choice in schema.pop("anyOf", ()) if choice != {"type": "null"}]
        return schema | (choices[0] if choices else {})


# An optional field.
Maybe = Annotated[Value | None, _NeverNull()]


def location_of_job(request: Request, job_id: str) -> dict[str, str]:
    """The header with the address of a job that a request started."""
    return {"Location": under_prefix(request.scope, f"/jobs/{job_id}")}


def check_text(text: str | None, *, field: str, service: Service, limit: int | None = None) -> None:
    """Refuse a text field with more characters than its limit, or else than an upload may have bytes.

    Raises:
        TooLargeError: If it is longer.
    """
    size = len(text or "")
    if limit is not None and size > limit:
        raise TooLargeError(f"{field} has {size} characters: at most {limit} are read.", field=field)
    _check_size(size, field=field, unit="characters", service=service)


async def read_upload(file: UploadFile, *, field: str, service: Service) -> bytes:
    """Read an uploaded file.

    Raises:
        TooLargeError: If it exceeds the limit of one upload.
    """
    _check_size(file.size or 0, field=field, unit="bytes", service=service)
    await file.seek(0)  # a batch reads a photo again that had to wait
    return await file.read()


def check_count(images: Sequence[UploadFile], service: Service) -> None:
    """Refuse more photos than one request may have.

    Raises:
        InvalidInputError: If there are more.
    """
    limit = service.settings.max_batch_images
    if len(images) > limit:
        raise InvalidInputError(
            f"{len(images)} photos are too many: at most {limit} in one request (EXEMPLAR_MAX_BATCH_IMAGES).",
            field="images",
        )


def _check_size(size: int, *, field: str, unit: str, service: Service) -> None:
    limit = service.settings.max_upload_bytes
    if size > limit:
        raise TooLargeError(
            f"{field} has {size} {unit}: at most {limit} are allowed (EXEMPLAR_MAX_UPLOAD_BYTES).", field=field
        )
