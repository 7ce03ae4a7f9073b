"""Fields of a request as people send them: lists in three forms; unknown and repeated fields are refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from fastapi import Request, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from app.errors import InvalidInputError, UnsupportedMediaError
from app.storage.names import MAX_DECOMPOSED, MAX_NAME_LENGTH, PER_REQUEST, CategoryName, parse_names

_MULTIPART = "multipart/form-data"
_URL_ENCODED = "application/x-www-form-urlencoded"

# First characters of a list or an object in JSON, and of a quoted text.
_JSON_STARTS = ("[", "{", '"')

# Characters of a name in its longest form: decomposed, and escaped in JSON. Only letters of at most two parts need two
# escapes a part. The rest is for quotes, a comma and blanks.
_MAX_NAME_TEXT = MAX_NAME_LENGTH * MAX_DECOMPOSED * len(r"\u0301") + 512

# An unknown name can be anything, such as a whole file sent without a form.
_SHOWN_CHARACTERS = 64


def names_in(
    texts: Sequence[str] | None, *, field: str, limit: int, setting: str = PER_REQUEST
) -> tuple[CategoryName, ...]:
    """Names of a list field in their order, each once: sent as repeated fields, separated by commas, or as a JSON list.

    A name that has a comma itself can only be sent in a JSON list.

    Args:
        texts: Values of the field; None if it was not sent. One empty text counts as that: browsers send unused fields
            of a form empty.
        field: Name of the field.
        limit: Largest number of names.
        setting: Name of the setting that is the limit.

    Raises:
        InvalidInputError: If one is not a name, there are too many, or the JSON is not a list of texts.
    """
    if texts == [""]:
        return ()
    # Before they are split: all other requests would wait while millions of them are made, only to be counted.
    if (size := sum(map(len, texts or ()))) > limit * _MAX_NAME_TEXT:
        raise InvalidInputError(
            f"{field} has {size} characters, more than {limit} names have: at most {limit} in one request ({setting}).",
            field=field,
        )
    names = [name for text in texts or () for name in _split(text, field)]
    return parse_names(names, field=field, limit=limit, setting=setting)


async def check_fields(request: Request) -> None:
    """Refuse a request with a field or query parameter that its call does not have, or with two values for one.

    Otherwise FastAPI would ignore the former and use the last of the latter. A form that is no form is refused too.

    Raises:
        InvalidInputError: If there is one.
        UnsupportedMediaError: If a file is sent without a form.
    """
    route = request.scope["route"]
    if not isinstance(route, APIRoute) or not route.include_in_schema:
        return
    known = _known(route)
    _check(request.query_params.multi_items(), known.query, place="query parameter", elsewhere=known.form)
    if not known.form:
        return
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (_MULTIPART, _URL_ENCODED) and (media_type or _has_body(request)):
        raise _not_a_form(request, media_type, known)
    sent = (await request.form()).multi_items()
    if sent and media_type == _URL_ENCODED and not known.form.keys() & dict(sent).keys():
        raise _not_a_form(request, "a file without a form", known)  # curl --data-binary @photo.jpg
    _check(sent, known.form, place="field", elsewhere=known.query)


@dataclass(frozen=True)
class _Known:
    """Fields of a call: by name whether the field is a list."""

    query: dict[str, bool]
    form: dict[str, bool]
    files: tuple[str, ...]


def _known(route: APIRoute) -> _Known:
    """Fields of a route and of its dependencies."""
    query: dict[str, bool] = {}
    form: dict[str, bool] = {}
    files: list[str] = []
    waiting: list[Dependant] = [route.dependant]
    while waiting:
        dependant = waiting.pop(0)
        waiting += dependant.dependencies
        query |= {field.alias: _is_list(field.field_info.annotation) for field in dependant.query_params}
        fields = [field for field in dependant.body_params if isinstance(field.field_info, params.Form)]
        form |= {field.alias: _is_list(field.field_info.annotation) for field in fields}
        files += [field.alias for field in fields if isinstance(field.field_info, params.File)]
    return _Known(query, form, tuple(files))


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(_is_list(choice) for choice in get_args(annotation) if choice is not NoneType)
    return get_origin(annotation) is list


def _check(
    sent: Iterable[tuple[str, object]], known: dict[str, bool], *, place: str, elsewhere: dict[str, bool]
) -> None:
    times = Counter(name for name, _ in sent)
    for name in sorted(times):
        if name not in known:
            raise InvalidInputError(
                _about_unknown(name, known, place=place, elsewhere=elsewhere), field=name[:_SHOWN_CHARACTERS]
            )
        if times[name] > 1 and not known[name]:
            raise InvalidInputError(f"{name} was sent {times[name]} times: send it once.", field=name)


def _about_unknown(name: str, known: dict[str, bool], *, place: str, elsewhere: dict[str, bool]) -> str:
    bare = name.partition("[")[0]
    if bare != name and bare in known:
        once = f"for each value ({bare}=a and {bare}=b)" if known[bare] else ""
        return f"{name[:_SHOWN_CHARACTERS]} is not a {place} of this call: send {bare} once {once}".rstrip() + "."
    if name in elsewhere:
        other = f"in the query ({name}=…)" if place == "field" else f"as a field of the form (curl: -F {name}=…)"
        return f"{name} is not a {place} of this call: send it {other}."
    near = get_close_matches(name.lower()[:_SHOWN_CHARACTERS], known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    names = f"It has {', '.join(known)}." if known else "It has none."
    return f"There is no {place} {name[:_SHOWN_CHARACTERS]!r} in this call: {hint}{names}"


def _not_a_form(request: Request, sent: str, known: _Known) -> UnsupportedMediaError:
    options = " ".join(f"-F {name}=@{'mask.png' if name == 'mask' else 'photo.jpg'}" for name in known.files)
    return UnsupportedMediaError(
        f"This call reads a form with files ({_MULTIPART}), not {sent or 'a body without Content-Type'}: send it like "
        f"curl {options} {request.url.replace(query='')}"
    )


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def _split(text: str, field: str) -> list[str]:
    if not text.lstrip().startswith(_JSON_STARTS):
        return text.split(",")
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInputError(
            f"This value of {field} looks like JSON, but is not a list of texts: send {field} once for each, a,b or "
            '["a", "b"].',
            field=field,
        )
    return names
