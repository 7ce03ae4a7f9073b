"""Commands that start processes: the demo, and what is said where one cannot start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from rich.console import Console

from app.demo import run_demo, running_service
from app.errors import InvalidInputError

_MAY_UNSHARE = (
    shutil.which("unshare") is not None and subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode == 0
)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.timeout(300)  # each starts a process, which imports torch


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["evaluate", "--data", "app"], {}, "index.json"),
        (["serve", "--host", "no-such-host.invalid"], {}, "Nothing can listen at no-such-host.invalid"),
        (["serve", "--host", "a..b"], {}, "Nothing can listen at a..b"),
        (["serve"], {"EXEMPLAR_API_KEYS": "my-own-key"}, "scope:SHA-256"),
        (["serve"], {"EXEMPLAR_PORT": "many"}, "EXEMPLAR_PORT"),
        (["serve"], {"EXEMPLAR_BACKBONE": "unknown"}, "embedded"),
        (["serve"], {"EXEMPLAR_LAYERS": "0,99"}, "layers 0 to 3"),
        (["serve"], {"EXEMPLAR_DEVICE": "toaster"}, "EXEMPLAR_DEVICE"),
        (["serve"], {"EXEMPLAR_REDIS_URL": "http://nowhere"}, "EXEMPLAR_REDIS_URL"),
        (["serve"], {"EXEMPLAR_REDIS_URL": "redis://127.0.0.1:9"}, "EXEMPLAR_REDIS_URL"),
        (["serve"], {"EXEMPLAR_BACKBONE": "blip:no-such-folder"}, "no-such-folder"),
        (["serve"], {"EXEMPLAR_BACKBON": "blip:x", "EXEMPLAR_DEVICE": "toaster"}, "is EXEMPLAR_BACKBONE meant?"),
        (["worker"], {"EXEMPLAR_BACKBONE": "unknown"}, "EXEMPLAR_REDIS_URL is not set"),
    ],
)
def test_a_process_that_cannot_start_says_why_in_one_sentence(
    words: list[str], environment: dict[str, str], told: str, tmp_path: Path, run
) -> None:
    done = run(*words, EXEMPLAR_DATA_DIR=str(tmp_path / "data"), HF_HUB_OFFLINE="1", **environment)
    assert done.returncode not in (0, None)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(tmp_path: Path, run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run("serve", "--port", port, EXEMPLAR_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert f"Error: Nothing can listen at 127.0.0.1:{port}" in done.stderr
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


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
    done = run("demo", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "taught (v1)" in done.stdout
    assert "named" in done.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
    left = subprocess.run(["pgrep", "-f", "exemplar-demo-"], capture_output=True, text=True)
    assert left.stdout == ""


def test_behind_a_proxy_that_takes_a_prefix_off_answers_name_what_callers_reach() -> None:
    files = {name: (EXAMPLES / name).read_bytes() for name in ("kitten.jpg", "kitten_mask.png")}
    with running_service(Console(quiet=True), root_path="/team/x", tune_steps="1") as service:
        sent = {"image": files["kitten.jpg"], "mask": files["kitten_mask.png"]}
        answer = httpx2.post(f"{service.url}/categories/cat/example", files=sent)
        assert answer.status_code == 202
        job = answer.json()["job"]["id"]
        assert answer.headers["location"] == f"/team/x/jobs/{job}"
        assert httpx2.get(f"{service.url}/jobs/{job}").json()["id"] == job
        assert "/team/x/openapi.json" in httpx2.get(f"{service.url}/docs").text
