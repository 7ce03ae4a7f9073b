"""Middleware of every request: id, metrics, size limit, check of the path."""

from __future__ import annotations

import logging
import re
import time
import uuid

from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.api import problems
from app.errors import InvalidInputError, TooLargeError
from app.metrics import Metrics

_log = logging.getLogger(__name__)

# A method is any word that a caller likes: as a label it would be a way to fill the memory.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# What a caller may name a request: it is written to the log, so nothing that would break a line.
_REQUEST_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)

# The form around the files: names, choices, borders.
_FORM_BYTES = 1024 * 1024

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


class Identified:
    """Gives every request an id: the caller's, if it sent one, which the answer and all log lines about it carry.

    Those of a fault too, which is why faults end here: what Starlette does about them is outside of all middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application under the id; a fault before the answer has begun is logged and becomes a problem."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex

        answered = False

        async def named(message: Message) -> None:
            nonlocal answered
            answered = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        span = trace.get_current_span()
        span.set_attribute("exemplar.request_id", request_id)
        with logs.about(request_id=request_id):
            try:
                await self._app(scope, receive, named)
            except ClientDisconnect:
                _log.info("the caller left before its request was whole")
            except Exception as error:
                if answered:  # half of an answer: only the server can cut the connection, and it logs why
                    raise
                _log.exception("a fault in %s %r", scope["method"], scope["path"])
                span.record_exception(error)
                await problems.fault()(scope, receive, named)


class WholeNames:
    """Refuses an encoded slash: decoded it would end the name and make the rest of it another route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on a path that means what it says."""
        if scope["type"] != "http" or b"%2f" not in scope.get("raw_path", b"").lower():
            return await self._app(scope, receive, send)
        error = InvalidInputError("A name has no slash: use a space or a hyphen.", field="name")
        await problems.of(error)(scope, receive, send)


class BodyLimit:
    """Refuses bodies that are too large, whether they say so or not."""

    def __init__(self, app: ASGIApp, *, max_upload_bytes: int, many_images_paths: frozenset[str]) -> None:
        self._app = app
        # A photo and its mask, and the form around them.
        self._limit = 2 * max_upload_bytes + _FORM_BYTES
        self._limit_of_many = 8 * max_upload_bytes + _FORM_BYTES
        self._many_images_paths = many_images_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on a body that ends before the limit."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = self._limit_of_many if scope["path"] in self._many_images_paths else self._limit
        body = _Body(receive, limit=limit)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            return await self._refuse(body, scope, send)
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, body.receive, watched)
        except _BodyTooLarge:
            if not answered:
                await self._refuse(body, scope, send)

    async def _refuse(self, body: _Body, scope: Scope, send: Send) -> None:
        await body.drain()
        error = TooLargeError(
            f"The request has more than {body.limit} bytes in all: send fewer or smaller files. Each may have "
            "EXEMPLAR_MAX_UPLOAD_BYTES, a request twice as much, one of many photos eight times."
        )
        await problems.of(error)(scope, body.receive, send)


class _Body:
    """A request's body while it is read, and what of it has been read."""

    def __init__(self, receive: Receive, *, limit: int) -> None:
        self.limit = limit
        self._receive = receive
        self._seen = 0
        self._ended = False

    async def receive(self) -> Message:
        """The next piece.

        Raises:
            _BodyTooLarge: If it goes beyond the limit.
        """
        message = await self._next()
        if self._seen > self.limit:
            raise _BodyTooLarge
        return message

    async def drain(self) -> None:
        """Read on to the end and forget it."""
        while not self._ended and self._seen < _DRAINED_LIMITS * self.limit:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message


class _BodyTooLarge(BaseException):
    """Ends the reading of a body that doesn't say its length.

    No `Exception`: FastAPI makes a 400 of each that comes out of reading a body.
    """
