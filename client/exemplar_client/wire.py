"""Requests, answers and retries, without input and output.

A call to the service is a *flow*: a generator that yields effects (send this request, read a line, wait) and is sent
their results, and that returns the call's result or raises. `sync_client` and `async_client` perform the effects; what
is sent, how answers are read and when a request is sent again is decided by flows alone, so it exists once.
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from exemplar_client.errors import ExemplarError, Invalid, Overloaded, Unavailable, error_of

Result = TypeVar("Result")

# Visible ASCII: valid in a header and never stripped.
HEADER_VALUE = re.compile(r"[!-~]+")

# Longest pause if the service names none: a restarted service is noticed soon.
_MAX_BACKOFF_S = 5.0

# Exceptions before the first byte of the request was sent.
_BEFORE_SENDING = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class File(NamedTuple):
    """A file of a form: the field, the file's name and its content."""

    field: str
    name: str
    content: bytes


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        method: HTTP method.
        path: Path, its parts percent-encoded.
        params: Query parameters.
        fields: Text fields of the form; each value of a list is sent as a field of its own.
        files: Files of the form.
        json: Body as JSON, if it is no form.
        content: Body as bytes, if it is neither.
        headers: Further headers.
        expects: Media type of a good answer; None if it has no body.
        stream: True to leave the body of a good answer for `NextLine`.
        repeatable: True if doing it twice is the same as doing it once, so that it may be sent again although the first
            one may have been done.
        timeout_s: Seconds without a byte after which the connection counts as lost; None = the client's default.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Sequence[File] = ()
    json: object = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    expects: str | None = "application/json"
    stream: bool = False
    repeatable: bool = True
    timeout_s: float | None = None


@dataclass(frozen=True)
class Reply:
    """An answer. Header names are in lower case; the body of a stream is empty."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Lost:
    """No answer, or not all of it: why, and whether the service can have received the request."""

    reason: str
    received: bool


@dataclass(frozen=True)
class Send:
    """Effect: send a request. Its result is a `Reply` or `Lost`."""

    request: Request


@dataclass(frozen=True)
class NextLine:
    """Effect: read the next line of the last streamed answer. Its result is the text, None at the end, or `Lost`."""


@dataclass(frozen=True)
class Pause:
    """Effect: wait. Its result is None."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Effect: call a function that reads files or computes. Its result is what the function returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Emit:
    """Effect: hand a value to the caller, of a flow with several results. Its result is None."""

    value: Any


Effect: TypeAlias = Send | NextLine | Pause | Work | Emit
Flow: TypeAlias = Generator[Effect, Any, Result]


@dataclass
class Service:
    """The service that a client calls.

    Attributes:
        url: Its address.
        proxy: Host and port of the proxy on the way to it.
        answered: True once it has answered a request, so that the address is right.
    """

    url: str
    proxy: str | None = None
    answered: bool = False


@dataclass(frozen=True)
class Retries:
    """When a request is sent again, and after how long.

    Attributes:
        tries: Largest number of tries of one request, 1 or more.
        max_pause_s: Longest pause; a service that names a longer one in `Retry-After` is not waited for.
        restart_s: Time for which a service that has answered before may refuse connections, however many tries that
            takes: loading a model takes longer than five tries.

    Raises:
        Invalid: No try at all.
    """

    tries: int = 5
    max_pause_s: float = 90.0
    restart_s: float = 60.0

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise Invalid(f"tries is {self.tries}: give 1 or more.")

    def pause_s(
        self, request: Request, reply: Reply | Lost, tried: int, *, refused_for_s: float = math.inf
    ) -> float | None:
        """Seconds until the next try, or None if there is none.

        Args:
            request: What was sent.
            reply: What came back.
            tried: Number of tries so far that ended like this one.
            refused_for_s: Time for which a service that has answered before refuses connections.
        """
        if (tried >= self.tries and refused_for_s >= self.restart_s) or not _may_repeat(request, reply):
            return None
        named = _retry_after_s(reply.headers) if isinstance(reply, Reply) else None
        if named is None:
            return self.backoff_s(tried)
        return named if named <= self.max_pause_s else None

    def backoff_s(self, tried: int) -> float:
        """Seconds until the next try if the service names none: doubled each time, and random so that many callers
        do not come back at once.
        """
        return min(_MAX_BACKOFF_S, 0.5 * 2.0 ** (tried - 1)) * random.uniform(0.5, 1)


def _may_repeat(request: Request, reply: Reply | Lost) -> bool:
    if isinstance(reply, Lost):
        return request.repeatable or not reply.received
    if reply.status == 409:  # the first try of a request with an Idempotency-Key is still at work
        return "retry-after" in reply.headers
    if isinstance(error_of(reply.status, _problem_in(reply)), Overloaded):  # refused before anything was done
        return True
    # Any other 503 leaves open whether it was done: a replica died, or the store did not answer in time.
    return reply.status in (502, 503, 504) and request.repeatable


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of the header Retry-After, which is a number or a date."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def send(request: Request, retries: Retries, service: Service) -> Flow[Reply]:
    """Send a request until it is answered or the tries are used up; a service that restarts is waited for.

    Args:
        request: The request.
        retries: When it is sent again.
        service: Where it is sent; learns that the service answers.

    Returns:
        The answer, which is no error and has the expected media type.

    Raises:
        ExemplarError: The error that the service answered with, or `Unavailable` without an answer.
    """
    tried = refused = 0
    refused_at_s: float | None = None
    while True:
        reply: Reply | Lost = yield Send(request)
        if isinstance(reply, Reply):
            service.answered = True
            if reply.status < 300:
                _check_media_type(request, reply, service.url)
                return reply
        if service.answered and isinstance(reply, Lost) and not reply.received:  # it may be restarting
            refused += 1
            now_s = time.monotonic()
            refused_at_s = now_s if refused_at_s is None else refused_at_s
            pause_s = retries.pause_s(request, reply, refused, refused_for_s=now_s - refused_at_s)
        else:
            tried += 1
            pause_s = retries.pause_s(request, reply, tried)
        if pause_s is None:
            raise error_in(reply, service)
        yield Pause(pause_s)


