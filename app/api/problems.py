"""Error responses as RFC 9457 `application/problem+json`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.api.paths import path_of, under_prefix
from app.errors import AppError, InvalidInputError, TooLargeError, UnauthorizedError, UnavailableError
from app.storage.connection import StoreError, refuses_writes
from app.storage.records import wrong_type

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class FieldError(BaseModel):
    """A field at fault, and what is wrong with it."""

    field: str
    detail: str


class Problem(BaseModel):
    """An error response (RFC 9457): why the request was refused, and what to do about it."""

    type: str = Field(examples=["urn:exemplar:problem:not-found"])
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []


def problem(
    status: int, title: str, detail: str, *, errors: Sequence[FieldError] = (), headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error response with this status, title and detail."""
    return _answer(_problem(status, title, detail, errors), headers)


def about(error: AppError | StoreError) -> Problem:
    """The problem that describes an error to the caller."""
    refused = _refusal(error)
    errors = [FieldError(field=refused.field, detail=refused.detail)] if refused.field else []
    return _problem(refused.status, refused.title, refused.detail, errors)


def of(error: AppError | StoreError) -> JSONResponse:
    """The response to an error of the caller or of the store."""
    refused = _refusal(error)
    headers = {}
    if refused.retry_after_s is not None:
        headers["Retry-After"] = str(refused.retry_after_s)
    if isinstance(refused, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return _answer(about(refused), headers)


def fault() -> JSONResponse:
    """The response to an error of the service itself; it contains no traceback."""
    return problem(500, "Internal error", "The service failed because of an error of its own; its log has the details.")


def _problem(status: int, title: str, detail: str, errors: Sequence[FieldError]) -> Problem:
    slug = title.lower().replace(" ", "-")
    return Problem(type=f"urn:exemplar:problem:{slug}", title=title, status=status, detail=detail, errors=list(errors))


def _answer(body: Problem, headers: dict[str, str] | None) -> JSONResponse:
    return JSONResponse(body.model_dump(), status_code=body.status, headers=headers, media_type=MEDIA_TYPE)


def _refusal(error: AppError | StoreError) -> AppError:
    if isinstance(error, AppError):
        return error
    if wrong_type(error):
        _log.error("a key of the store has another type than expected: %s", error)
        return AppError(
            "A key of the store has another type than this service gives it: delete it or restore the store."
        )
    if refuses_writes(error):
        _log.error("the store takes no writes: %s", error)
        return UnavailableError("The store takes no writes at present: send the request again in a few seconds.")
    _log.error("the store does not answer: %s", error)
    return UnavailableError("The store does not answer: send the request again in a few seconds.")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the error responses of a route; those common to all routes are added."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*statuses, 401, 403, 422, 429, 503})
    }


def install(app: FastAPI) -> None:
    """Register handlers that answer expected errors with a problem; the middleware handles unexpected ones."""
    app.add_exception_handler(AppError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(StoreError, _refused)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, (AppError, StoreError))
    return of(error)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [_field_error(item) for item in error.errors()]
    detail = "; ".join(f"{item.field}: {item.detail}" for item in errors)
    return problem(422, "Invalid input", f"Invalid request: {detail}.", errors=errors)


def _field_error(item: dict[str, Any]) -> FieldError:
    where, *path = item["loc"]
    field = ".".join(str(part) for part in path if not isinstance(part, int)) or str(where)
    match item["type"]:
        case "json_invalid":  # the last item of its location is the position in the text
            return FieldError(field="body", detail=f"not JSON ({item['ctx']['error']} at character {path[-1]})")
        case "model_attributes_type":
            return FieldError(field="body", detail="send JSON, with the header Content-Type: application/json")
        case "value_error" if "UploadFile" in item["msg"]:
            return FieldError(field=field, detail="expected a file, got text (curl: -F image=@photo.jpg)")
        case _ if isinstance(item.get("input"), UploadFile):
            return FieldError(field=field, detail=f"expected text, got a file (curl: -F '{field}=<file')")
    return FieldError(field=field, detail=item["msg"])


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400 and (too_much := _too_much_of_a_form(request, error)):
        return of(too_much)
    headers = dict(error.headers or {})
    if error.status_code == 405 and (methods := _methods_of_path(request)):
        headers["Allow"] = methods
    phrase = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != phrase else f"{phrase}: see /docs for the available calls."
    if error.status_code == 404 and (path := _path_without_slashes(request)):
        sent = request.scope["path"]
        detail = f"There is nothing at {sent}: call {under_prefix(request.scope, path)}, without the extra slash."
    return problem(error.status_code, phrase.capitalize(), detail, headers=headers)


def _too_much_of_a_form(request: Request, error: HTTPException) -> AppError | None:
    """The error of a form above Starlette's limits, in terms of our settings; Starlette names limits of its own."""
    settings = request.state.service.settings
    match error.detail.split()[:2]:
        case "Too", "many" if "files" in error.detail:
            limit = settings.max_batch_images
            return InvalidInputError(f"Too many files: at most {limit} photos a request (EXEMPLAR_MAX_BATCH_IMAGES).")
        case "Too", "many" if "fields" in error.detail:
            limit = settings.max_categories
            return InvalidInputError(f"Too many fields: at most {limit} names in one field (EXEMPLAR_MAX_CATEGORIES).")
        case (("Part" | "Field"), "exceeded"):
            limit = settings.max_upload_bytes
            return TooLargeError(f"A text field is too long: at most {limit} characters (EXEMPLAR_MAX_UPLOAD_BYTES).")
    return None


def _path_without_slashes(request: Request) -> str | None:
    """The path that was meant, if a call has it without slashes at its ends."""
    sent = path_of(request.scope)
    path = f"/{sent.strip('/')}"
    known = (compile_path(template)[0] for template in (*request.app.openapi()["paths"], "/docs"))
    return path if path != sent and any(pattern.match(path) for pattern in known) else None


def _methods_of_path(request: Request) -> str:
    """All methods of a path; Starlette reports only those of its first route."""
    template = getattr(request.scope.get("route"), "path", "")
    methods = {method.upper() for method in request.app.openapi()["paths"].get(template, ())}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
