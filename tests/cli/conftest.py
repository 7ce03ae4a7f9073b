"""Runs commands: in this process, or in one of their own; and a running service for them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from app.cli import main, terminal
from app.main import create_app
from app.method.backbone import Backbone
from app.settings import Settings
from tests.served import served

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: a new one would spend seconds on imports."""
    monkeypatch.setenv("COLUMNS", "200")
    for one in (terminal.console, terminal.errors):  # which read COLUMNS at their import
        monkeypatch.setattr(one, "_width", 200)

    def run_here(*words: object, **environment: str) -> Ended:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["exemplar", *map(str, words)])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()  # what the test printed itself
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), *capsys.readouterr())

    return run_here


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in a process of its own, without the settings of this one."""

    def run_alone(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EXEMPLAR_")}
        return subprocess.run(
            [sys.executable, "-m", "app", *words],
            cwd=ROOT,
            env=clean | {"COLUMNS": "100"} | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run_alone


@contextmanager
def running(database: str, folder: Path, model: Backbone) -> Iterator[str]:
    """A service with a model over a real socket; its address."""
    settings = Settings(redis_url=database, data_dir=folder, tune_steps=3, threads=1)
    with served(create_app(settings, loaded=[model])) as address:
        yield address


@pytest.fixture
def tiny_url(database: str, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service with the random model: fast, and it finds something in every photo."""
    with running(database, tmp_path_factory.mktemp("service"), tiny) as url:
        yield url


@pytest.fixture
def embedded_url(database: str, embedded: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service with the embedded model."""
    with running(database, tmp_path_factory.mktemp("service"), embedded) as url:
        yield url


@pytest.fixture
def serving() -> Callable[..., Iterator[str]]:
    """Serves a handler while a `with` lasts: `with serving(Handler) as url`."""

    @contextmanager
    def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    return served


class Instant(BaseHTTPRequestHandler):
    """A service that finds every category in the left column of every photo; it can't read a file that is no photo."""

    def do_GET(self) -> None:
        """Nothing is taught."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps([] if self.path == "/categories" else {"adapter": None}).encode())

    def do_POST(self) -> None:
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        form = BytesParser().parsebytes(head + self.rfile.read(int(self.headers["content-length"])))
        parts = [(part.get_param("name", header="content-disposition"), part) for part in form.get_payload()]
        names = [json.loads(part.get_payload(decode=True)) for name, part in parts if name == "categories"]
        photos = [part.get_payload(decode=True) for name, part in parts if name in ("image", "images")]
        lines = [self.answer(photo, names[0] if names else ["cat"]) for photo in photos]
        several = self.path == "/segment/batch"
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson" if several else "application/json")
        self.end_headers()
        for index, line in enumerate(lines):
            self.wfile.write(json.dumps({"index": index} | line).encode() + b"\n")

    def answer(self, photo: bytes, names: list[str]) -> dict:
        try:
            width, height = Image.open(io.BytesIO(photo)).size
        except OSError:
            return {"problem": {"detail": "It is no photo.", "status": 422}}
        mask = {"size": [height, width], "counts": [0, height, height * (width - 1)]}
        found = {"adapted": False, "presence": 0.9, "area": height, "bbox": [0, 0, 1, height], "segmentation": mask}
        image = {"width": width, "height": height, "sha256": hashlib.sha256(photo).hexdigest()}
        return {"image": image, "categories": [{"name": name} | found for name in names]}

    def log_message(self, *_: object) -> None:
        """Not in the test's output."""


@pytest.fixture
def instant_url(serving: Callable[..., Iterator[str]]) -> Iterator[str]:
    """Address of a stand-in of the service that answers at once."""
    with serving(Instant) as url:
        yield url
