"""Middleware of every request: id, metrics, body size limit, checks of body and path, HEAD."""

from __future__ import annotations

import asyncio
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
from app.api.paths import MANY_IMAGES, path_of
from app.errors import AppError, InvalidInputError, OverloadedError, TooLargeError, UnsupportedMediaError
from app.metrics import Metrics

_log = logging.getLogger(__name__)

# A caller can send any word as the method. As label values such words would fill the memory.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Form of a request id from the caller. It is written to the log, so it has no line breaks.
_REQUEST_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)

# Bytes of a form besides its files: names, options, boundaries.
_FORM_BYTES = 1024 * 1024

# Values of a body of JSON. To read it stops all other requests, for about a tenth of a second per million of them. What
# is large of what callers send has few: a photo in a data URL is one, a region of a brush up to a million.
_MAX_JSON_VALUES = 4_000_000

# A refused body is read to its end and discarded, up to this many times the limit: most clients read the response only
# after they have sent the whole body.
_DRAINED_LIMITS = 8


class Measured:
    """Middleware that counts and times requests by route template."""

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
    """Middleware that gives every request an id, which the response and all its log lines carry.

    The id is the caller's if it sent a valid one. Unexpected errors are handled here, so that their response and log
    lines carry the id too: Starlette's own handler runs outside of all middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with the id; an error before the response has begun is logged and answered with 500."""
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
                _log.info("the caller disconnected before its request was complete")
            except Exception as error:
                if answered:  # the response has begun: the server logs the error and closes the connection
                    raise
                _log.exception("unexpected error in %s %r", scope["method"], scope["path"])
                span.record_exception(error)
                await problems.fault()(scope, receive, named)


class Guarded:
    """Middleware that adds headers which limit what browsers do with an answer; those that an answer has stay."""

    # Answers are data: no browser needs to show them as a page, in a frame, or under a guessed type.
    _HEADERS = (
        ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and add the headers."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._HEADERS:
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, guarded)


class WholeNames:
    """Middleware that refuses an encoded slash: decoded, it would split a name and select another route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application if the path has no encoded slash."""
        if scope["type"] != "http" or b"%2f" not in scope.get("raw_path", b"").lower():
            return await self._app(scope, receive, send)
        error = InvalidInputError("A name can't contain a slash: use a space or a hyphen.", field="name")
        await problems.of(error)(scope, receive, send)


class PlainBodies:
    """Middleware that refuses compressed bodies: parsed as they are, they would be told to be damaged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application if the body is not compressed; else read the body to its end and answer 415."""
        encoding = Headers(scope=scope).get("content-encoding", "identity") if scope["type"] == "http" else "identity"
        if encoding.strip().lower() == "identity":
            return await self._app(scope, receive, send)
        while (await receive()).get("more_body", False):
            pass
        error = UnsupportedMediaError(
            f"The body is compressed (Content-Encoding: {encoding}), which is not read: send it as it is, photos and "
            "masks are compressed files already."
        )
        await problems.of(error)(scope, receive, send)


