"""Client of the HTTP API for the command line and the demo."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2 as httpx

from app.errors import AppError, InvalidInputError, OverloadedError, UnavailableError

# Enough for a request with a thousand categories on a slow machine.
_TIMEOUT_S = 300.0

# Number of attempts and the pause between them.
_TRIES = 5
_PAUSE_S = 1.0
# Time for which a service that has answered before may refuse connections: enough to load a model.
_RESTART_S = 60.0
# A service that names a longer pause in Retry-After is not waited for.
_MAX_PAUSE_S = 90.0
# Busy or not ready: too many requests of this caller, or of all, or a part of the service does not answer.
_BUSY = (429, 503)
_AT_WORK = ("queued", "running")
# Photos per request: few enough for the size limit, enough to keep the service busy.
_BATCH = 8

# Visible ASCII: valid in a header and never stripped.
_KEY = re.compile(r"[!-~]+")
_NEXT = re.compile(r'<([^>]*)>[^,]*;\s*rel="?next"?')

Json = dict[str, Any]


class RefusedError(AppError):
    """The service refused a request.

    Args:
        detail: Its sentence.
        status: HTTP status.
        title: Of its problem; empty if the answer is none.
        retry_after_s: Its `Retry-After`.
    """

    def __init__(self, detail: str, *, status: int, title: str = "", retry_after_s: int | None = None) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.status = status
        self.title = title

    @property
    def may_be_done(self) -> bool:
        """True if it is not known that nothing was done: a replica died, or the store did not answer in time."""
        return self.status == 503 and self.title != OverloadedError.title


class Client:
    """Client of one running service.

    Args:
        url: Address of the service.
        key: An API key, if the service requires one.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise _no_address(url)
        if key and not _KEY.fullmatch(key):
            raise InvalidInputError("The key (--key, EXEMPLAR_API_KEY) contains invalid characters: copy it again.")
        self._url = url
        self._answered = False
        try:
            urlsplit(url)  # finds more that is wrong, such as "http://[bad"
            httpx.URL(url).raw_host.decode().encode("idna")  # as sockets do, which refuse empty parts of a name
        except (httpx.InvalidURL, ValueError) as error:
            raise _no_address(url) from error
        try:
            self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_S, headers={"X-API-Key": key} if key else {})
        except ImportError as error:
            raise InvalidInputError(
                "The environment names a SOCKS proxy: pip install 'httpx2[socks]', or unset it."
            ) from error
        except (ValueError, httpx.InvalidURL) as error:
            raise InvalidInputError(f"A proxy that the environment names can't be used: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def ready(self) -> bool:
        """Return True if the service is ready, False if it is not ready or does not listen."""
        try:
            return bool(self._http.get("/readyz").status_code == 200)
        except httpx.TransportError:
            return False

    def teach(
        self,
        name: str,
        image: Path,
        mask: Path | None = None,
        *,
        box: Sequence[float] | None = None,
        segmentation: object = None,
        prompts: Sequence[str] = (),
        replace: bool = False,
    ) -> Json:
        """Send an example and return its job, with the `warnings` about the example.

        Args:
            name: The category.
            image: A photo.
            mask: A mask image. With none of `mask`, `box` and `segmentation`, the photo does not show the category.
            box: `[x, y, width, height]` in pixels.
            segmentation: COCO run lengths or polygons.
            prompts: Other words for the category.
            replace: True to remove the earlier examples.

        Raises:
            AppError: If the service refuses it or can't be reached; this holds for every method.
        """
        files = {"image": image.read_bytes()} | ({"mask": mask.read_bytes()} if mask else {})
        fields: dict[str, Any] = {"prompts": _as_field(prompts), "mode": "replace" if replace else "append"}
        if box is not None:
            fields["box"] = json.dumps(list(box))
        if segmentation is not None:
            fields["segmentation"] = json.dumps(segmentation)
        fields["absent"] = str(mask is None and box is None and segmentation is None).lower()
        # With a key the service does the work once, so the request may be sent again.
        key = {"Idempotency-Key": uuid.uuid4().hex}
        answer = self._send("POST", f"{_path_of(name)}/example", files=files, data=fields, headers=key)
        job: Json = answer["job"]
        return job | {"warnings": answer.get("warnings", [])}

    def follow(self, job_id: str) -> Iterator[Json]:
        """Yield the job at every change, its final state last; reconnects if the stream is cut."""
        last: Json | None = None
        tries_left = _TRIES
        while tries_left:
            tries_left -= 1
            try:
                with closing(self._open("GET", f"/jobs/{job_id}/events", "text/event-stream")) as stream:
                    for line in stream.iter_lines():
                        if not line.startswith("data: "):
                            continue
                        state = _json_of(line.removeprefix("data: "))
                        # As long as the service tells of the job, so does this: a gateway may cut every answer.
                        tries_left = _TRIES
                        if state != last:  # each new stream begins with the state of the job
                            yield state
                            last = state
                        if state["status"] not in _AT_WORK:
                            return
            except httpx.TransportError as error:  # the answer was cut off
                if not tries_left:
                    raise self._unreachable(error) from error
            except RefusedError as error:
                _pause_if_busy(error, tries_left)
            time.sleep(_PAUSE_S)
        raise UnavailableError(f"The events of job {job_id} ended before the job: request GET /jobs/{job_id} later.")

    def category(self, name: str) -> Json:
        """Return one category."""
        return self._send("GET", _path_of(name))

    def categories(self) -> list[Json]:
        """Return all categories, the oldest first."""
        return list(self._pages("/categories"))

    def jobs(self, *, category: str | None = None, status: str | None = None) -> Iterator[Json]:
        """Yield jobs, the newest first; a page is requested when the one before is used up."""
        wanted = {"category": category, "status": status}
        return self._pages("/jobs", {name: value for name, value in wanted.items() if value is not None})

    def versions(self, name: str) -> list[Json]:
        """Return the adapter versions of a category, the newest first."""
        return list(self._pages(f"{_path_of(name)}/versions"))

    def rollback(self, name: str, version: int) -> Json:
        """Use an older adapter version again; return the category."""
        return self._send("POST", f"{_path_of(name)}/rollback", json={"version": version})

    def delete(self, name: str) -> None:
        """Delete a category."""
        self._request("DELETE", _path_of(name), None, repeatable=False)

    def export(self, name: str) -> bytes:
        """Return the adapter in use, a safetensors file."""
        return bytes(self._request("GET", f"{_path_of(name)}/adapter", "application/octet-stream").content)

    def import_(self, name: str, adapter: bytes) -> Json:
        """Store an adapter that was exported elsewhere; return the category."""
        kind = {"Content-Type": "application/octet-stream"}
        path = f"{_path_of(name)}/adapter"
        return self._send("PUT", path, repeatable=False, content=adapter, headers=kind)  # each makes a version

    def segment(self, image: Path, categories: Sequence[str], *, min_presence: float | None = None) -> Json:
        """Segment a photo; no categories = every category taught."""
        fields = _fields(categories, min_presence)
        return self._send("POST", "/segment", files={"image": image.read_bytes()}, data=fields)

    def batch(
        self, images: Sequence[Path], categories: Sequence[str], *, min_presence: float | None = None
    ) -> Iterator[Json]:
        """Segment several photos; yield the result or the problem of each as soon as it arrives.

        A photo that can't be read has a problem; a connection that is lost and a service that is busy are waited for.

        Args:
            images: The photos; `index` of a line is the position in it.
            categories: Names; none = every category taught.
            min_presence: A category gets a mask from this presence on; None = the service's default.
        """
        fields = _fields(categories, min_presence)
        for start in range(0, len(images), _BATCH):
            contents = {}
            for index, image in enumerate(images[start : start + _BATCH], start):
                try:
                    contents[index] = (_sendable(image.name), image.read_bytes())
                except OSError as error:
                    yield {"index": index, "problem": {"detail": f"{error.strerror}.", "status": 422}}
            yield from self._batch_some(contents, fields)

    def _batch_some(self, contents: Mapping[int, tuple[str, bytes]], fields: Json) -> Iterator[Json]:
        """Send the files, and those that got no answer again."""
        waiting = dict(contents)
        tries_left = _TRIES
        while waiting:
            before = len(waiting)
            tries_left -= 1
            try:
                for line in self._lines(waiting, fields):
                    if not tries_left or line.get("problem", {}).get("status") not in _BUSY:
                        del waiting[line["index"]]
                        yield line
            except httpx.TransportError as error:
                if not tries_left or not self._answered:
                    raise self._unreachable(error) from error
            except RefusedError as error:
                if error.status == 413:  # one of them may be too large; it must not take the others with it
                    yield from self._one_by_one(waiting, fields, error)
                    return
                _pause_if_busy(error, tries_left)
            # As long as some are answered, the rest will be.
            tries_left = _TRIES if len(waiting) < before else tries_left
            if waiting and not tries_left:
                raise UnavailableError(f"{self._url} ends its answers before the last photo: look at its log.")
            if waiting:
                time.sleep(_PAUSE_S)

    def _one_by_one(
        self, contents: Mapping[int, tuple[str, bytes]], fields: Json, error: RefusedError
    ) -> Iterator[Json]:
        """Send photos singly of which several at once are refused."""
        if len(contents) == 1:
            yield {"index": next(iter(contents)), "problem": {"detail": error.detail, "status": error.status}}
            return
        for index, content in contents.items():
            yield from self._batch_some({index: content}, fields)

    def _lines(self, contents: Mapping[int, tuple[str, bytes]], fields: Json) -> Iterator[Json]:
        """Lines of one answer; `index` is the key in `contents`."""
        order = list(contents)
        files = [("images", contents[index]) for index in order]
        with closing(self._open("POST", "/segment/batch", "application/x-ndjson", files=files, data=fields)) as stream:
            for text in stream.iter_lines():
                line = _json_of(text)
                yield line | {"index": order[line["index"]]}

    def overlay(self, image: Path, categories: Sequence[str], *, min_presence: float | None = None) -> bytes:
        """Return the photo with coloured masks and names, as PNG."""
        answer = self._request(
            "POST",
            "/segment?overlay=true",
            "image/png",
            files={"image": image.read_bytes()},
            data=_fields(categories, min_presence),
        )
        return bytes(answer.content)

    def _send(self, method: str, path: str, **body: Any) -> Json:
        answer: Json = self._request(method, path, "application/json", **body).json()
        return answer

    def _pages(self, path: str, params: Mapping[str, str] | None = None) -> Iterator[Json]:
        """Items of a list, page after page."""
        query: str | None = urlencode(params or {})
        while query is not None:
            answer = self._request("GET", f"{path}?{query}" if query else path, "application/json")
            yield from answer.json()
            link = _NEXT.search(answer.headers.get("link", ""))
            query = urlsplit(link[1]).query if link else None  # its path has the prefix that the address has too

    def _request(
        self, method: str, path: str, media_type: str | None, *, repeatable: bool = True, **body: Any
    ) -> httpx.Response:
        """Send a request and read its answer; a service that is busy or restarts is waited for.

        Args:
            method: HTTP method.
            path: Path with its query.
            media_type: Of the answer; None if it has no body.
            repeatable: True if it may be sent again although the service may have done it.
            **body: Content and headers, as httpx takes them.
        """
        tries_left = _TRIES
        while True:
            tries_left -= 1
            try:
                with closing(self._open(method, path, media_type, **body)) as answer:
                    answer.read()
                    return answer
            except httpx.TransportError as error:
                if not (self._answered and repeatable and tries_left):
                    raise self._unreachable(error) from error
                time.sleep(_PAUSE_S)
            except RefusedError as error:
                if error.may_be_done and not repeatable:
                    raise
                _pause_if_busy(error, tries_left)

    def _open(self, method: str, path: str, media_type: str | None, **body: Any) -> httpx.Response:
        """Send a request and return its answer, whose body is not read yet.

        Connections that a service refuses after it has answered are tried again: it may be restarting.

        Raises:
            httpx.TransportError: If the connection is lost after the request was sent.
        """
        refused_at_s: float | None = None
        while True:
            try:
                answer = self._http.send(self._http.build_request(method, path, **body), stream=True)
                break
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                now_s = time.monotonic()
                refused_at_s = now_s if refused_at_s is None else refused_at_s
                if not self._answered or now_s - refused_at_s >= _RESTART_S:
                    raise self._unreachable(error) from error
                time.sleep(_PAUSE_S)
        try:
            self._check(answer, media_type)
        except BaseException:
            answer.close()
            raise
        return answer

    def _check(self, answer: httpx.Response, media_type: str | None) -> None:
        """Raise an AppError for an error, or for a media type that our service would not send; None = no body."""
        self._answered = True
        if answer.is_error:
            answer.read()
            after = answer.headers.get("retry-after", "")
            problem = _problem_in(answer)
            raise RefusedError(
                str(problem.get("detail", f"The service answered {answer.status_code}.")),
                status=answer.status_code,
                title=str(problem.get("title", "")),
                retry_after_s=int(after) if after.isascii() and after.isdigit() else None,
            )
        if media_type is None:
            return
        sent = answer.headers.get("content-type", "nothing")
        if sent.partition(";")[0].strip().lower() != media_type:
            raise UnavailableError(f"{self._url} is not an Exemplar service (it sent {sent}): correct the address.")

    def _unreachable(self, error: Exception) -> UnavailableError:
        if proxy := _proxy_of(self._url):
            return UnavailableError(
                f"No service answers at {self._url} through the proxy {proxy} ({error}): start one with `make serve`, "
                "or name the address in NO_PROXY if it needs no proxy."
            )
        if self._answered:
            return UnavailableError(
                f"The service at {self._url} does not answer any more ({error}): start it and repeat the command. Jobs "
                "that it has accepted go on, and `segment --out` continues where it was."
            )
        return UnavailableError(f"No service answers at {self._url}: start one with `make serve` ({error}).")


def _proxy_of(url: str) -> str | None:
    """Host and port of the proxy that the environment names for an address, without user and password."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy.rpartition("@")[2].rpartition("//")[2].rstrip("/")


def _json_of(line: str) -> Json:
    """The JSON of a line.

    Raises:
        httpx.RemoteProtocolError: If it was cut off, as by a proxy that ends the answer with its connection.
    """
    try:
        value: Json = json.loads(line)
    except ValueError as error:
        raise httpx.RemoteProtocolError("The answer was cut off.") from error
    return value


def _pause_if_busy(error: RefusedError, tries_left: int) -> None:
    """Wait as long as a busy service asks for; raise any other refusal, and that of the last try."""
    pause_s = _PAUSE_S if error.retry_after_s is None else error.retry_after_s
    # A conflict that passes: the first try with an Idempotency-Key is still at work.
    is_busy = error.status in _BUSY or (error.status == 409 and error.retry_after_s is not None)
    if not is_busy or not tries_left or pause_s > _MAX_PAUSE_S:
        raise error
    time.sleep(pause_s)


def _sendable(file_name: str) -> str:
    """A file's name as it can be sent: file systems allow bytes that are not UTF-8."""
    return file_name.encode(errors="replace").decode()


def _path_of(name: str) -> str:
    if not name.strip():
        raise InvalidInputError("The name of the category is empty: give 1 to 64 characters.")
    # Dots too, which are else a part of the path to be removed: the service then says what is wrong with the name.
    return f"/categories/{quote(_in_utf8(name), safe='').replace('.', '%2E')}"


def _in_utf8(name: str) -> str:
    """The name of a category.

    Raises:
        InvalidInputError: If it has bytes that are not UTF-8, as a terminal with another encoding sends them.
    """
    if _sendable(name) != name:
        raise InvalidInputError(f"The name {_sendable(name)!r} is not UTF-8: write it in a terminal that uses UTF-8.")
    return name


def _fields(categories: Sequence[str], min_presence: float | None) -> Json:
    """Fields of a segmentation."""
    return {"categories": _as_field(categories)} | ({} if min_presence is None else {"min_presence": str(min_presence)})


def _as_field(names: Sequence[str]) -> list[str]:
    """Names as a field of a form: as JSON, so that a name with a comma is one name; nothing if there are none."""
    return [json.dumps([_in_utf8(name) for name in names], ensure_ascii=False)] if names else []


def _no_address(url: str) -> InvalidInputError:
    return InvalidInputError(f"{url!r} is not a valid address: write it like http://127.0.0.1:8000.")


def _problem_in(answer: httpx.Response) -> Json:
    """The problem that an answer describes; empty if it is something else, as a proxy may send."""
    try:
        problem = answer.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
