"""Bodies in pieces: what a real server hands over one by one and the test client never does."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.api.middleware import BodyLimit

LIMIT = 2 * 1000 + 1_048_576  # as BodyLimit has it for uploads of 1,000 bytes
PIECE = bytes(100_000)


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
    limited = BodyLimit(app, max_upload_bytes=1000, many_images_paths=frozenset({"/many"}))
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

    async def test_a_body_without_end_is_not_read_for_ever(self) -> None:
        caller = Caller([PIECE] * 1000)
        await call(caller)
        assert caller.status == 413
        assert len(caller.pieces) > 900

    async def test_many_photos_may_be_more(self) -> None:
        many = 8 * 1000 + 1_048_576
        for path, size, status in (("/many", many, 200), ("/many", many + 1, 413), ("/segment", many, 413)):
            caller = Caller([bytes(size)])
            await call(caller, path=path)
            assert caller.status == status
