"""Rate limit: middleware that refuses a caller who sends too many requests, before the body is read."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems
from app.api.access import scope_of, sent_key
from app.errors import TooManyRequestsError


class RateLimited:
    """Middleware that counts the requests of each key, and of each address where no key is sent.

    Probes, metrics, the documentation and the page are not counted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application if the caller may send one more request."""
        limits = scope["state"]["service"].rate_limits if scope["type"] == "http" else None
        if limits and scope_of(scope["method"], scope["path"]) is not None:
            wait_s = await limits.wait_s(_caller(scope))
            if wait_s is not None:
                refusal = TooManyRequestsError(
                    f"More requests than EXEMPLAR_RATE_LIMIT ({limits}) allows: try again in {wait_s} seconds.",
                    retry_after_s=wait_s,
                )
                return await problems.of(refusal)(scope, receive, send)
        await self._app(scope, receive, send)


def _caller(scope: Scope) -> str:
    key = sent_key(Headers(scope=scope))
    if key is not None:
        return hashlib.sha256(key.encode()).hexdigest()
    client = scope.get("client")
    return client[0] if client else "unix"
