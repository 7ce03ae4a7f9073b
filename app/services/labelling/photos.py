"""Photos of Label Studio's tasks: fetched from Label Studio, from allowed hosts, or out of data URLs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from app.errors import InvalidInputError, TooLargeError, UnavailableError

from .addresses import AllowedAddresses, joined

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 20.0
_MOST_REDIRECTS = 4

# Label Studio leads a caller whom it does not know to its login page, which may be below a folder of its host.
_LOGIN_PATH = "/user/login"

# A page of tasks has the regions of all their annotations.
_MAX_JSON_BYTES = 256 * 1024 * 1024

# What sets a limit, as an error names it.
_OF_UPLOADS = "EXEMPLAR_MAX_UPLOAD_BYTES"
_OF_JSON = "the most that is read of Label Studio at once, which no setting changes"

# A host that is busy for now: it took too long to get the request, or has had too many of them.
_BUSY = (408, 425, 429)
# Pause if the host names none.
_PAUSE_S = 5

_log = logging.getLogger(__name__)


class LabelStudioClient:
    """Reads photos and tasks.

    Args:
        url: Address of Label Studio; empty if none is known, and then only data URLs are read.
        token: Its access token, of either kind; empty for one that `meet` is told.
        hosts: Other hosts that photos are fetched from, without the token; each with its port unless it is the usual
            one.
        max_bytes: Size limit of a photo.
        transport: Sends the requests; None for the network.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str,
        hosts: tuple[str, ...],
        max_bytes: int,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = httpx.URL(url.rstrip("/")) if url else None
        self._token = token
        self._told_token = ""  # in use until Label Studio refuses it
        self._told_last = ""
        self._access = ""  # what a personal access token was exchanged for
        self._allowed = AllowedAddresses(self._url, hosts=hosts)
        self._max_bytes = max_bytes
        self._transport = transport
        self._http: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http:
            await self._http.aclose()

    def meet(self, hostname: str, token: str) -> None:
        """Use the token that Label Studio brings, if it is the one of the settings and they have no token.

        Anybody who may segment can bring one in its name. So a new one is used once Label Studio refuses the old one.
        """
        try:
            told = httpx.URL(hostname)
        except httpx.InvalidURL:
            return
        if token and self._allowed.is_label_studio(told):
            self._told_last = token
            self._told_token = self._told_token or token

    async def photo(self, address: str) -> bytes:
        """The file of a photo.

        Args:
            address: A path on Label Studio, a URL, or a data URL in base64.

        Raises:
            InvalidInputError: If its host is not allowed, or it can't be read there.
            TooLargeError: If it is larger than an upload may be.
            UnavailableError: If its host does not answer, or is busy.
        """
        if address[:5].lower() == "data:":
            return await self._of_data_url(address)
        return await self._get(self._absolute(address), _Wanted("The photo", self._max_bytes, _OF_UPLOADS))

    async def tasks(self, project: int, *, page: int, page_size: int) -> list[Mapping[str, Any]]:
        """Some tasks of a project with their annotations; none after the last page.

        Args:
            project: Id of the project.
            page: Number of the page, from 1.
            page_size: Number of tasks on a page.

        Raises:
            InvalidInputError, UnavailableError: As `photo`.
            TooLargeError: If the page is larger than is read at once.
        """
        wanted = _Wanted(f"Page {page} of the tasks of project {project}", _MAX_JSON_BYTES, _OF_JSON)
        url = self._absolute("/api/tasks").copy_merge_params(
            {"project": project, "page": page, "page_size": page_size, "fields": "all"}
        )
        try:
            raw = await self._get(url, wanted)
        except _NotThere:
            if page == 1:  # there is no such project
                raise
            return []  # the page after the last one
        found = _json(raw)
        return list(found.get("tasks", ()))

    async def has_annotation(self, id: int) -> bool:
        """True if Label Studio has an annotation with this id.

        Raises:
            InvalidInputError, UnavailableError: As `photo`.
            TooLargeError: If it is larger than is read at once.
        """
        wanted = _Wanted(f"Annotation {id}", _MAX_JSON_BYTES, _OF_JSON)
        try:
            await self._get(self._absolute(f"/api/annotations/{id}/"), wanted)
        except _NotThere:
            return False
        return True

    async def _of_data_url(self, address: str) -> bytes:
        head, _, body = address.partition(",")
        wanted = _Wanted("A data URL", self._max_bytes, _OF_UPLOADS)
        if len(body) > 4 * (wanted.max_bytes // 3 + 1):  # characters of base64
            raise wanted.too_large()
        try:
            # The other form, in which each byte may take three characters, takes seconds and gigabytes to decode.
            if not head.endswith(";base64"):
                raise ValueError("no base64 by its own account")
            raw = await asyncio.to_thread(b64decode, body, validate=True)
        except ValueError as error:
            raise InvalidInputError(
                "A data URL is not base64: send the photo as data:image/png;base64,…", field="tasks"
            ) from error
        if len(raw) > wanted.max_bytes:
            raise wanted.too_large()
        return raw

    def _absolute(self, address: str) -> httpx.URL:
        if address.startswith("/") and not address.startswith("//"):
            if self._url is None:
                raise InvalidInputError(
                    f"{address[:200]} is a path on Label Studio, whose address is not known: set "
                    "EXEMPLAR_LABEL_STUDIO_URL.",
                    field="tasks",
                )
            # Below a folder of a host, Label Studio writes paths with the folder or without it.
            folder = self._url.path.rstrip("/")
            return joined(self._url, address if folder and address.startswith(f"{folder}/") else f"{folder}{address}")
        return joined(httpx.URL(), address)

    async def _get(self, url: httpx.URL, wanted: _Wanted) -> bytes:
        for _ in range(_MOST_REDIRECTS):
            self._allowed.check(url)
            is_label_studio = self._allowed.is_label_studio(url)
            access, told = self._access if is_label_studio else "", self._told_token
            answer = await self._send(url, wanted)
            if access and _is_unknown(answer):  # it has expired
                if self._access == access:  # else another request has renewed it in the meantime
                    self._access = ""
                answer = await self._send(url, wanted)
            if is_label_studio and _is_unknown(answer) and self._is_replaced(told):
                answer = await self._send(url, wanted)
            if _is_unknown(answer):
                raise _refused(url, 401)
            if answer.target is None:
                _check_status(url, answer.status, answer.retry_after)
                return answer.raw
            url = answer.target
        raise InvalidInputError(f"{url.host} redirects too often.", field="tasks")

    def _is_replaced(self, refused: str) -> bool:
        """True if there is another told token than the one that Label Studio refused; it is used from now on."""
        if self._told_token == refused != self._told_last:
            self._told_token, self._access = self._told_last, ""
        return not self._token and self._told_token != refused

    async def _send(self, url: httpx.URL, wanted: _Wanted) -> _Answer:
        headers = await self._authorization() if self._allowed.is_label_studio(url) else {}
        try:
            async with self._client().stream("GET", url, headers=headers) as answer:
                raw = bytearray()
                async for part in answer.aiter_bytes():
                    raw += part
                    if len(raw) > wanted.max_bytes:
                        raise wanted.too_large(url.host)
                is_redirect = 300 <= answer.status_code < 400
                target = joined(url, answer.headers.get("location", "")) if is_redirect else None
                return _Answer(answer.status_code, target, answer.headers.get("retry-after", ""), bytes(raw))
        except httpx.HTTPError as error:
            raise UnavailableError(f"{url.host} does not answer ({type(error).__name__}).", field="tasks") from error

    async def _authorization(self) -> dict[str, str]:
        token = self._token or self._told_token
        if not token:
            return {}
        if token.count(".") != 2:
            return {"Authorization": f"Token {token}"}
        # A personal access token is a JWT that only asks for tokens of some minutes.
        if not self._access:
            try:
                answer = await self._client().post(self._absolute("/api/token/refresh"), json={"refresh": token})
            except httpx.HTTPError as error:
                raise UnavailableError(
                    f"Label Studio does not answer ({type(error).__name__}).", field="tasks"
                ) from error
            if answer.status_code in (401, 403):  # the answer to a request without it says the same
                return {}
            _check_status(answer.url, answer.status_code, answer.headers.get("retry-after", ""))
            self._access = str(_json(answer.content).get("access", ""))
        return {"Authorization": f"Bearer {self._access}"}

    def _client(self) -> httpx.AsyncClient:
        """The client, made with the first request: a service without Label Studio needs none."""
        if self._http is None:
            timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
            self._http = httpx.AsyncClient(timeout=timeout, transport=self._transport, follow_redirects=False)
        return self._http


@dataclass(frozen=True)
class _Wanted:
    """What is read, the bytes that it may have, and what sets this limit."""

    what: str
    max_bytes: int
    limit: str

    def too_large(self, host: str = "") -> TooLargeError:
        """The error of one that is larger; with the host that it was read from, if any."""
        where = f" of {host}" if host else ""
        return TooLargeError(
            f"{self.what}{where} has more than {self.max_bytes} bytes, which are allowed ({self.limit}).", field="tasks"
        )


@dataclass(frozen=True)
class _Answer:
    """An answer: its status, the address that a redirect leads to, its Retry-After, and its content."""

    status: int
    target: httpx.URL | None
    retry_after: str
    raw: bytes


class _NotThere(InvalidInputError):
    """There is nothing at an address."""


def _is_unknown(answer: _Answer) -> bool:
    """True for the answer to a caller whom Label Studio does not know; some of its pages lead to the login."""
    return answer.status == 401 or (answer.target is not None and answer.target.path.rstrip("/").endswith(_LOGIN_PATH))


def _check_status(url: httpx.URL, status: int, retry_after: str) -> None:
    """Raise unless the status is 200: of a host that is busy or fails UnavailableError, with the pause it asks for."""
    if status >= 500 or status in _BUSY:
        pause_s = int(retry_after) if re.fullmatch("[0-9]{1,6}", retry_after) else _PAUSE_S
        raise UnavailableError(f"{url.host} answers with {status}.", field="tasks", retry_after_s=pause_s)
    if status != 200:
        raise _refused(url, status)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnavailableError("Label Studio answers with something else than JSON.", field="tasks")
    return found


def _refused(url: httpx.URL, status: int) -> InvalidInputError:
    if status in (401, 403):
        return InvalidInputError(
            f"{url.host} refuses the access token: set EXEMPLAR_LABEL_STUDIO_TOKEN to one of a user who sees the "
            "project.",
            field="tasks",
        )
    kind = _NotThere if status == 404 else InvalidInputError
    return kind(f"Nothing can be read at {url.copy_with(query=None)}: its host answers with {status}.", field="tasks")
