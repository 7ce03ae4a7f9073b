"""Log lines have the ids of their context, in both formats."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from app import logs


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_text_lines_end_with_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    with logs.about(request_id="r1"), logs.about(job_id="j1", category=None):
        logging.getLogger("app.x").info("tuned %d", 3)
    logging.getLogger("app.x").info("idle")
    inside, outside = capsys.readouterr().err.splitlines()
    assert inside.endswith("app.x  tuned 3  request_id=r1  job_id=j1")
    assert outside.endswith("app.x  idle")


def test_json_lines_have_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    with logs.about(job_id="j1", category="Straßenbahn"):
        logging.getLogger("app.x").warning("slow")
    line = json.loads(capsys.readouterr().err)
    assert (line["levelname"], line["name"], line["message"]) == ("WARNING", "app.x", "slow")
    assert (line["job_id"], line["category"]) == ("j1", "Straßenbahn")


def test_a_request_keeps_the_id_that_its_caller_gave_it(api) -> None:
    given = api.http.get("/healthz", headers={"X-Request-ID": "order-7/eu"})
    assert given.headers["x-request-id"] == "order-7/eu"


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "a\tb"])
def test_what_would_break_a_log_line_is_replaced(api, sent: str) -> None:
    answer = api.http.get("/nowhere", headers={"X-Request-ID": sent})
    assert answer.headers["x-request-id"] != sent
    assert len(answer.headers["x-request-id"]) == 32


def test_a_fault_is_logged_once_under_the_id_that_its_answer_carries(
    api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bug(_: str) -> None:
        raise KeyError("bug")

    logs.configure("text")
    monkeypatch.setattr(api.http.app_state["service"].jobs, "get", bug)
    answer = api.http.get("/jobs/broken", headers={"X-Request-ID": "order-8"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "order-8")
    assert (answer.headers["content-type"], answer.json()["title"]) == ("application/problem+json", "Internal error")
    told = capsys.readouterr().err
    assert told.count("Traceback (most recent call last)") == 1
    (line,) = (line for line in told.splitlines() if " ERROR " in line)
    assert line.endswith("request_id=order-8")


def test_what_pillow_says_of_a_damaged_upload_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded: %s", 4355)
    assert capsys.readouterr().err == ""
