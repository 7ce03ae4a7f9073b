"""Errors of the client: what the service refused, what can't be sent, and services that do not answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from exemplar_client.records import JobState


class FieldError(NamedTuple):
    """A field at fault, and what is wrong with it."""

    field: str
    detail: str


class ExemplarError(Exception):
    """Base class of all errors of this package, except Python's own `OSError` of files that can't be opened.

    Attributes:
        detail: What is wrong and what to do about it.
        status: HTTP status; None if the request was not sent or not answered.
        errors: The fields at fault.
        request_id: Id under which the service logged the request; None if it was not answered.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        errors: Sequence[FieldError] = (),
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.errors = list(errors)
        self.request_id = request_id


class Invalid(ExemplarError):
    """An image, a mask or an option can't be used: refused by the service, or already before sending."""


class TooLarge(Invalid):
    """A size limit of the service is exceeded."""


class UnsupportedMedia(Invalid):
    """The service does not read this file format."""


class Unauthorized(ExemplarError):
    """The service needs an API key, or does not know this one."""


class Forbidden(ExemplarError):
    """The key's scope is too low, or the service does not answer this machine."""


class NotFound(ExemplarError):
    """There is no such category, version, example or job."""


class Conflict(ExemplarError):
    """The state does not allow it: another model's adapter, a job that has ended, a changed version."""


class Unavailable(ExemplarError):
    """The service can't be reached, or a part of it does not answer; all tries are used up."""


class Overloaded(Unavailable):
    """The service's queue is full, or this caller sends too many requests; all tries are used up."""


class ServerFault(ExemplarError):
    """The service failed by an error of its own; its log has the details under `request_id`."""


class JobFailed(ExemplarError):
    """A job that was waited for ended without success: failed, cancelled, or superseded by a newer example.

    Attributes:
        job: Its final state.
    """

    _REASONS: ClassVar = {
        "cancelled": "it was cancelled",
        "superseded": "a newer example of the category was sent: wait for the job of that one",
    }

    def __init__(self, job: JobState) -> None:
        reason = job.error or self._REASONS.get(job.status, "the service gave no reason")
        super().__init__(f"Job {job.id} of {job.category or 'no category'} ended as {job.status}: {reason}.")
        self.job = job


class BatchFailed(ExemplarError):
    """Some photos of a batch have no result; those of the others were given.

    Attributes:
        failures: (photo as it was given, error) of each photo without a result.
    """

    def __init__(self, failures: Sequence[tuple[object, ExemplarError]], names: Sequence[str]) -> None:
        listed = "; ".join(f"{name}: {error.detail}" for name, (_, error) in zip(names[:3], failures, strict=False))
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        count = f"{len(failures)} photos have" if len(failures) > 1 else "1 photo has"
        super().__init__(f"{count} no result: {listed}{more}")
        self.failures = list(failures)


_BY_STATUS: dict[int, type[ExemplarError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    413: TooLarge,
    415: UnsupportedMedia,
    422: Invalid,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def error_of(status: int, problem: object, *, request_id: str | None = None) -> ExemplarError:
    """The error that an answer describes.

    Args:
        status: HTTP status, 400 or above.
        problem: The parsed body: RFC 9457 problem details, or anything else that a proxy may send.
        request_id: The header `X-Request-ID`.

    Returns:
        An error of the class for the status.
    """
    fields = problem if isinstance(problem, dict) else {}
    kind = _BY_STATUS.get(status, ServerFault if status >= 500 else ExemplarError)
    if kind is Unavailable and fields.get("title") == "Overloaded":
        kind = Overloaded
    listed = fields.get("errors")
    errors = [
        FieldError(str(item.get("field")), str(item.get("detail")))
        for item in (listed if isinstance(listed, list) else ())
        if isinstance(item, dict)
    ]
    detail = str(fields.get("detail") or f"The service answered {status}.")
    return kind(detail, status=status, errors=errors, request_id=request_id)
