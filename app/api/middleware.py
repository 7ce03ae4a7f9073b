"""What happens to every request before and after its route: who may call, how large it may be, what is counted."""

from __future__ import annotations

import ipaddress
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.errors import ForbiddenError, TooLargeError
from app.metrics import Metrics

# A method is any word that a caller likes: as a label it would be a way to fill the memory.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# A refused body is read to its end, up to this many times the limit, since most clients look for the answer only then.
_DRAINED_LIMITS = 8


class Measured:
    """Counts and times requests by route template."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and record the outcome."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        metrics: Metrics = scope["state"]["service"].metrics
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with metrics.inflight.track_inprogress():
                await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.requests.labels(route, method, str(status)).inc()
            metrics.request_duration.labels(route, method).observe(time.perf_counter() - started)


class LoopbackOnly:
    """Refuses callers from other machines."""

    def __init__(self, app: ASGIApp, *, allow_anonymous: bool) -> None:
        self._app = app
        self._allow_anonymous = allow_anonymous

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application if the caller may call it."""
        if scope["type"] != "http" or self._allow_anonymous or is_loopback(scope.get("client")):
            return await self._app(scope, receive, send)
        error = ForbiddenError(
            "This service answers its own machine only: set EXEMPLAR_ALLOW_ANONYMOUS=true to open it to others."
        )
        await problems.of(error)(scope, receive, send)


class BodyLimit:
    """Refuses bodies that are too large, whether they say so or not."""

    def __init__(self, app: ASGIApp, *, max_upload_bytes: int, many_images_paths: frozenset[str]) -> None:
        self._app = app
        # A photo and its mask, and the form around them.
        self._limit = 2 * max_upload_bytes + 1_048_576
        self._limit_of_many = 8 * max_upload_bytes
        self._many_images_paths = many_images_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on a body that ends before the limit."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = self._limit_of_many if scope["path"] in self._many_images_paths else self._limit
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            return await self._refuse(limit, scope, receive, send)
        seen, answered = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _BodyTooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _BodyTooLargeError:
            if not answered:
                await self._refuse(limit, scope, receive, send)

    async def _refuse(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        drained = 0
        while drained < _DRAINED_LIMITS * limit:
            message = await receive()
            drained += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        error = TooLargeError(f"The request has more than {limit} bytes (see EXEMPLAR_MAX_UPLOAD_BYTES).")
        await problems.of(error)(scope, receive, send)


class _BodyTooLargeError(Exception):
    """Ends the reading of a body that doesn't say its length. Not an AppError: no handler in between may catch it."""


def is_loopback(client: tuple[str, int] | None) -> bool:
    """Whether a caller is on this machine; one without an address came through a unix socket."""
    if client is None:
        return True
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
