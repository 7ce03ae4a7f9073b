"""Request bodies in pieces, as a real server delivers them and the test client does not."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from app.api.middleware import BodyLimit, Identified

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


async def call(caller: Caller, *, app=reads_all, path: str = "/segment", declared: int | None = None) -> None:
    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    limited = BodyLimit(app, max_upload_bytes=1000)
    await limited(scope, caller.receive, caller.send)


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
        limited = BodyLimit(reads_all, max_upload_bytes=1000)
        await limited(scope, caller.receive, caller.send)
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
        limited = BodyLimit(reads_all, max_upload_bytes=20_000_000)
        await limited({**scope, "headers": headers}, caller.receive, caller.send)
        assert caller.status == status
        assert not caller.pieces
        if status == 413:
            assert "more than 4000000 values" in json.loads(caller.answer[1]["body"])["detail"]


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
