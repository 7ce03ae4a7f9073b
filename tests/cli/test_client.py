"""The command line's client: pages of lists, and what a batch outlives."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import pytest

from app.client import Client, RefusedError
from app.errors import InvalidInputError, UnavailableError


class Pages(BaseHTTPRequestHandler):
    """A service that lists five things, two on a page."""

    def do_GET(self) -> None:
        at = urlsplit(self.path)
        start = int(parse_qs(at.query).get("cursor", ["0"])[0])
        items = [{"id": str(number), "path": at.path, "query": at.query} for number in range(5)][start : start + 2]
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


@pytest.mark.parametrize("prefix", ["", "/exemplar"])
def test_lists_are_read_to_the_last_page(serving, prefix: str) -> None:
    """Also behind a proxy that serves under a prefix, which the links have too."""
    with serving(Pages) as url, Client(url + prefix) as client:
        jobs = list(client.jobs(status="failed"))
        assert [category["id"] for category in client.categories()] == list("01234")
    assert [job["id"] for job in jobs] == list("01234")
    assert {job["path"] for job in jobs} == {f"{prefix}/jobs"}
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


class Clock:
    """A clock that stands still but in pauses."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Restarted:
    """A service that gives its first answer, then refuses connections until a time of the clock, then answers on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: httpx.Response, until_s: float = 40) -> None:
        self.clock = Clock()
        self.until_s = until_s
        self.waiting = list(answers)
        self.keys: list[str | None] = []
        monkeypatch.setattr("app.client.time", self.clock)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.keys and self.clock.now_s < self.until_s:
            raise httpx.ConnectError("Connection refused", request=request)
        self.keys.append(request.headers.get("idempotency-key"))
        return self.waiting.pop(0)

    def client(self) -> Client:
        client = Client("http://service")
        client._http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(self))
        return client


def answer_of(text: str, kind: str) -> httpx.Response:
    return httpx.Response(200, text=text, headers={"Content-Type": kind})


def line_of_photo() -> httpx.Response:
    return answer_of('{"index": 0, "categories": []}\n', "application/x-ndjson")


def event_of(status: str) -> httpx.Response:
    return answer_of(f'data: {{"status": "{status}"}}\n\n', "text/event-stream")


def busy(status: int, seconds: int, *, title: str = "Busy") -> httpx.Response:
    return httpx.Response(status, json={"title": title, "detail": "Later."}, headers={"Retry-After": str(seconds)})


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"a photo")
    return tmp_path / "a.png"


def test_photos_outlive_a_restart(photo: Path, monkeypatch) -> None:
    service = Restarted(monkeypatch, line_of_photo(), line_of_photo())
    with service.client() as client:
        assert [line["index"] for line in client.batch([photo, photo], [])] == [0, 1]
    assert 40 <= service.clock.now_s <= 42


def test_teaching_outlives_a_restart(photo: Path, monkeypatch) -> None:
    """The job is taken over; the example that is sent after it is stored once, though its first answer is lost."""
    taught = httpx.Response(202, json={"job": {"id": "1"}})
    service = Restarted(monkeypatch, event_of("running"), event_of("succeeded"), busy(409, 2), taught)
    with service.client() as client:
        assert [state["status"] for state in client.follow("1")] == ["running", "succeeded"]
        assert client.teach("cat", photo, box=[1, 2, 3, 4])["id"] == "1"
    assert service.keys[2] == service.keys[3] is not None


def test_a_service_that_does_not_come_back(photo: Path, monkeypatch) -> None:
    service = Restarted(monkeypatch, line_of_photo(), until_s=1000)
    with service.client() as client, pytest.raises(UnavailableError, match=r"any more.*continues where"):
        list(client.batch([photo, photo], []))
    assert 60 <= service.clock.now_s <= 62


def test_a_limit_of_requests_a_minute_is_waited_for_by_every_call(photo: Path, monkeypatch) -> None:
    done = [httpx.Response(200, json=answer) for answer in ({"name": "cat"}, [], {"categories": []})]
    answers = [answer for good in done for answer in (busy(429, 60), busy(503, 1), good)]
    picture = answer_of("a picture", "image/png")
    service = Restarted(monkeypatch, *answers, busy(429, 60), picture, until_s=0)
    with service.client() as client:
        assert client.category("cat") == {"name": "cat"}
        assert client.categories() == []
        assert client.segment(photo, ["cat"]) == {"categories": []}
        assert client.overlay(photo, ["cat"]) == b"a picture"
    assert service.clock.now_s == 3 * 61 + 60


def test_what_may_have_been_done_is_not_done_again(monkeypatch) -> None:
    def lose(request: httpx.Request) -> httpx.Response:
        lost.append(request.method)
        raise httpx.ReadError("cut", request=request)

    lost: list[str] = []
    service = Restarted(monkeypatch, httpx.Response(200, json=[]), until_s=0)
    with service.client() as client:
        client.categories()
        client._http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(lose))
        for call in (lambda: client.delete("cat"), lambda: client.import_("cat", b"any"), client.categories):
            with pytest.raises(UnavailableError):
                call()
    assert lost == ["DELETE", "PUT", *["GET"] * 5]


def test_what_is_refused_is_sent_again_and_what_may_have_been_done_is_not(monkeypatch) -> None:
    """A queue that is full has done nothing; a store that does not answer may have deleted the category."""
    refusals = [busy(429, 1), busy(503, 1, title="Overloaded")]
    unknown = [busy(503, 1, title="Unavailable"), httpx.Response(503, text="upstream failed")]
    service = Restarted(monkeypatch, *refusals, httpx.Response(204), *unknown, until_s=0)
    with service.client() as client:
        client.delete("cat")
        for call in (lambda: client.delete("cat"), lambda: client.import_("cat", b"any")):
            with pytest.raises(RefusedError):
                call()
    assert service.waiting == []
    assert service.clock.now_s == 2


def test_lines_that_are_cut_off_are_lost(photo: Path, monkeypatch) -> None:
    """As by a proxy that tells the end of an answer by closing the connection."""
    answers = [answer_of('{"ind', "application/x-ndjson"), line_of_photo()]
    events = [answer_of("data: {", "text/event-stream"), event_of("succeeded")]
    service = Restarted(monkeypatch, *answers, *events, until_s=0)
    with service.client() as client:
        assert [line["index"] for line in client.batch([photo], [])] == [0]
        assert [state["status"] for state in client.follow("1")] == ["succeeded"]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "ftp://127.0.0.1:1"])
def test_proxies_that_can_not_be_used(proxy: str, monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(InvalidInputError, match="environment names"):
        Client("http://127.0.0.1:8000")


def test_a_proxy_that_does_not_answer_is_named(monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9/")
    with (
        Client("http://127.0.0.1:8") as client,
        pytest.raises(UnavailableError, match=r"through the proxy 127\.0\.0\.1:9 .*NO_PROXY"),
    ):
        client.categories()


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


def test_a_job_is_followed_through_a_gateway_that_cuts_every_answer(monkeypatch) -> None:
    """Each stream begins with the state of the job, which does not change in its time."""
    service = Restarted(monkeypatch, *[event_of("running")] * 20, event_of("succeeded"), until_s=0)
    with service.client() as client:
        assert [state["status"] for state in client.follow("1")] == ["running", "succeeded"]
    assert service.clock.now_s == 20, "a pause before every stream"


def test_events_that_never_come_end(monkeypatch) -> None:
    service = Restarted(monkeypatch, *[answer_of(": ping\n\n", "text/event-stream")] * 5, until_s=0)
    with service.client() as client, pytest.raises(UnavailableError, match="ended before the job"):
        list(client.follow("1"))
    assert service.waiting == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://my..host:8000", "http://[bad"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InvalidInputError, match="not a valid address"):
        Client(url)


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
