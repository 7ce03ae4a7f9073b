"""Command line: `python -m tests.fuzz --seed 7 --examples 100`. Exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom

import httpx2
from redis import Redis
from rich.console import Console
from rich.progress import track

from app.storage.server import EmbeddedServer
from tests.chaos.calls import Calls, Watch
from tests.chaos.processes import application, free_port, ready, wait_until
from tests.chaos.run import write_model

from .rounds import records, uploads

# That a file is an image, a text is a mask and a name has no slash is more than a schema says. A batch answers 200 and
# tells in a photo's line what is wrong with it; and an empty field of a form is one that was not filled in.
_CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404, 409, 413, 415, 422]

[[operations]]
include-path = "/segment/batch"
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]
"""
_SHOWN = 40


@dataclass(frozen=True)
class _Target:
    url: str
    data_dir: Path
    log: Path


def main() -> int:
    """Read the options, run the three parts, and tell what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10_000), help="of all choices")
    parser.add_argument("--examples", type=int, default=100, help="random requests of each operation")
    parser.add_argument("--uploads", type=int, default=2000, help="hostile requests")
    parser.add_argument("--records", type=int, default=200, help="rounds of damaged records")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is ended too
    console = Console()
    console.print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder)) as target:
        faults = _by_document(target, examples=given.examples, seed=given.seed) if given.examples else []
        faults += _corpus(target, given, console)
        if "Traceback" in target.log.read_text(errors="replace"):
            faults.append(f"the log has a traceback:\n{_first_traceback(target.log)}")
    for fault in faults[:_SHOWN]:
        console.print(f"FAULT {fault}", markup=False, highlight=False)
    console.print(f"{len(faults)} faults")
    return 1 if faults else 0


@contextmanager
def _serving(folder: Path) -> Iterator[_Target]:
    """A service with the small random model and its embedded server."""
    port, data_dir = free_port(), folder / "var"
    model = write_model(folder / "model")
    settings = {
        "data_dir": str(data_dir), "backbone": f"blip:{model}", "port": str(port), "tune_steps": "1", "threads": "1",
        "max_image_pixels": "4000000",
    }  # fmt: skip
    process = application("service", ["serve"], folder=folder, settings=settings)
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: ready(url), "the service is ready")
        yield _Target(url, data_dir, process.log)
    finally:
        process.kill()
        EmbeddedServer.start(data_dir).stop()


def _by_document(target: _Target, *, examples: int, seed: int) -> list[str]:
    """Random requests by the OpenAPI document, with every check."""
    config = target.data_dir / "schemathesis.toml"
    config.write_text(_CONFIG)
    command = [
        str(Path(sys.executable).parent / "st"), "--config-file", str(config), "run", f"{target.url}/openapi.json",
        "--checks", "all",
        "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure", "--request-timeout", "60",
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=target.data_dir, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    return [f"schemathesis ended with status {ran.returncode}: see above"] if ran.returncode else []


def _corpus(target: _Target, given: argparse.Namespace, console: Console) -> list[str]:
    random = Random(given.seed)
    with (
        httpx2.Client(base_url=target.url, timeout=60) as http,
        Redis(unix_socket_path=str(target.data_dir / "valkey.sock")) as redis,
    ):
        watch = Watch(http.get("/openapi.json").json())
        calls = Calls(http, watch)
        uploads(calls, random, track(range(given.uploads), description="hostile uploads", console=console))
        rounds = track(range(given.records), description="damaged records", console=console)
        records(calls, watch, redis, random, rounds)
    console.print(", ".join(f"{status} {number}" for status, number in sorted(watch.answers.items())))
    return watch.violations


def _first_traceback(log: Path) -> str:
    text = log.read_text(errors="replace")
    return text[text.index("Traceback") :][:4000]


if __name__ == "__main__":
    sys.exit(main())
