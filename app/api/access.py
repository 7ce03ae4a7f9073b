"""Access control: API keys with scopes. Without keys, only callers on this machine are answered."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from app.api import problems
from app.api.paths import DELETED_BY_TEACHERS, OPEN, OPEN_FOLDERS, PROBES, READING, path_of
from app.errors import AppError, ForbiddenError, UnauthorizedError
from app.settings import SCOPES, Scope

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What browsers say of a call that the user or the service's own page makes.
_OWN_SITES = frozenset({"none", "same-origin"})
_ANOTHER_SITE = "A page of another site"


class Access:
    """Middleware that refuses callers before their request body is read.

    Args:
        app: The next ASGI application.
        keys: Scope of each key, by the key's SHA-256 in hexadecimal.
        allow_anonymous: True to answer other machines without keys.
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
            return _from_another_site(connection) if self._allow_anonymous else _not_from_here(connection)
        needed = scope_of(connection["method"], path_of(connection))
        if needed is None:
            return None
        digest = key_digest(Headers(scope=connection))
        if digest is None:
            return UnauthorizedError("An API key is required: send it as X-API-Key or as Authorization: Bearer.")
        held = self._keys.get(digest)
        if held is None:
            return UnauthorizedError("Unknown API key: the service accepts the keys in its EXEMPLAR_API_KEYS.")
        if SCOPES.index(held) < SCOPES.index(needed):
            return ForbiddenError(f"This call needs a key of scope {needed}; the scope of this key is {held}.")
        return None


def scope_of(method: str, path: str) -> Scope | None:
    """The lowest scope that allows a call; None if the call is open to everybody.

    `read` allows reading and segmenting; `teach` also changing a category and starting jobs; `admin` also deleting
    categories and importing adapters, and what is not known here.

    Args:
        method: HTTP method.
        path: Path, or its template, without a prefix.
    """
    if path in OPEN or path.startswith(OPEN_FOLDERS):
        return None
    if method in _SAFE_METHODS or path in READING:
        return "read"
    if method == "POST" or (method == "DELETE" and DELETED_BY_TEACHERS.fullmatch(path)):
        return "teach"
    return "admin"


def is_loopback(client: tuple[str, int] | None) -> bool:
    """True if a caller is on this machine; a caller without an address uses a unix socket."""
    if client is None:
        return True
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    # A socket that listens on IPv4 and IPv6 reports 127.0.0.1 as ::ffff:127.0.0.1.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _not_from_here(connection: Connection) -> ForbiddenError | None:
    """The refusal of a caller without a key: another machine, or another origin's page in a browser on this machine."""
    if path_of(connection) in PROBES and connection["method"] in _SAFE_METHODS:
        return None
    if not is_loopback(connection.get("client")):
        return ForbiddenError(
            "This service answers only callers on its own machine: set EXEMPLAR_API_KEYS to admit callers with a key, "
            "or EXEMPLAR_ALLOW_ANONYMOUS=true to admit everybody."
        )
    headers = Headers(scope=connection)
    host = headers.get("host", "")
    # DNS rebinding: a foreign host name can resolve to this machine; the browser then treats the foreign page and this
    # service as one origin.
    if not _is_of_this_machine(host):
        return ForbiddenError(
            f"Without API keys the host name {host} is not accepted: use localhost, or set EXEMPLAR_API_KEYS."
        )
    # Any page can post a form to this machine: the browser hides the response from the page, but sends the request.
    # Segmenting changes nothing, but takes seconds of computing.
    if connection["method"] not in _SAFE_METHODS and (page := _foreign_page(headers, host)):
        return _refused(page)
    return None


def _from_another_site(connection: Connection) -> ForbiddenError | None:
    """The refusal of another site's page in the browser of a caller whom anonymous access lets in.

    `Origin` is not compared: a gateway may have another name than the service. Browsers send `Sec-Fetch-Site` over
    HTTPS and to their own machine alone.
    """
    site = Headers(scope=connection).get("sec-fetch-site", "none")
    if connection["method"] in _SAFE_METHODS or site in _OWN_SITES:
        return None
    return _refused(_ANOTHER_SITE)


def _refused(page: str) -> ForbiddenError:
    return ForbiddenError(f"{page} can't use this service without an API key: set EXEMPLAR_API_KEYS, and send one.")


def _foreign_page(headers: Headers, host: str) -> str | None:
    """The page of another origin that sent a request, as browsers tell it; None for the own page and for programs."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return f"A page of {origin}"
    if headers.get("sec-fetch-site", "none") not in _OWN_SITES:
        return _ANOTHER_SITE
    return None


def _is_of_this_machine(host: str) -> bool:
    """True if a Host header names this machine from within: localhost, a name below it, or a loopback address.

    Any other name could be given by a foreign name server, or by a proxy on this machine that passes on what other
    machines ask for. 0.0.0.0 and [::] are loopback addresses where they are called. HTTP/1.0 has no Host header.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in ("", "localhost") or name.endswith(".localhost"):
            return True
        address = ipaddress.ip_address(name)
    except ValueError:  # another name, or a malformed header
        return False
    return address.is_loopback or address.is_unspecified


def key_digest(headers: Headers) -> str | None:
    """SHA-256 in hexadecimal of the API key of a request; None if it has none."""
    key = _sent_key(headers)
    return None if key is None else hashlib.sha256(key.encode()).hexdigest()


def _sent_key(headers: Headers) -> str | None:
    """The API key of a request, or None: a header of its own, a bearer token, or the password of Basic authentication.

    Label Studio can send nothing but the last, with any user name.
    """
    if key := headers.get("x-api-key"):
        return key
    kind, _, key = headers.get("authorization", "").partition(" ")
    match kind.lower():
        case "bearer":
            return key.strip() or None
        case "basic":
            return _password(key) or None
    return None


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except ValueError:  # not base64, or not UTF-8
        return ""