def until(deadline_s: float, flow: Flow[Result], *, told: str) -> Flow[Result]:
    """Run a flow until a deadline: its requests get the time that is left, and its pauses end then.

    Args:
        deadline_s: Time of the monotonic clock.
        flow: The flow.
        told: What the error says.

    Returns:
        What the flow returns.

    Raises:
        TimeoutError: The deadline has passed.
    """
    result: Any = None
    while True:
        try:
            effect = flow.send(result)
        except StopIteration as end:
            value: Result = end.value
            return value
        except Unavailable as error:
            if time.monotonic() < deadline_s:
                raise
            raise TimeoutError(told) from error
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 and not isinstance(effect, Emit):
            raise TimeoutError(told)
        result = yield _shortened(effect, left_s)


def _shortened(effect: Effect, left_s: float) -> Effect:
    match effect:
        case Send(request):
            timeout_s = left_s if request.timeout_s is None else min(request.timeout_s, left_s)
            return Send(replace(request, timeout_s=timeout_s))
        case Pause(seconds):
            return Pause(min(seconds, left_s))
    return effect


def error_in(reply: Reply | Lost, service: Service) -> ExemplarError:
    """The error that a reply stands for."""
    if isinstance(reply, Lost):
        return _unavailable(reply, service)
    if 300 <= reply.status < 400:
        location = reply.headers.get("location", "another address")
        return ExemplarError(f"{service.url} redirects to {location}: use that address.", status=reply.status)
    return error_of(reply.status, _problem_in(reply), request_id=reply.headers.get("x-request-id"))


def _problem_in(reply: Reply) -> object:
    try:
        problem: object = json.loads(reply.body)
    except ValueError:
        return None
    return problem


def _unavailable(lost: Lost, service: Service) -> Unavailable:
    where = f"at {service.url}"
    if service.proxy:
        where += (
            f" through the proxy {service.proxy}, which the environment names; NO_PROXY names addresses without one"
        )
    if service.answered:
        return Unavailable(
            f"The service {where} does not answer any more ({lost.reason}): start it and repeat the call. Jobs that it "
            "has accepted go on."
        )
    return Unavailable(f"No service answers {where} ({lost.reason}): start it, or correct the address.")


def _check_media_type(request: Request, reply: Reply, url: str) -> None:
    sent = reply.headers.get("content-type", "nothing")
    if request.expects and sent.partition(";")[0].strip().lower() != request.expects:
        raise ExemplarError(
            f"{url} is not an Exemplar service (it sent {sent}): correct the address.",
            status=reply.status,
            request_id=reply.headers.get("x-request-id"),
        )


def next_page(reply: Reply) -> dict[str, str] | None:
    """Query parameters of the next page of a list, from the header Link; None on the last page."""
    for link in re.finditer(r"<([^>]*)>([^,]*)", reply.headers.get("link", "")):
        if re.search(r';\s*rel="?next"?', link[2]):
            return dict(parse_qsl(urlsplit(link[1]).query))
    return None


def check_arguments(url: str, key: str | None, *, timeout_s: float) -> None:
    """Check the arguments of a client.

    Raises:
        Invalid: Not an address, a key that no header can carry, or no time at all.
    """
    try:
        urlsplit(url)  # finds more that is wrong, such as "http://[bad"
        parts = httpx2.URL(url)
        parts.raw_host.decode().encode("idna")  # as sockets do, which refuse empty and long parts of a name
        is_address = parts.scheme in ("http", "https") and bool(parts.host)
    except (httpx2.InvalidURL, ValueError):
        is_address = False
    if not is_address:
        raise Invalid(f"{url!r} is not an address: write it like http://127.0.0.1:8000.")
    if key is not None and not HEADER_VALUE.fullmatch(key):
        raise Invalid("The API key contains invalid characters: copy it again.")
    if timeout_s <= 0:
        raise Invalid(f"timeout_s is {timeout_s:g}: give seconds above 0.")


def proxy_of(url: str) -> str | None:
    """Host and port of the proxy that the environment names for an address, without user and password."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy.rpartition("@")[2].rpartition("//")[2].rstrip("/")


@contextmanager
def checking_proxies() -> Iterator[None]:
    """Turn what httpx2 raises about the proxies of the environment into `Invalid`."""
    try:
        yield
    except ImportError as error:
        raise Invalid("The environment names a SOCKS proxy: pip install 'httpx2[socks]', or unset it.") from error
    except (ValueError, httpx2.InvalidURL) as error:
        raise Invalid(f"A proxy that the environment names can't be used: {error}") from error


def form_of(request: Request) -> dict[str, Any]:
    """Arguments of httpx2's `build_request`."""
    given: dict[str, Any] = {"method": request.method, "url": request.path, "headers": dict(request.headers)}
    if request.params:
        given["params"] = dict(request.params)
    if request.files:
        given["data"] = {name: list(values) for name, values in request.fields.items()}
        given["files"] = [(file.field, (file.name, file.content)) for file in request.files]
    if request.json is not None:
        given["json"] = request.json
    if request.content is not None:
        given["content"] = request.content
    if request.timeout_s is not None:
        given["timeout"] = request.timeout_s
    return given


def lost(error: httpx2.RequestError) -> Lost:
    """What an exception of httpx2 means; some have no text."""
    return Lost(str(error) or type(error).__name__, received=not isinstance(error, _BEFORE_SENDING))
