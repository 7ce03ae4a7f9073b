"""Errors that a caller can correct. Each carries its HTTP status and a sentence that says what to do.

A programmer's error is a `ValueError` ("expected …, got …") and is answered with 500.
"""

from __future__ import annotations


class AppError(Exception):
    """Base class: reaches the caller as RFC 9457 `problem+json`, or as one sentence on the command line.

    Args:
        detail: What is wrong with this request and what to do about it.
        field: Name of the request field at fault, if any.
        retry_after_s: Seconds after which the same call may succeed; becomes `Retry-After`.
    """

    status: int = 500
    title: str = "Internal error"

    def __init__(self, detail: str, *, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidInputError(AppError):
    """The request or a setting is well-formed, but its content can't be used."""

    status = 422
    title = "Invalid input"


class TooLargeError(AppError):
    """A size limit was exceeded; the detail names the limit and its setting."""

    status = 413
    title = "Too large"


class UnsupportedMediaError(AppError):
    """The format of the upload is not supported."""

    status = 415
    title = "Unsupported media type"


class NotFoundError(AppError):
    """The named resource does not exist."""

    status = 404
    title = "Not found"


class UnauthorizedError(AppError):
    """The caller sent no key, or an unknown one."""

    status = 401
    title = "Unauthorized"


class ForbiddenError(AppError):
    """The caller is not allowed to do this."""

    status = 403
    title = "Forbidden"


class ConflictError(AppError):
    """The state of the named resource does not allow this."""

    status = 409
    title = "Conflict"


class FullCategoryError(ConflictError):
    """The category has as many examples as it may."""


CHANGED = "The category has changed since its ETag was read: read it again, and send its new ETag as If-Match."


class PreconditionFailedError(AppError):
    """What the caller wants to change has changed meanwhile."""

    status = 412
    title = "Precondition failed"


class OverloadedError(AppError):
    """The queue is full; the same call may succeed later."""

    status = 503
    title = "Overloaded"

    def __init__(self, detail: str, *, field: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(detail, field=field, retry_after_s=retry_after_s)


class TooManyRequestsError(AppError):
    """The caller sent more requests than its limit; the same call may succeed later."""

    status = 429
    title = "Too many requests"


class UnavailableError(AppError):
    """A component that the service needs (the store, a model) does not answer."""

    status = 503
    title = "Unavailable"

    def __init__(self, detail: str, *, field: str | None = None, retry_after_s: int = 5) -> None:
        super().__init__(detail, field=field, retry_after_s=retry_after_s)