class Heads:
    """Middleware that answers HEAD with the status and headers of GET; FastAPI's routes know only their own method."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application as for GET, until its headers are known."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        # A copy: the server sends by the method in its own scope.
        as_get = {**scope, "method": "GET"}
        streams = asyncio.Event()

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not streams.is_set():
                await send({"type": "http.response.body", "body": b""})
                if message.get("more_body", False):
                    streams.set()

        answering = asyncio.ensure_future(self._app(as_get, receive, without_body))
        streaming = asyncio.create_task(streams.wait())
        try:
            await asyncio.wait({answering, streaming}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering  # raises what the application raised
        finally:
            # A stream of events would go on until the job ends.
            answering.cancel()
            streaming.cancel()
            await asyncio.gather(answering, streaming, return_exceptions=True)
            if "route" in as_get:
                scope["route"] = as_get["route"]  # for the metrics


class BodyLimit:
    """Middleware that refuses bodies above the size limit, with or without a Content-Length header, or much JSON.

    It also refuses a body for which those of other requests leave no space. A form's files are written to the folder
    for temporary files before its route runs, so before the limits on photos and on the queue.
    """

    def __init__(self, app: ASGIApp, *, max_upload_bytes: int, upload_space_bytes: int) -> None:
        self._app = app
        # A photo, its mask, and the form around them.
        self._limit = 2 * max_upload_bytes + _FORM_BYTES
        self._limit_of_many = 8 * max_upload_bytes + _FORM_BYTES
        self._space = _Space(upload_space_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; refuse the request once its body exceeds the limit or finds no space."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = self._limit_of_many if path_of(scope) in MANY_IMAGES else self._limit
        headers = Headers(scope=scope)
        is_json = "json" in headers.get("content-type", "").partition(";")[0].lower()
        body = _Body(receive, limit=limit, space=self._space, is_json=is_json)
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            # Who asks first (curl, above 1 MiB) has sent nothing yet, and sends nothing after a refusal.
            asks_first = headers.get("expect", "").lower() == "100-continue"
            return await self._refuse(body.too_large, body, scope, send, drain=not asks_first)
        answered, refusal = False, None

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, body.receive, watched)
        except _BodyRefused as stopped:
            refusal = stopped.refusal
        finally:
            body.give_back()
        # Not in the handler above, where the traceback would keep the files that were read so far.
        if refusal and not answered:
            await self._refuse(refusal, body, scope, send)

    async def _refuse(self, refusal: AppError, body: _Body, scope: Scope, send: Send, *, drain: bool = True) -> None:
        if isinstance(refusal, OverloadedError):
            metrics: Metrics = scope["state"]["service"].metrics
            metrics.rejected.labels(reason="upload_space_full").inc()

        async def without_end(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        # The answer is sent before the rest of the body is read, and ends after it: the server may then close the
        # connection, which would cut the answer to a caller that still sends.
        await problems.of(refusal)(scope, body.receive, without_end)
        if drain:
            await body.drain()
        await send({"type": "http.response.body"})


class _Space:
    """The bytes of the bodies of all current requests."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.taken = 0


class _Body:
    """A request body that counts the bytes read so far."""

    def __init__(self, receive: Receive, *, limit: int, space: _Space, is_json: bool) -> None:
        self._limit = limit
        self._space = space
        self._own = 0  # bytes of the space
        self._is_json = is_json
        self._commas = 0
        self._receive = receive
        self._seen = 0
        self._ended = False

    @property
    def too_large(self) -> TooLargeError:
        """The error of a body that exceeds a limit."""
        if self._has_too_many_values:
            return TooLargeError(
                f"The JSON of the request has more than {_MAX_JSON_VALUES} values: send it in several requests."
            )
        return TooLargeError(
            f"The request has more than {self._limit} bytes in total: send fewer or smaller files. A file may have "
            "EXEMPLAR_MAX_UPLOAD_BYTES, a request twice as much, a request with several photos eight times as much."
        )

    @property
    def _has_too_many_values(self) -> bool:
        return self._commas >= _MAX_JSON_VALUES  # a comma is between two of them

    async def receive(self) -> Message:
        """Receive the next message.

        Raises:
            _BodyRefused: If the body exceeds the limit, or the bodies of other requests leave no space for it.
        """
        message = await self._next()
        if self._seen > self._limit or self._has_too_many_values:
            raise _BodyRefused(self.too_large)
        self._take(len(message.get("body", b"")))
        return message

    def _take(self, count: int) -> None:
        space = self._space
        # A request that is alone may exceed it: repeated, it would find no more space.
        if count and space.taken > self._own and space.taken + count > space.max_bytes:
            raise _BodyRefused(
                OverloadedError(
                    f"The bodies of other requests fill the {space.max_bytes} bytes for uploads "
                    "(EXEMPLAR_UPLOAD_SPACE_BYTES): try again in a second."
                )
            )
        space.taken += count
        self._own += count

    def give_back(self) -> None:
        """Give the space of the body to other requests."""
        self._space.taken -= self._own
        self._own = 0

    async def drain(self) -> None:
        """Read the rest of the body and discard it."""
        while not self._ended and self._seen < _DRAINED_LIMITS * self._limit:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        piece = message.get("body", b"")
        self._seen += len(piece)
        if self._is_json:
            self._commas += piece.count(b",")
        self._ended = not message.get("more_body", False)
        return message


class _BodyRefused(BaseException):
    """Stops the application while it reads a body that exceeds the limit or finds no space.

    Not an `Exception`, because FastAPI answers any `Exception` raised while it reads a body with 400.
    """

    def __init__(self, refusal: AppError) -> None:
        super().__init__(refusal)
        self.refusal = refusal
