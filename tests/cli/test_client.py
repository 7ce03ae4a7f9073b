"""The command line's client: pages of lists, and what a batch outlives."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest

from app.client import Client, RefusedError
from app.errors import InvalidInputError, UnavailableError


class Pages(BaseHTTPRequestHandler):
    """A service that lists five things, two on a page."""

    def do_GET(self) -> None:
        at = urlsplit(self.path)
        start = int(parse_qs(at.query).get("cursor", ["0"])[0])
        items = [{"id": str(number), "query": at.query} for number in range(5)][start : start + 2]
        raw = json.dumps(items).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if start + 2 < 5:
            self.send_header("Link", f'<{at.path}?status=failed&cursor={start + 2}>; rel="next"')
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Not in the test's output."""


def test_lists_are_read_to_the_last_page(serving) -> None:
    with serving(Pages) as url, Client(url) as client:
        jobs = list(client.jobs(status="failed"))
        assert [category["id"] for category in client.categories()] == list("01234")
    assert [job["id"] for job in jobs] == list("01234")
    assert [job["query"] for job in jobs][::2] == ["status=failed", "status=failed&cursor=2", "status=failed&cursor=4"]


class Moody(BaseHTTPRequestHandler):
    """A service that is busy, then breaks off after one photo, then refuses several photos at once, then answers."""

    asked: list[int]

    def do_POST(self) -> None:
        count = self.rfile.read(int(self.headers["content-length"])).count(b'name="images"')
        self.asked.append(count)
        if len(self.asked) == 1:
            return self.answer(503, {"detail": "Busy."}, retry_after="0")
        if len(self.asked) == 2:
            return self.answer(200, {"index": 0, "categories": []})
        if count > 1:
            return self.answer(413, {"detail": "Too much."})
        if len(self.asked) == 4:
            return self.answer(413, {"detail": "This one is too large."})
        self.answer(200, {"index": 0, "categories": []})

    def answer(self, status: int, body: dict, *, retry_after: str | None = None) -> None:
        raw = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/x-ndjson" if status == 200 else "application/problem+json")
        self.send_header("Content-Length", str(len(raw)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Not in the test's output."""


def test_a_batch_outlives_a_service_that_is_busy_or_breaks_off(serving, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("app.client._PAUSE_S", 0.01)
    Moody.asked = []
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for file in files[:3]:
        file.write_bytes(b"a photo")
    with serving(Moody) as url, Client(url) as client:
        lines = list(client.batch(files, ["cat"]))
    assert [line["index"] for line in lines] == [3, 0, 1, 2]
    assert [line["problem"]["detail"] for line in lines if "problem" in line] == [
        "No such file or directory.",
        "This one is too large.",
    ]
    assert Moody.asked == [3, 3, 2, 1, 1]


def test_a_job_is_followed_over_any_number_of_streams(serving, monkeypatch) -> None:
    monkeypatch.setattr("app.client._PAUSE_S", 0.0)
    steps = iter(range(12))

    class Cut(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            step = next(steps, 11)
            states = [{"status": "running", "step": step - 1}, {"status": "running", "step": step}]
            if step == 11:
                states.append({"status": "succeeded", "step": step})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for state in states:
                self.wfile.write(f"data: {json.dumps(state)}\n\n".encode())

        def log_message(self, *_: object) -> None:
            """Not in the test's output."""

    with serving(Cut) as url, Client(url) as client:
        followed = [state["step"] for state in client.follow("1")]
    assert followed == [*range(-1, 12), 11]


def test_an_address_that_is_none() -> None:
    with pytest.raises(InvalidInputError, match="not a valid address"):
        Client("ftp://127.0.0.1")


class Silent(Moody):
    """A service that never gets to the first photo."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_batch_without_answers_ends(serving, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("app.client._PAUSE_S", 0.01)
    (tmp_path / "a.png").write_bytes(b"a photo")
    with serving(Silent) as url, Client(url) as client, pytest.raises(UnavailableError, match="before the last photo"):
        list(client.batch([tmp_path / "a.png"], []))


def test_names_that_are_not_utf8(serving, tmp_path) -> None:
    class Asked(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert b'filename="caf?.png"' in body
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.end_headers()
            self.wfile.write(b'{"index": 0, "categories": []}\n')

    photo = tmp_path / os.fsdecode(b"caf\xe9.png")
    photo.write_bytes(b"any")
    with serving(Asked) as url, Client(url) as client:
        assert list(client.batch([photo], [])) == [{"index": 0, "categories": []}]
        for call in (lambda: client.category("caf\udce9"), lambda: list(client.batch([photo], ["caf\udce9"]))):
            with pytest.raises(InvalidInputError, match="not UTF-8"):
                call()


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_of_dots_is_not_taken_for_a_folder(serving, name: str) -> None:
    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(422)
            self.end_headers()
            self.wfile.write(json.dumps({"detail": self.path}).encode())

    with (
        serving(Asked) as url,
        Client(url) as client,
        pytest.raises(RefusedError, match=f"/categories/{'%2E' * len(name)}"),
    ):
        client.category(name)
