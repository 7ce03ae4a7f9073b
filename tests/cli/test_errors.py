"""Every error of a command is one sentence and a non-zero exit code; and what --help costs."""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)  # some start processes, which import torch


def test_help_names_every_command(run) -> None:
    told = run("--help").stdout
    for command in ("serve", "worker", "demo", "teach", "segment", "jobs", "evaluate", "parity", "backbones", "key"):
        assert command in told
    assert "register" not in told


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [(["--help"], 0, "Usage: "), (["segment", "--help"], 0, "--overlay"), (["teach"], 1, "Give NAME and IMAGE")],
)
def test_help_and_wrong_calls_do_not_wait_for_torch(words: list[str], code: int, told: str) -> None:
    script = (
        "import sys\n"
        "from app.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'fastapi', 'redis', 'app.wiring'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


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
    words: list[str], environment: dict[str, str], told: str, command
) -> None:
    done = command(*words, **environment)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    (error,) = (line for line in done.stderr.splitlines() if not line.startswith("segmenting "))  # the bar's
    assert error.startswith("Error: ")


def test_a_setting_of_the_wrong_form_is_told_in_our_words(command) -> None:
    settings = {"EXEMPLAR_RATE_LIMIT": "often", "EXEMPLAR_API_KEYS": "my-own-key", "EXEMPLAR_PORT": "many"}
    done = command("worker", **settings)
    assert done.returncode == 1
    assert "EXEMPLAR_RATE_LIMIT: expected a number of requests and a period, such as 100/minute" in done.stderr
    assert "EXEMPLAR_API_KEYS: expected scope:SHA-256" in done.stderr
    assert "EXEMPLAR_PORT: Input should be a valid integer" in done.stderr


def test_a_full_disk() -> None:
    command = [sys.executable, "-m", "app", "key", "teach"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "Error: The output: No space left on device.\n")


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
def test_an_address_of_another_service(words: list[str], run, serving) -> None:
    with serving(Elsewhere) as url:
        done = run(*words, "--url", url)
    assert done.returncode == 1
    assert f"{url} is not an Exemplar service" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("status", "detail", "told"),
    [
        (
            401,
            "An API key is required: send it as X-API-Key or as Authorization: Bearer.",
            "An API key is required: give a key of this service with --key or EXEMPLAR_API_KEY.",
        ),
        (
            401,
            "Unknown API key: the service accepts the keys in its EXEMPLAR_API_KEYS.",
            "Unknown API key: give a key of this service with --key or EXEMPLAR_API_KEY.",
        ),
        (
            404,
            "There is no category 'cat': teach it with POST /categories/{name}/example.",
            "There is no category 'cat': teach it with `exemplar teach`.",
        ),
    ],
)
def test_errors_name_commands_and_options(command, serving, status: int, detail: str, told: str) -> None:
    class Refusing(Elsewhere):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"detail": detail}).encode())

    with serving(Refusing) as url:
        done = command("category", "cat", "--url", url)
    assert (done.returncode, done.stderr) == (1, f"Error: {told}\n")
