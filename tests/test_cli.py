"""The command line; every error is one sentence."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from app.backbones import families
from app.cli import main

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "case_a.safetensors"

pytestmark = pytest.mark.timeout(300)  # each starts processes, which import torch


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: a new one would spend seconds on imports."""

    def run_here(*words: str, **environment: str) -> Ended:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["app", *words])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), *capsys.readouterr())

    return run_here


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EXEMPLAR_")}
    return subprocess.run(
        [sys.executable, "-m", "app", *words],
        cwd=ROOT,
        env=clean | {"COLUMNS": "100"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_help_names_every_command() -> None:
    told = run("--help").stdout
    for command in ("serve", "worker", "demo", "register", "segment", "evaluate", "parity", "backbones", "key"):
        assert command in told


def test_backbones_lists_every_family_and_what_the_loaded_model_takes() -> None:
    done = run("backbones", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for family in families():
        assert family in done.stdout
    assert "24 × 24" in done.stdout


def test_parity_prints_a_table_and_succeeds(command: Command) -> None:
    done = command("parity", str(GOLDEN))
    assert done.returncode == 0, done.stderr
    for output in ("unary", "attention_head_max.0", "itm_scores", "infoscore", "tune_losses", "tuned_unary", "crf"):
        assert output in done.stdout
    assert "TOO FAR" not in done.stdout


def test_parity_fails_where_an_output_is_too_far_off(command: Command, tmp_path: Path) -> None:
    with safe_open(GOLDEN, "pt") as stored:
        facts = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # not a dict
    tensors["out.crf"] = tensors["out.crf"] + 0.01
    save_file(tensors, tmp_path / "changed.safetensors", metadata=facts)
    done = command("parity", str(tmp_path / "changed.safetensors"), str(GOLDEN))
    assert done.returncode == 1
    assert done.stdout.count("TOO FAR") == 1


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["parity", "README.md"], {}, "not a golden case"),
        (["parity", "no-such-file"], {}, "no-such-file"),
        (["evaluate", "--data", "app"], {}, "index.json"),
        (["evaluate", "--data", "app", "--protocol", "none"], {}, "--protocol"),
        (["evaluate", "--data", "app", "--protocol", "interference", "--pictures", "out.png"], {}, "--pictures"),
        (["evaluate", "--data", "app", "--protocol", "joint", "--method", "prototype"], {}, "--method prototype"),
        (["evaluate", "--data", "app", "--protocol", "open", "--categories", "many"], {}, "--categories"),
        (["evaluate", "--data", "app", "--data", "examples", "--protocol", "open"], {}, "index.json"),
        (["segment", "README.md", "--url", "http://127.0.0.1:9"], {}, "make serve"),
        (["segment", "README.md", "Makefile", "--url", "http://127.0.0.1:9"], {}, "make serve"),
        (["segment", "README.md", "Makefile", "--overlay", "out.png"], {}, "one photo"),
        (["segment", "README.md", "--url", "localhost:8000"], {}, "http://127.0.0.1:8000"),
        (["segment", "README.md", "--url", "http://foo:abc"], {}, "http://127.0.0.1:8000"),
        (["segment", "README.md", "--key", "clé"], {}, "--key"),
        (["segment", "README.md"], {"EXEMPLAR_API_KEY": "two lines\n"}, "--key"),
        (["segment", "README.md", "--overlay", "no-such-folder/x.png"], {}, "no-such-folder"),
        (["segment", "README.md", "--overlay", "app"], {}, "app is a folder"),
        (["evaluate", "--data", "app", "--pictures", "no-such-folder/x.png"], {}, "no-such-folder"),
        (["evaluate", "--data", "app", "--json", "README.md/x.json"], {}, "README.md"),
        (["demo", "--out", "README.md/x.png"], {}, "README.md"),
        (["demo", "--out", "app"], {}, "app is a folder"),
    ],
)
def test_an_error_is_one_sentence_and_no_traceback(
    words: list[str], environment: dict[str, str], told: str, command: Command
) -> None:
    done = command(*words, **environment)
    assert done.returncode
    assert told in done.stderr


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
        (["worker"], {"EXEMPLAR_BACKBONE": "blip:no-such-folder"}, "no-such-folder"),
    ],
)
def test_a_process_that_cannot_start_says_why_in_one_sentence(
    words: list[str], environment: dict[str, str], told: str, tmp_path: Path
) -> None:
    done = run(*words, EXEMPLAR_DATA_DIR=str(tmp_path / "data"), HF_HUB_OFFLINE="1", **environment)
    assert done.returncode not in (0, None)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run("serve", "--port", port, EXEMPLAR_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert f"Error: Nothing can listen at 127.0.0.1:{port}" in done.stderr
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


class Elsewhere(BaseHTTPRequestHandler):
    """A web server that is not ours: it has a page for everything."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        page = b"<!doctype html><title>Welcome</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        """Not in the test's output."""


@pytest.mark.parametrize(
    "words",
    [
        ["register", "cat", "README.md", "README.md"],
        ["segment", "README.md"],
        ["segment", "README.md", "Makefile"],
    ],
)
def test_an_address_of_another_service(words: list[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever).start()
        url = f"http://127.0.0.1:{elsewhere.server_port}"
        done = run(*words, "--url", url)
        elsewhere.shutdown()
    assert done.returncode == 1
    assert f"{url} is not an Exemplar service" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [[], ["README.md", "--absent"]], ids=["neither", "both"])
def test_an_example_has_a_mask_or_lacks_the_category(command: Command, words: list[str]) -> None:
    done = command("register", "cat", "examples/dog.jpg", *words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Give a mask of the category, or --absent" in done.stderr


class Warning202(BaseHTTPRequestHandler):
    """A service that takes an example with a warning, whose job has ended already."""

    job: ClassVar = {"id": "j", "status": "succeeded", "progress": 1.0, "error": None}
    adapter: ClassVar = {"version": 1, "example_iou": 0.5, "zero_shot_example_iou": 0.4}
    warning: ClassVar = {"code": "mask-very-small", "detail": "The mask [bold]marks 1 pixel."}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer({"job": self.job, "category": {}, "warnings": [self.warning]})

    def do_GET(self) -> None:
        if self.path.endswith("/events"):
            self.answer(self.job, kind="text/event-stream", prefix="data: ", suffix="\n\n")
        else:
            self.answer({"adapter": self.adapter})

    def answer(self, body: dict, *, kind: str = "application/json", prefix: str = "", suffix: str = "") -> None:
        raw = f"{prefix}{json.dumps(body)}{suffix}".encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


def test_register_tells_what_is_probably_not_meant(command: Command) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Warning202) as service:
        threading.Thread(target=service.serve_forever).start()
        files = ("examples/kitten.jpg", "examples/kitten_mask.png")
        done = command("register", "cat", *files, "--url", f"http://127.0.0.1:{service.server_port}")
        service.shutdown()
    assert done.returncode == 0
    assert done.stderr == "Warning: The mask [bold]marks 1 pixel.\n"
    assert "version 1" in done.stdout


def test_demo_teaches_segments_and_leaves_nothing_running(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "result"
    done = run("demo", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "taught (v1)" in done.stdout
    assert "named" in done.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
    left = subprocess.run(["pgrep", "-f", "exemplar-demo-"], capture_output=True, text=True)
    assert left.stdout == ""


def test_evaluate_writes_its_scores(tmp_path: Path) -> None:
    data = tmp_path / "set"
    for part in ("images", "masks"):
        (data / part).mkdir(parents=True)
    from PIL import Image

    (data / "images" / "cat.jpg").write_bytes((ROOT / "examples" / "chelsea.jpg").read_bytes())
    with Image.open(ROOT / "examples" / "chelsea_mask.png") as mask:
        mask.convert("L").point(lambda value: 1 if value else 0).save(data / "masks" / "cat.png")
    index = {"classes": ["background", "cat"], "images": [{"id": "cat", "classes": [1]}]}
    (data / "index.json").write_text(json.dumps(index))
    scores = tmp_path / "scores.json"
    pictures = tmp_path / "cases.png"
    done = run("evaluate", "--data", str(data), "--json", str(scores), "--pictures", str(pictures))
    assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout
    written = json.loads(scores.read_text())
    assert set(written["columns"]) == {"words", "words + CRF"}
    assert written["columns"]["words"]["classes"]["cat"] > 0.5
    with Image.open(pictures) as sheet:
        assert sheet.height == 240, "one row: photo, truth, words"
