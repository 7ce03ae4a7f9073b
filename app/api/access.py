"""Access control: API keys with scopes; without keys only loopback callers are answered."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from app.api import problems
from app.errors import AppError, ForbiddenError, UnauthorizedError
from app.settings import SCOPES, Scope

# What says nothing about anybody's data: probes, numbers, the document of the API and the page that asks for a key.
_OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/"})
_OPEN_FOLDERS = ("/web/", "/docs/")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SEGMENTING = frozenset({"/segment", "/segment/batch"})


class Access:
    """Refuses callers before anything of their request is read.

    Args:
        app: What comes next.
        keys: The scope of each key, by the key's SHA-256 in hexadecimal.
        allow_anonymous: Whether, without keys, other machines are answered too.
    """

    def __init__(self, app: ASGIApp, *, keys: Mapping[str, Scope], allow_anonymous: bool) -> None:
        self._app = app
        self._keys = keys
        self._allow_anonymous = allow_anonymous

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Run the application if the caller may call it."""
        refusal = self._refusal(connection) if connection["type"] == "http" else None
        if refusal:
            return await problems.of(refusal)(connection, receive, send)
        await self._app(connection, receive, send)

    def _refusal(self, connection: Connection) -> AppError | None:
        if not self._keys:
            return None if self._allow_anonymous else _not_from_here(connection)
        needed = scope_of(connection["method"], connection["path"])
        if needed is None:
            return None
        sent = _sent_key(Headers(scope=connection))
        if sent is None:
            return UnauthorizedError("This service asks for a key: send it as X-API-Key or as Authorization: Bearer.")
        held = self._keys.get(hashlib.sha256(sent.encode()).hexdigest())
        if held is None:
            return UnauthorizedError("This key is not known: EXEMPLAR_API_KEYS of the service lists those that are.")
        if SCOPES.index(held) < SCOPES.index(needed):
            return ForbiddenError(f"This needs a key of scope {needed}, and yours has {held}.")
        return None


def scope_of(method: str, path: str) -> Scope | None:
    """The least scope that a call needs; None for what anybody may call.

    `read` looks and segments, `teach` also changes what a category knows and starts jobs, `admin` also deletes
    categories and puts adapters from elsewhere into them.
    """
    if path in _OPEN or path.startswith(_OPEN_FOLDERS):
        return None
    if method in _SAFE_METHODS or path in _SEGMENTING:
        return "read"
    # DELETE /categories/{name}, but not .../examples/{id}
    if method == "PUT" or (method == "DELETE" and path.startswith("/categories/") and path.count("/") == 2):
        return "admin"
    return "teach"


def is_loopback(client: tuple[str, int] | None) -> bool:
    """Whether a caller is on this machine; one without an address came through a unix socket."""
    if client is None:
        return True
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    # A socket that listens on both families tells 127.0.0.1 as ::ffff:127.0.0.1.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _not_from_here(connection: Connection) -> ForbiddenError | None:
    """Why a caller without a key is refused: another machine, or another site's page in a browser on this one."""
    if not is_loopback(connection.get("client")):
        return ForbiddenError(
            "This service answers its own machine only: set EXEMPLAR_API_KEYS to open it to those who have a key, or "
            "EXEMPLAR_ALLOW_ANONYMOUS=true to open it to everybody."
        )
    headers = Headers(scope=connection)
    host, origin = headers.get("host", ""), headers.get("origin")
    # A name of somebody else's may lead to this machine (DNS rebinding): to a browser its pages are then ours.
    if not _is_of_this_machine(host):
        return ForbiddenError(
            f"Without keys this service is not called {host}: use localhost, or set EXEMPLAR_API_KEYS."
        )
    # A form of any page can post to this machine: the browser keeps the answer from it, not the request from us.
    if scope_of(connection["method"], connection["path"]) != "read" and origin and origin.partition("://")[2] != host:
        return ForbiddenError(
            f"A page of {origin} may not change anything here: set EXEMPLAR_API_KEYS and let it send a key."
        )
    return None


def _is_of_this_machine(host: str) -> bool:
    """Whether a Host header names an address, or a name that no public server answers for."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if "." in name and not name.endswith(".localhost"):
            ipaddress.ip_address(name)
    except ValueError:  # a public name, or nothing that a browser would send
        return False
    return True


def _sent_key(headers: Headers) -> str | None:
    if key := headers.get("x-api-key"):
        return key
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() or None if kind.lower() == "bearer" else None
