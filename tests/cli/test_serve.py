"""Commands that start processes: the demo, and what is said where one cannot start."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from app.cli.serve import _check_address
from app.demo import run_demo
from app.errors import InvalidInputError, UnavailableError

_MAY_UNSHARE = (
    shutil.which("unshare") is not None and subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode == 0
)

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)  # each starts a process, which imports torch


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["serve", "--host", "no-such-host.invalid"], {}, ["Nothing can listen at no-such-host.invalid"]),
        (["serve"], {"EXEMPLAR_API_KEYS": "my-own-key"}, ["scope:SHA-256"]),
        (["serve"], {"EXEMPLAR_PORT": "many"}, ["EXEMPLAR_PORT"]),
        (["serve"], {"EXEMPLAR_LAYERS": "0,99"}, ["layers 0 to 3"]),
        (
            ["serve"],
            {"EXEMPLAR_BACKBON": "blip:x", "EXEMPLAR_DEVICE": "toaster"},
            ["is EXEMPLAR_BACKBONE meant?", "EXEMPLAR_DEVICE=toaster can't be used"],
        ),
        (["worker"], {"EXEMPLAR_BACKBONE": "unknown"}, ["EXEMPLAR_REDIS_URL is not set"]),
    ],
)
def test_a_process_that_cannot_start_says_why_in_one_sentence(
    words: list[str], environment: dict[str, str], told: list[str], tmp_path: Path, run
) -> None:
    done = run(*words, EXEMPLAR_DATA_DIR=str(tmp_path / "data"), **environment)
    assert done.returncode == 1
    assert all(sentence in done.stderr for sentence in told)
    *logged, error = done.stderr.splitlines()
    assert error.startswith("Error: ")
    assert all(re.match(r"\d{4}-\d\d-\d\d .* (INFO|WARNING) ", line) for line in logged), logged


async def test_a_host_that_is_no_name_is_told_as_such() -> None:
    with pytest.raises(UnavailableError, match=r"Nothing can listen at a\.\.b:0: choose another --host"):
        await _check_address("a..b", 0)


def test_a_port_that_is_taken(tmp_path: Path, run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run("serve", "--port", port, EXEMPLAR_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: Nothing can listen at 127.0.0.1:{port}")
    assert "address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not _MAY_UNSHARE, reason="needs the right to make a process namespace")
def test_sigterm_ends_process_1_while_it_starts() -> None:
    """The main process of a container, which the kernel spares every signal that it has no handler for."""
    with socket.create_server(("127.0.0.1", 0)) as store:  # which never answers
        settings = {"EXEMPLAR_REDIS_URL": f"redis://127.0.0.1:{store.getsockname()[1]}", "EXEMPLAR_PORT": "0"}
        command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "app", "serve"]
        with subprocess.Popen(command, env=os.environ | settings, cwd=ROOT) as outer:
            connection, _ = store.accept()
            with connection:
                (served,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
                os.kill(int(served), signal.SIGTERM)
                assert outer.wait(60) == 128 + signal.SIGTERM


def test_without_the_example_photos_the_demo_says_where_it_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("app.demo.EXAMPLES", tmp_path / "examples")
    with pytest.raises(InvalidInputError, match=r"no folder .*examples: run it in a clone\."):
        run_demo(Console(quiet=True), tmp_path / "demo.png")


def test_demo_teaches_segments_and_leaves_nothing_running(tmp_path: Path, run) -> None:
    out = tmp_path / "new folder" / "result"
    done = run("demo", "--out", str(out), TMPDIR=str(tmp_path))  # where its service and the store keep their files
    assert done.returncode == 0, done.stdout + done.stderr
    assert "taught (v1)" in done.stdout
    assert "named" in done.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
    assert processes_of(tmp_path) == []


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that work in a folder or were told of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or it is another user's
            told = (process / "environ").read_bytes() + os.fsencode(os.readlink(process / "cwd"))
            if os.fsencode(folder) in told:
                found.append((process / "cmdline").read_text())
    return found
