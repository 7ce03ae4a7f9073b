"""Rate limit: middleware that refuses a caller who sends too many requests, before the body is read."""

from __future__ import annotations

from collections.abc import Container

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems
from app.api.access import key_digest, scope_of
from app.api.paths import path_of
from app.errors import TooManyRequestsError


class RateLimited:
    """Middleware that counts the requests of each key, and of each address where the service has no keys.

    Probes, metrics, the documentation and the page are not counted.

    Args:
        app: The next ASGI application.
        keys: SHA-256 of each key, in hexadecimal. With any other key a caller would get a new count for each that it
            makes up.
    """

    def __init__(self, app: ASGIApp, *, keys: Container[str]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application if the caller may send one more request."""
        limits = scope["state"]["service"].rate_limits if scope["type"] == "http" else None
        if limits and scope_of(scope["method"], path_of(scope)) is not None:
            wait_s = await limits.wait_s(self._caller(scope))
            if wait_s is not None:
                refusal = TooManyRequestsError(
                    f"More requests than EXEMPLAR_RATE_LIMIT ({limits}) allows: try again in {wait_s} seconds.",
                    retry_after_s=wait_s,
                )
                return await problems.of(refusal)(scope, receive, send)
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> str:
        digest = key_digest(Headers(scope=scope))
        if digest is not None and digest in self._keys:
            return digest
        client = scope.get("client")
        return client[0] if client else "unix"
