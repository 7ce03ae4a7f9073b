"""Retries, pages and errors: what is decided without a network."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest
from PIL import Image

from exemplar_client import (
    AsyncClient,
    Client,
    Conflict,
    ExemplarError,
    FieldError,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    ServerFault,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from exemplar_client.errors import error_of
from exemplar_client.wire import Lost, Pause, Reply, Request, Retries, Send, Service, next_page, send

GOOD = Reply(200, {"content-type": "application/json; charset=utf-8"}, b"[]")
READ = Request("GET", "/categories")
ONCE = Request("DELETE", "/categories/cat", repeatable=False, expects=None)


def reply(status: int, **headers: str) -> Reply:
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, b"{}")


def problem(title: str, status: int = 503) -> Reply:
    """What the service answers if it refuses a request, or does not know what became of it."""
    body = json.dumps({"title": title, "status": status, "detail": "Later."}).encode()
    return Reply(status, {"content-type": "application/problem+json", "retry-after": "1"}, body)


def pauses(request: Request, *replies: Reply | Lost, tries: int = 5) -> list[float]:
    """Seconds between the tries of a request that is answered so."""
    flow = send(request, Retries(tries), Service("http://service"))
    waiting, waited, effect = list(replies), [], next(flow)
    try:
        while True:
            if isinstance(effect, Send):
                effect = flow.send(waiting.pop(0))
            else:
                assert isinstance(effect, Pause)
                waited.append(effect.seconds)
                effect = flow.send(None)
    except StopIteration:
        assert waiting == []
        return waited


class Clock:
    """A clock that stands still but in pauses."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(time, "monotonic", stopped.monotonic)
    monkeypatch.setattr(time, "sleep", stopped.sleep)
    return stopped


def test_what_the_service_names_is_waited_for() -> None:
    assert pauses(READ, reply(503, retry_after="7"), reply(429, retry_after="2"), GOOD) == [7, 2]


def test_a_date_is_waited_for() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    (waited,) = pauses(READ, reply(503, retry_after=later), GOOD)
    assert waited == pytest.approx(20, abs=2)
    assert pauses(READ, reply(503, retry_after="Mon, 01 Jan 2001 00:00:00 GMT"), GOOD) == [0]


def test_without_a_name_pauses_grow() -> None:
    waited = pauses(READ, reply(503), reply(502), Lost("cut", received=True), reply(503, retry_after="soon"), GOOD)
    for seconds, longest in zip(waited, (0.5, 1, 2, 4), strict=True):
        assert longest / 2 <= seconds <= longest


def test_a_long_wait_is_not_made() -> None:
    with pytest.raises(Unavailable):
        pauses(READ, reply(503, retry_after="3600"))


def test_a_limit_of_requests_a_minute_is_waited_for() -> None:
    assert pauses(READ, reply(429, retry_after="60"), GOOD) == [60]


def test_tries_are_bounded() -> None:
    with pytest.raises(Unavailable, match="No service answers at http://service"):
        pauses(READ, *[Lost("refused", received=False)] * 3, tries=3)


@pytest.mark.parametrize(
    "answer", [Lost("cut", received=True), reply(502), reply(503), reply(504), problem("Unavailable")]
)
def test_what_may_have_been_done_is_not_done_again(answer: Reply | Lost) -> None:
    """A replica may have died, and a store may hang, after the category was deleted."""
    with pytest.raises(Unavailable):
        pauses(ONCE, answer)
    assert len(pauses(READ, answer, GOOD)) == 1


def test_what_was_not_received_or_refused_is_sent_again() -> None:
    refused = [Lost("refused", received=False), problem("Overloaded"), problem("Too many requests", 429)]
    assert len(pauses(ONCE, *refused, reply(204))) == 3


def test_a_conflict_is_repeated_only_if_it_passes() -> None:
    assert pauses(READ, reply(409, retry_after="1"), GOOD) == [1]
    with pytest.raises(Conflict):
        pauses(READ, reply(409))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, Invalid), (401, Unauthorized), (403, Forbidden), (404, NotFound), (409, Conflict), (412, Conflict)),
        *((413, TooLarge), (415, UnsupportedMedia), (418, ExemplarError), (422, Invalid), (429, Overloaded)),
        *((500, ServerFault), (502, Unavailable), (503, Unavailable), (504, Unavailable), (599, ServerFault)),
    ],
)
def test_errors_by_status(status: int, kind: type[ExemplarError]) -> None:
    error = error_of(status, None, request_id="id")
    assert type(error) is kind
    assert (error.status, error.request_id) == (status, "id")
    assert str(status) in error.detail


