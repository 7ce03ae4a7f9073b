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
UnlessMatch = Annotated[
    Maybe[str],
    Header(alias="If-None-Match", description="Nothing is done if the category has this ETag, or with * if it exists."),
]

# OpenAPI: the header of an answer, and that of one which has not changed.
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": {"schema": {"type": "string"}, "description": "Changes with the content."}}},
    304: {"description": "Not Modified"},
}


def etag_of(content: BaseModel | bytes) -> str:
    """Strong ETag of an answer."""
    raw = content.model_dump_json().encode() if isinstance(content, BaseModel) else content
    return etag_of_hash(hashlib.sha256(raw).hexdigest())


def etag_of_hash(sha256: str) -> str:
    """Strong ETag of an answer with this hash, in hexadecimal digits."""
    return f'"{sha256[:32]}"'


def matches(if_none_match: str, *etags: str) -> bool:
    """True if a header names one of these ETags, weak or not, or any at all."""
    return _is_named({part.removeprefix("W/") for part in _parts(if_none_match)}, etags)


def names_state(if_match: str, *etags: str) -> bool:
    """True if a header names one of these ETags, or any at all; a weak ETag tells no state."""
    return _is_named(_parts(if_match), etags)


def check_if_match(header: str | None, *etags: str) -> None:
    """Refuse a change of something that is no longer what the caller knows.

    Raises:
        PreconditionFailedError: If the header names none of these ETags.
    """
    if header is not None and not names_state(header, *etags):
        raise PreconditionFailedError(CHANGED)


def check_unless_match(header: str | None, *etags: str, name: str) -> None:
    """Refuse a change of a category that is there, or is what the header names.

    Raises:
        PreconditionFailedError: If the header names one of these ETags, or any at all.
    """
    if header is not None and matches(header, *etags):
        raise PreconditionFailedError(
            f"{name} is there already, as If-None-Match names it: import under another name, or send its ETag as "
            "If-Match to replace its adapter."
        )


def _parts(header: str) -> set[str]:
    return {part.strip() for part in header.split(",")}


def _is_named(named: set[str], etags: tuple[str, ...]) -> bool:
    return "*" in named or not named.isdisjoint(etags)
