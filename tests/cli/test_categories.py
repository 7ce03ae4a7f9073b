"""Commands that show and change what a service keeps."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest

from app.cli import terminal

pytestmark = pytest.mark.timeout(300)
NOWHERE = "http://127.0.0.1:9"
EXAMPLE = ("examples/kitten.jpg", "examples/kitten_mask.png")


def test_the_life_of_a_category(command, tiny_url, tmp_path) -> None:
    def ran(*words: object) -> str:
        done = command(*words, "--url", tiny_url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def told(*words: object):
        return json.loads(ran(*words, "--json"))

    assert told("categories") == []
    for _ in range(2):
        ran("teach", "cat [small]", *EXAMPLE, "--replace", "--prompt", "kitten, young")
    (category,) = told("categories")
    assert category["prompts"] == ["cat [small]", "kitten, young"]
    assert told("category", "CAT [small]") == category
    assert "cat [small]" in ran("categories")
    assert "kitten, young" in ran("category", "cat [small]")

    jobs = told("jobs")
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert told("jobs", "--status", "failed") == []
    assert len(told("jobs", "--limit", "1")) == 1
    assert jobs[0]["id"] in ran("jobs", "--status", "succeeded", "--category", "cat [small]")

    file = tmp_path / "cat.safetensors"
    assert told("export", "cat [small]", file)["bytes"] == file.stat().st_size > 0
    assert told("export", "cat [small]", file)["bytes"] == file.stat().st_size
    assert told("import", "copy", file)["adapter"]["version"] == 1
    told("import", "copy", file)
    assert [version["version"] for version in told("versions", "copy")] == [2, 1]
    assert told("rollback", "copy", 1)["adapter"]["version"] == 1
    assert [version["current"] for version in told("versions", "copy")] == [False, True]
    assert "yes" in ran("versions", "copy")
    assert "copy was deleted" in ran("delete", "copy")
    assert [category["name"] for category in told("categories")] == ["cat [small]"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["category", "unicorn"], "unicorn"),
        (["versions", "unicorn"], "unicorn"),
        (["rollback", "unicorn", "1"], "unicorn"),
        (["rollback", "unicorn", "0"], "version"),
        (["delete", "unicorn"], "unicorn"),
        (["export", "unicorn", "build-no-such/x"], "build-no-such"),
        (["export", "unicorn", "README.md/x"], "README.md"),
        (["import", "unicorn", "README.md"], "adapter"),
        (["import", "unicorn", "no-such-file"], "no-such-file"),
        (["jobs", "--status", "asleep"], "--status"),
        (["jobs", "--category", "a/b"], "slash"),
    ],
)
def test_an_error_is_a_sentence(command, tiny_url, words, told) -> None:
    done = command(*words, "--url", tiny_url)
    assert done.returncode
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_an_adapter_replaces_no_other_file(command, tmp_path) -> None:
    photo = tmp_path / "keep.jpg"
    photo.write_bytes(Path("examples/dog.jpg").read_bytes())
    done = command("export", "cat", photo, "--url", NOWHERE)
    assert done.returncode == 1
    assert "keep.jpg was not written by this command, and is kept" in done.stderr
    (tmp_path / "empty").touch()
    for name in ("empty", "new"):
        assert "No service answers" in command("export", "cat", tmp_path / name, "--url", NOWHERE).stderr


class Busy(BaseHTTPRequestHandler):
    """A service with three jobs."""

    jobs: ClassVar = [
        {"category": "cat", "status": "running", "progress": 0.4, "error": None},
        {"category": "a name of several words", "status": "succeeded", "progress": 1.0, "error": None},
        {"category": None, "status": "failed", "progress": 0.1, "error": "Teach it again [once more]: it was stopped."},
    ]

    def do_GET(self) -> None:
        same = {"kind": "tune", "created_at": "2026-11-30T03:34:22.123456Z"}
        jobs = [{"id": str(number) * 32} | same | job for number, job in enumerate(self.jobs)]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(jobs).encode())

    def log_message(self, *_: object) -> None:
        """Not in the test's output."""


def test_jobs_fit_into_80_characters(command, serving, monkeypatch) -> None:
    monkeypatch.setattr(terminal.console, "_width", 80)
    with serving(Busy) as url:
        lines = [line.rstrip() for line in command("jobs", "--url", url).stdout.splitlines()]
    assert lines == [
        "job                               category        kind  status       created",
        f"{'0' * 32}  cat             tune  running 40%  11-30 03:34",
        f"{'1' * 32}  a name of       tune  succeeded    11-30 03:34",
        "                                  several words",
        f"{'2' * 32}                  tune  failed       11-30 03:34",
        f"{'2' * 32}: Teach it again [once more]: it was stopped.",
    ]


def test_jobs_in_a_narrow_terminal_keep_their_ids(command, serving, monkeypatch) -> None:
    monkeypatch.setattr(terminal.console, "_width", 50)
    with serving(Busy) as url:
        told = command("jobs", "--url", url).stdout
    for number, word in enumerate(["cat", "succeeded", "failed"]):
        assert str(number) * 32 in told
        assert word in told