def test_an_error_tells_what_the_service_told() -> None:
    problem = {"title": "Overloaded", "detail": "The queue is full.", "errors": [{"field": "image", "detail": "no"}]}
    error = error_of(503, problem)
    assert isinstance(error, Overloaded)
    assert isinstance(error, Unavailable)
    assert str(error) == error.detail == "The queue is full."
    assert error.errors == [FieldError("image", "no")]


@pytest.mark.parametrize("problem", [[], "text", {"errors": 5}, {"errors": [5]}, {"detail": None}])
def test_any_body_makes_an_error(problem: object) -> None:
    assert isinstance(error_of(404, problem), NotFound)


def test_another_service_is_told() -> None:
    with pytest.raises(ExemplarError, match="not an Exemplar service"):
        pauses(READ, Reply(200, {"content-type": "text/html"}, b"<html>"))


@pytest.mark.parametrize(
    ("link", "page"),
    [
        ("", None),
        ('</categories?cursor=a%20b&limit=2>; rel="next"', {"cursor": "a b", "limit": "2"}),
        ('</c?cursor=1>; rel="prev", </c?cursor=3>; rel=next', {"cursor": "3"}),
        ('</c?cursor=1>; rel="prev"', None),
    ],
)
def test_next_page(link: str, page: Mapping[str, str] | None) -> None:
    assert next_page(Reply(200, {"link": link}, b"")) == page


