"""Request bodies in pieces, as a real server delivers them and the test client does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from app.api.middleware import BodyLimit, Identified
from app.metrics import Metrics

LIMIT = 2 * 1000 + 1_048_576  # as BodyLimit has it for uploads of 1,000 bytes
PIECE = bytes(100_000)
NAMED = {"type": "http", "method": "PUT", "path": "/", "headers": [(b"x-request-id", b"order-8")]}


class Caller:
    """Sends a body in pieces and keeps the answer. Asked for more than there is, it fails: a server would hang."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = list(pieces)
        self.answer: list[Message] = []

    async def receive(self) -> Message:
        return {"type": "http.request", "body": self.pieces.pop(0), "more_body": bool(self.pieces)}

    async def send(self, message: Message) -> None:
        self.answer.append(message)

    @property
    def status(self) -> int:
        return self.answer[0]["status"]


class SlowCaller(Caller):
    """Sends its last piece only when it is told to; `stopped` is set once the others are read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__(pieces)
        self.stopped, self.goes_on = asyncio.Event(), asyncio.Event()

    async def receive(self) -> Message:
        if len(self.pieces) == 1:
            self.stopped.set()
            await self.goes_on.wait()
        return await super().receive()


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    size = 0
    while True:
        message = await receive()
        size += len(message["body"])
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def catches_everything(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await reads_all(scope, receive, send)
    except Exception:  # as FastAPI does around the reading of a body
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body"})


def limited(app, *, max_upload_bytes: int = 1000, upload_space_bytes: int = 10**9) -> BodyLimit:
    return BodyLimit(app, max_upload_bytes=max_upload_bytes, upload_space_bytes=upload_space_bytes)


async def call(caller: Caller, *, app=reads_all, path: str = "/segment", declared: int | None = None) -> None:
    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    await limited(app)(scope, caller.receive, caller.send)


class TestBodyLimit:
    async def test_a_body_at_the_limit_passes(self) -> None:
        caller = Caller([PIECE] * (LIMIT // 100_000) + [bytes(LIMIT % 100_000)])
        await call(caller)
        assert (caller.status, caller.answer[1]["body"]) == (200, str(LIMIT).encode())

    @pytest.mark.parametrize("app", [reads_all, catches_everything])
    @pytest.mark.parametrize("last", [1, 5], ids=["its last piece is over", "more comes"])
    async def test_a_body_over_the_limit_is_read_to_its_end_and_refused(self, app, last) -> None:
        caller = Caller([PIECE] * (LIMIT // 100_000) + [bytes(LIMIT % 100_000 + 1)] + [PIECE] * (last - 1))
        await call(caller, app=app)
        problem = json.loads(caller.answer[1]["body"])
        assert not caller.pieces
        assert (caller.status, problem["status"], problem["title"]) == (413, 413, "Too large")

    async def test_a_body_that_says_its_length_is_not_read_by_the_application(self) -> None:
        async def never(scope: Scope, receive: Receive, send: Send) -> None:
            raise AssertionError

        caller = Caller([PIECE] * 20)
        await call(caller, app=never, declared=2_000_000)
        assert caller.status == 413
        assert not caller.pieces

    async def test_a_body_whose_sender_asks_first_is_not_read_at_all(self) -> None:
        caller = Caller([PIECE] * 20)
        headers = [(b"content-length", b"2000000"), (b"expect", b"100-continue")]
        scope = {"type": "http", "method": "POST", "path": "/segment", "headers": headers}
        await limited(reads_all)(scope, caller.receive, caller.send)
        assert caller.status == 413
        assert len(caller.pieces) == 20

    async def test_a_body_without_end_is_not_read_for_ever(self) -> None:
        caller = Caller([PIECE] * 1000)
        await call(caller)
        assert caller.status == 413
        assert len(caller.pieces) > 900

    async def test_many_photos_may_be_more(self) -> None:
        many = 8 * 1000 + 1_048_576
        for path, size, status in (
            ("/segment/batch", many, 200),
            ("/segment/batch", many + 1, 413),
            ("/segment", many, 413),
        ):
            caller = Caller([bytes(size)])
            await call(caller, path=path)
            assert caller.status == status

    @pytest.mark.parametrize(
        ("media_type", "status"), [(b"application/json", 413), (b"multipart/form-data; boundary=json", 200)]
    )
    async def test_json_of_more_values_than_anybody_has_is_refused(self, media_type: bytes, status: int) -> None:
        caller = Caller([b"1," * 50_000] * 81)
        scope = {"type": "http", "method": "POST", "path": "/label-studio/predict"}
        headers = [(b"content-type", media_type)]
        large = limited(reads_all, max_upload_bytes=20_000_000)
        await large({**scope, "headers": headers}, caller.receive, caller.send)
        assert caller.status == status
        assert not caller.pieces
        if status == 413:
            assert "more than 4000000 values" in json.loads(caller.answer[1]["body"])["detail"]


class TestUploadSpace:
    """Several uploads at a time, in a space of a million bytes."""

    @pytest.fixture
    def metrics(self) -> Metrics:
        return Metrics()

    @pytest.fixture
    def sent(self, metrics: Metrics):
        """Sends what a caller has, by one middleware; an upload may have 2.05 MB."""
        middleware = limited(catches_everything, max_upload_bytes=500_000, upload_space_bytes=1_000_000)
        state = {"service": SimpleNamespace(metrics=metrics)}

        async def send(caller: Caller) -> Caller:
            scope = {"type": "http", "method": "POST", "path": "/segment", "headers": [], "state": state}
            await middleware(scope, caller.receive, caller.send)
            return caller

        return send

    async def test_an_upload_that_finds_no_space_is_refused_until_the_others_end(self, sent, metrics: Metrics) -> None:
        slow = [SlowCaller([PIECE] * 5) for _ in range(2)]
        async with asyncio.TaskGroup() as uploads:
            for one in slow:
                uploads.create_task(sent(one))
                await one.stopped.wait()

            third = SlowCaller([PIECE] * 5)
            refused = uploads.create_task(sent(third))
            await third.stopped.wait()
            problem = json.loads(third.answer[1]["body"])  # whole, though the caller still sends
            assert (third.status, problem["status"], problem["title"]) == (503, 503, "Overloaded")
            assert (b"retry-after", b"1") in third.answer[0]["headers"]
            assert "EXEMPLAR_UPLOAD_SPACE_BYTES" in problem["detail"]
            assert metrics.registry.get_sample_value("exemplar_rejected_total", {"reason": "upload_space_full"}) == 1
            third.goes_on.set()
            await refused
            assert not third.pieces

            small = await sent(Caller([bytes(200_000)]))  # the refused one has given back what it took
            assert small.status == 200
            for one in slow:
                one.goes_on.set()
        assert [one.status for one in slow] == [200, 200]
        assert (await sent(Caller([PIECE] * 10))).status == 200

    async def test_an_upload_that_is_broken_off_gives_its_space_back(self, sent) -> None:
        slow, broken = SlowCaller([PIECE] * 2), SlowCaller([PIECE] * 9)
        async with asyncio.TaskGroup() as uploads:
            uploads.create_task(sent(slow))
            await slow.stopped.wait()
            breaking = asyncio.create_task(sent(broken))
            await broken.stopped.wait()
            breaking.cancel()
            await asyncio.wait([breaking])
            assert (await sent(Caller([PIECE] * 9))).status == 200
            slow.goes_on.set()

    async def test_an_upload_that_is_alone_is_read_although_it_needs_more(self, sent) -> None:
        assert (await sent(Caller([PIECE] * 15))).status == 200

        large = SlowCaller([PIECE] * 15)
        async with asyncio.TaskGroup() as uploads:
            uploads.create_task(sent(large))
            await large.stopped.wait()
            assert (await sent(Caller([b""]))).status == 200  # a call without a body needs no space
            assert (await sent(Caller([b"1"]))).status == 503
            large.goes_on.set()


class TestIdentified:
    """Faults after a response has begun, and callers that have gone."""

    async def test_a_fault_before_the_answer_is_told(self) -> None:
        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            raise KeyError("secret")

        caller = Caller([])
        await Identified(faulty)(dict(NAMED), caller.receive, caller.send)
        assert caller.status == 500
        assert (b"x-request-id", b"order-8") in caller.answer[0]["headers"]
        assert "secret" not in str(caller.answer)

    async def test_a_fault_in_the_middle_of_an_answer_cuts_it(self) -> None:
        async def breaks_off(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise KeyError

        caller = Caller([])
        with pytest.raises(KeyError):  # the server closes the connection: an end would look like the whole
            await Identified(breaks_off)(dict(NAMED), caller.receive, caller.send)
        assert [message["type"] for message in caller.answer] == ["http.response.start", "http.response.body"]

    async def test_a_caller_that_left_is_no_fault(self, caplog: pytest.LogCaptureFixture) -> None:
        async def reads(scope: Scope, receive: Receive, send: Send) -> None:
            await Request(scope, receive).body()

        async def left() -> Message:
            return {"type": "http.disconnect"}

        caller = Caller([])
        with pytest.raises(ClientDisconnect):
            await reads(dict(NAMED), left, caller.send)
        await Identified(reads)(dict(NAMED), left, caller.send)
        assert not caller.answer
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
