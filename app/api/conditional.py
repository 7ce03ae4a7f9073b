"""Conditional requests: `ETag`, `If-None-Match` and `If-Match` (RFC 9110, sections 8.8.3 and 13.1)."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel

from app.api.context import Maybe
from app.errors import CHANGED, PreconditionFailedError

IfMatch = Annotated[
    Maybe[str],
    Header(alias="If-Match", description="ETag of the category or of its adapter: nothing is done if it has changed."),
]
IfNoneMatch = Annotated[
    Maybe[str], Header(alias="If-None-Match", description="ETag of the answer that is known: 304 if it is the same.")
]

# OpenAPI: the header of an answer, and that of one which has not changed.
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": {"schema": {"type": "string"}, "description": "Changes with the content."}}},
    304: {"description": "Not Modified"},
}


def etag_of(content: BaseModel | bytes) -> str:
    """Strong ETag of an answer."""
    raw = content.model_dump_json().encode() if isinstance(content, BaseModel) else content
    return f'"{hashlib.sha256(raw).hexdigest()[:32]}"'


def matches(header: str | None, *etags: str) -> bool:
    """True if a header of ETags names one of these, or any at all."""
    named = {part.strip().removeprefix("W/") for part in (header or "").split(",")}
    return "*" in named or bool(named.intersection(etags))


def check_if_match(header: str | None, *etags: str) -> None:
    """Refuse a change of something that is no longer what the caller knows.

    Raises:
        PreconditionFailedError: If the header names none of these ETags.
    """
    if header is not None and not matches(header, *etags):
        raise PreconditionFailedError(CHANGED)