@pytest.mark.parametrize("request_", [READ, ONCE])
def test_a_redirection_is_no_success(request_: Request) -> None:
    with pytest.raises(ExemplarError, match="redirects to https://service/"):
        pauses(request_, reply(307, location="https://service/"))


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://host", "http://", "http://foo:abc", "", "http://[::1", "http://[bad"),
        *("http://my..host:8000", "http://.host", f"http://{'a' * 64}.org"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_is_no_address(kind: type[Client | AsyncClient], url: str) -> None:
    with pytest.raises(Invalid, match=r"like http://127\.0\.0\.1:8000"):
        kind(url)


@pytest.mark.parametrize(("wrong", "told"), [({"tries": 0}, "tries is 0"), ({"timeout_s": -1}, "timeout_s is -1")])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_leaves_no_try_or_no_time(kind: type[Client | AsyncClient], wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(Invalid, match=told):
        kind("http://127.0.0.1:8000", **wrong)


@pytest.mark.parametrize(
    ("proxy", "told"),
    [("socks5://127.0.0.1:1", "SOCKS proxy: pip install"), ("ftp://127.0.0.1:1", "can't be used: .*ftp")],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_proxies_that_can_not_be_used(
    kind: type[Client | AsyncClient], proxy: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(Invalid, match=told):
        kind("http://127.0.0.1:8000")


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.2")
    with (
        Client("http://127.0.0.1:8", tries=1) as client,
        pytest.raises(Unavailable, match=r"through the proxy 127\.0\.0\.1:9, .* NO_PROXY") as failed,
    ):
        client.categories()
    assert "secret" not in failed.value.detail
    with (
        Client("http://127.0.0.2:9", tries=1) as client,
        pytest.raises(Unavailable, match=r"at http://\S+ \(.*refused"),
    ):
        client.categories()


@pytest.mark.parametrize("key", ["", "clé", "two lines\n"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(Invalid, match="API key"):
        Client("http://127.0.0.1:8000", key)


class Told:
    """A transport that answers from a list and keeps what it was asked."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.waiting = list(answers)
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.asked.append(request)
        answer = self.waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, url: str = "http://service/behind") -> Client:
        return Client(url, "secret", transport=httpx2.MockTransport(self))


def category(name: str) -> dict[str, Any]:
    return {"name": name, "prompts": [name], "examples": 1, "adapter": None, "job": None}


def test_all_pages_of_a_list_are_read() -> None:
    told = Told(
        httpx2.Response(200, json=[category("cat")], headers={"Link": '</categories?cursor=2>; rel="next"'}),
        httpx2.Response(200, json=[category("dog") | {"new field": 1}]),
    )
    with told.client() as client:
        assert [each.name for each in client.categories()] == ["cat", "dog"]
    assert [str(request.url) for request in told.asked] == [
        "http://service/behind/categories",
        "http://service/behind/categories?cursor=2",
    ]
    assert {request.headers["x-api-key"] for request in told.asked} == {"secret"}


def test_a_repeated_example_has_the_same_key(photo: Any, marked: Any) -> None:
    job = {"id": "1", "kind": "tune", "category": "cat", "status": "queued", "progress": 0, "step": 0, "steps": 3}
    job |= dict.fromkeys(["loss", "example_iou", "error", "adapter_version", "started_at", "finished_at"])
    taught = {"job": job | {"created_at": "2026-01-01T00:00:00Z"}, "category": category("cat")}
    taught |= {"warnings": [{"code": "mask-very-small", "detail": "It is small."}]}
    told = Told(
        httpx2.ReadError("cut"),
        httpx2.Response(409, json={}, headers={"Retry-After": "0"}),
        httpx2.Response(202, json=taught),
        httpx2.Response(202, json=taught),
    )
    with told.client() as client:
        started = client.teach("cat", photo, marked)
        client.teach("cat", photo, marked)
    keys = [request.headers["idempotency-key"] for request in told.asked]
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]
    assert [warning.code for warning in started.warnings] == ["mask-very-small"]


@pytest.mark.parametrize("name", ["", "  ", "a/b"])
def test_what_is_no_name(name: str) -> None:
    with Told().client() as client, pytest.raises(Invalid, match="not a category's name"):
        client.category(name)


def test_an_answer_of_another_version() -> None:
    told = Told(httpx2.Response(200, json={"unknown": 1}))
    with (
        told.client() as client,
        pytest.raises(ExemplarError, match="not what this version of exemplar-client expects"),
    ):
        client.category("cat")


def segmented(index: int) -> str:
    photo = {"width": 47, "height": 31, "sha256": "0"}
    return json.dumps({"index": index, "image": photo, "backbone": {"name": "tiny", "revision": "0"}}) + "\n"


def answer_of(*lines: str, kind: str = "application/x-ndjson") -> httpx2.Response:
    """An answer of several lines."""
    return httpx2.Response(200, text="".join(lines), headers={"Content-Type": kind})


def state(status: str) -> str:
    job = {"id": "1", "kind": "tune", "category": "cat", "progress": 0, "step": 0, "steps": 3, "created_at": 0}
    job |= dict.fromkeys(["loss", "example_iou", "error", "adapter_version", "started_at", "finished_at"])
    return f"data: {json.dumps(job | {'status': status})}\n\n"


def test_photos_without_an_answer_are_sent_again(photo: Any) -> None:
    def cut() -> Any:
        yield segmented(1).encode()
        raise httpx2.ReadError("cut")

    kind = {"Content-Type": "application/x-ndjson"}
    told = Told(
        httpx2.Response(200, content=cut(), headers=kind),
        httpx2.Response(200, text=segmented(1) + "\n" + segmented(0), headers=kind),
    )
    with told.client() as client:
        found = list(client.segment_many([photo, photo, photo], "cat", progress=False))
    assert [masks.position for masks in found] == [1, 2, 0]
    assert [request.content.count(b"filename=") for request in told.asked] == [3, 2]


def test_a_service_that_never_answers_the_last_photo(photo: Any) -> None:
    kind = {"Content-Type": "application/x-ndjson"}
    with Told(*[httpx2.Response(200, text="", headers=kind) for _ in range(5)]).client() as client:
        client._calls._retries = Retries(tries=2)
        with pytest.raises(Unavailable, match="before the last photo"):
            list(client.segment_many([photo], progress=False))


def test_events_are_followed_over_a_cut() -> None:
    kind = "text/event-stream"
    running, done = state("running"), state("succeeded")
    told = Told(answer_of(": ping\n\n", running, kind=kind), answer_of(running, done, kind=kind))
    with told.client() as client:
        assert [state.status for state in client.follow("1")] == ["running", "succeeded"]


def test_a_job_is_followed_through_a_gateway_that_cuts_every_answer(clock: Clock) -> None:
    """Each stream begins with the state of the job, which does not change in its time."""
    states = [*[state("running")] * 20, state("succeeded")]
    with Told(*[answer_of(each, kind="text/event-stream") for each in states]).client() as client:
        assert [each.status for each in client.follow("1")] == ["running", "succeeded"]
    assert clock.now_s >= 20 * 0.25, "a pause before every stream"


def test_events_that_never_come_end(clock: Clock) -> None:
    told = Told(*[answer_of(": ping\n\n", kind="text/event-stream") for _ in range(5)])
    with told.client() as client, pytest.raises(Unavailable, match="end before the job"):
        list(client.follow("1"))
    assert told.waiting == []


class Restarted:
    """A transport that answers, then refuses connections until a time of the clock, then answers on."""

    def __init__(self, clock: Clock, *, until_s: float, answers: list[httpx2.Response]) -> None:
        self.clock = clock
        self.until_s = until_s
        self.waiting = answers
        self.asked = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked += 1
        if self.asked > 1 and self.clock.now_s < self.until_s:
            raise httpx2.ConnectError("Connection refused", request=request)
        return self.waiting.pop(0)

    def client(self) -> Client:
        return Client("http://service", transport=httpx2.MockTransport(self))


def test_lines_that_are_cut_off_are_lost(photo: Any, clock: Clock) -> None:
    """As by a proxy that tells the end of an answer by closing the connection."""
    told = Told(answer_of(segmented(0), segmented(1)[:40]), answer_of(segmented(0)))
    with told.client() as client:
        assert [each.position for each in client.segment_many([photo, photo], "cat", progress=False)] == [0, 1]
    events = "text/event-stream"
    told = Told(answer_of(state("running")[:40], kind=events), answer_of(state("succeeded"), kind=events))
    with told.client() as client:
        assert [each.status for each in client.follow("1")] == ["succeeded"]


def test_photos_outlive_a_restart(photo: Any, clock: Clock) -> None:
    """Nothing listens while the new process loads its model."""
    service = Restarted(clock, until_s=40, answers=[answer_of(segmented(0)), answer_of(segmented(0))])
    with service.client() as client:
        found = list(client.segment_many([photo, photo], "cat", progress=False))
    assert [masks.position for masks in found] == [0, 1]
    assert 40 <= clock.now_s <= 45


def test_a_job_is_followed_over_a_restart(clock: Clock) -> None:
    answers = [answer_of(state(status), kind="text/event-stream") for status in ("running", "succeeded")]
    with Restarted(clock, until_s=40, answers=answers).client() as client:
        assert [each.status for each in client.follow("1")] == ["running", "succeeded"]


def test_a_service_that_does_not_come_back(clock: Clock) -> None:
    service = Restarted(clock, until_s=1000, answers=[httpx2.Response(200, json=[])])
    with service.client() as client:
        client.categories()
        with pytest.raises(Unavailable, match=r"does not answer any more .* accepted go on"):
            client.categories()
    assert 60 <= clock.now_s <= 65


def test_a_wrong_address_is_told_soon(clock: Clock) -> None:
    with (
        Told(*[httpx2.ConnectError("refused")] * 5).client() as client,
        pytest.raises(Unavailable, match="correct the address"),
    ):
        client.categories()
    assert clock.now_s < 8


def test_a_busy_service_after_a_restart_has_all_tries(clock: Clock) -> None:
    busy = [httpx2.Response(503, json={}, headers={"Retry-After": "2"}) for _ in range(4)]
    good = [httpx2.Response(200, json=[]) for _ in range(2)]
    with Restarted(clock, until_s=40, answers=[good[0], *busy, good[1]]).client() as client:
        client.categories()
        assert client.categories() == []


@pytest.mark.parametrize(("refused", "tries"), [(True, 5), (False, 5), (False, 1)])
def test_a_job_is_waited_for_no_longer_than_told(clock: Clock, refused: bool, tries: int) -> None:
    def silent(request: httpx2.Request) -> httpx2.Response:
        if refused:
            raise httpx2.ConnectError("refused", request=request)
        clock.sleep(request.extensions["timeout"]["read"])
        raise httpx2.ReadTimeout("silent", request=request)

    with (
        Client("http://service", tries=tries, transport=httpx2.MockTransport(silent)) as client,
        pytest.raises(TimeoutError, match="Job 1 has not ended in time"),
    ):
        list(client.follow("1", timeout_s=2))
    assert clock.now_s == pytest.approx(2)


def test_options_that_do_not_exist(photo: Any) -> None:
    with Told().client() as client:
        with pytest.raises(TypeError, match="treshold"):
            client.segment(photo, ["cat"], treshold=0.5)  # type: ignore[call-arg]
        with pytest.raises(Invalid, match="No category is named"):
            client.segment(photo, [])
        one = Image.new("RGB", (5, 7))
        wrong: list[Any] = [photo, photo.read_bytes(), photo.parent / "nowhere", None, one, aiter_of(photo)]
        for images in wrong:
            with pytest.raises(Invalid, match="folder"):
                client.segment_many(images)
        empty = photo.parent / "empty"
        empty.mkdir()
        (empty / "._photo.jpg").write_bytes(b"what macOS leaves beside a photo")
        with pytest.raises(Invalid, match="no image files"):
            client.segment_many(empty)
        points: Any = (100, 100)
        with pytest.raises(Invalid, match=r"\(100, 100\): give a list of \(x, y\)"):
            client.click(photo, points)


async def aiter_of(photo: Any) -> AsyncIterator[Any]:
    yield photo


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines", ""])
def test_what_is_no_idempotency_key(photo: Any, marked: Any, key: str) -> None:
    with Told().client() as client, pytest.raises(Invalid, match="idempotency_key"):
        client.teach("cat", photo, marked, idempotency_key=key)
