"""Client of the HTTP API for the command line and the demo."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2 as httpx

from app.errors import AppError, InvalidInputError, UnavailableError

# Enough for a request with a thousand categories on a slow machine.
_TIMEOUT_S = 300.0

# Number of attempts and the pause between them: enough for a restart of the service.
_TRIES = 5
_PAUSE_S = 1.0
_AT_WORK = ("queued", "running")
# Photos per request: few enough for the size limit, enough to keep the service busy.
_BATCH = 8

# Visible ASCII: valid in a header and never stripped.
_KEY = re.compile(r"[!-~]+")

Json = dict[str, Any]


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
        try:
            self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_S, headers={"X-API-Key": key} if key else {})
        except httpx.InvalidURL as error:
            raise _no_address(url) from error

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
        self, name: str, image: Path, mask: Path | None, *, prompts: Sequence[str] = (), replace: bool = False
    ) -> Json:
        """Send an example and return its job, with the `warnings` about the example.

        No mask = the photo does not show the category.

        Raises:
            AppError: If the service refuses it or can't be reached; this holds for every method.
        """
        answer = self._send(
            "POST",
            f"/categories/{quote(name, safe='')}/example",
            files={"image": image.read_bytes()} | ({"mask": mask.read_bytes()} if mask else {}),
            data={
                "prompts": list(prompts),
                "mode": "replace" if replace else "append",
                "absent": "false" if mask else "true",
            },
        )
        job: Json = answer["job"]
        return job | {"warnings": answer.get("warnings", [])}

    def follow(self, job_id: str) -> Iterator[Json]:
        """Yield the job at every change, its final state last; reconnects if the stream is cut."""
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._http.stream("GET", f"/jobs/{job_id}/events") as stream:
                    self._check(stream, "text/event-stream")
                    for line in stream.iter_lines():
                        if line.startswith("data: "):
                            state: Json = json.loads(line.removeprefix("data: "))
                            yield state
                            if state["status"] not in _AT_WORK:
                                return
            except httpx.TransportError as error:
                if not tries_left:
                    raise self._unreachable(error) from error
            time.sleep(_PAUSE_S)
        raise UnavailableError(f"The events of job {job_id} ended before the job: request GET /jobs/{job_id} later.")

    def category(self, name: str) -> Json:
        """Return one category."""
        return self._send("GET", f"/categories/{quote(name, safe='')}")

    def segment(self, image: Path, categories: Sequence[str]) -> Json:
        """Segment a photo; no categories = every category taught."""
        return self._send(
            "POST", "/segment", files={"image": image.read_bytes()}, data={"categories": list(categories)}
        )

    def batch(self, images: Sequence[Path], categories: Sequence[str]) -> Iterator[Json]:
        """Segment several photos; yield the result or the problem of each as soon as it arrives.

        `index` is the position of the photo in `images`.
        """
        for start in range(0, len(images), _BATCH):
            some = images[start : start + _BATCH]
            try:
                with self._http.stream(
                    "POST",
                    "/segment/batch",
                    files=[("images", (image.name, image.read_bytes())) for image in some],
                    data={"categories": list(categories)},
                ) as stream:
                    self._check(stream, "application/x-ndjson")
                    for text in stream.iter_lines():
                        line: Json = json.loads(text)
                        yield line | {"index": start + line["index"]}
            except httpx.TransportError as error:
                raise self._unreachable(error) from error

    def overlay(self, image: Path, categories: Sequence[str]) -> bytes:
        """Return the photo with coloured masks and names, as PNG."""
        answer = self._request(
            "POST",
            "/segment?overlay=true",
            "image/png",
            files={"image": image.read_bytes()},
            data={"categories": list(categories)},
        )
        return bytes(answer.content)

    def _send(self, method: str, path: str, **body: Any) -> Json:
        answer: Json = self._request(method, path, "application/json", **body).json()
        return answer

    def _request(self, method: str, path: str, media_type: str, **body: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **body)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        self._check(answer, media_type)
        return answer

    def _check(self, answer: httpx.Response, media_type: str) -> None:
        """Raise an AppError for an error, or for a media type that our service would not send."""
        if answer.is_error:
            answer.read()
            raise AppError(_detail(answer))
        sent = answer.headers.get("content-type", "nothing")
        if sent.partition(";")[0].strip().lower() != media_type:
            raise UnavailableError(f"{self._url} is not an Exemplar service (it sent {sent}): correct the address.")

    def _unreachable(self, error: Exception) -> UnavailableError:
        return UnavailableError(f"No service answers at {self._url}: start one with `make serve` ({error}).")


def _no_address(url: str) -> InvalidInputError:
    return InvalidInputError(f"{url!r} is not a valid address: write it like http://127.0.0.1:8000.")


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The service answered {answer.status_code}."
