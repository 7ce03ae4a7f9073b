"""Command line: `python -m tests.fuzz --seed 7 --examples 100`. Exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import track

from tests.chaos.calls import Calls, Watch
from tests.chaos.processes import serving
from tests.chaos.run import write_model
from tests.command_line import command_line
from tests.soak.gauges import Sample, growth, sample

from .rounds import records, uploads

# That a file is an image, a text is a mask, a name has no slash and an ETag is the current one is more than a schema
# says. A header may refuse a request before its body is read (412). A batch answers 200 and tells in a photo's line
# what is wrong with it; and an empty field of a form is one that was not filled in.
_CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 422, 428, 429]

[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404, 409, 412, 413, 415, 422]

[[operations]]
include-path = "/segment/batch"
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]
"""
_SHOWN = 40
# Largest growth of resident memory after the first third of the time.
_MAX_GROWTH = 0.05
_SAMPLE_S = 1.0
_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class _Target:
    url: str
    data_dir: Path
    log: Path
    pid: int


def main() -> int:
    """Read the options, run the three parts, and tell what was found."""
    parser = command_line("fuzz", __doc__)
    parser.add_argument("--examples", type=int, default=100, help="random requests of each operation")
    parser.add_argument("--uploads", type=int, default=2000, help="hostile requests")
    parser.add_argument("--records", type=int, default=200, help="rounds of damaged records")
    given = parser.parse_args()
    console = Console()
    console.print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder)) as target:
        with _sampling(target) as samples:
            faults = _corpus(target, given, console)
            if given.examples:
                faults += _by_document(target, examples=given.examples, seed=given.seed)
        faults += _totals(target, samples, console)
        if "Traceback" in target.log.read_text(errors="replace"):
            faults.append(f"the log has a traceback:\n{_first_traceback(target.log)}")
    for fault in faults[:_SHOWN]:
        console.print(f"FAULT {fault}", markup=False, highlight=False)
    console.print(f"{len(faults)} faults")
    return 1 if faults else 0


@contextmanager
def _serving(folder: Path) -> Iterator[_Target]:
    """A service with the small random model and its embedded server."""
    data_dir, model = folder / "var", write_model(folder / "model")
    with serving(
        data_dir, backbone=model, tune_steps="1", threads="1", max_image_pixels="4000000"
    ) as (process, url):  # fmt: skip
        yield _Target(url, data_dir, process.log, process.pid)


@contextmanager
def _sampling(target: _Target) -> Iterator[list[Sample]]:
    """Samples of what the service holds, taken while the body runs."""
    samples: list[Sample] = []
    ends = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        with Redis(unix_socket_path=str(target.data_dir / "valkey.sock")) as redis:
            while not ends.wait(_SAMPLE_S):
                with suppress(RedisError):
                    seconds = time.monotonic() - began
                    samples.append(sample(target.pid, redis, target.data_dir, seconds=seconds, requests=0, teachings=0))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ends.set()
        thread.join()


def _totals(target: _Target, samples: list[Sample], console: Console) -> list[str]:
    """Tell what the service itself has counted and how its memory grew; faults of these."""
    statuses: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx2.get(f"{target.url}/metrics", timeout=60).text):
        for one in family.samples:
            # The probe of its start is answered with 503 until the model is warm.
            if one.name == "exemplar_requests_total" and one.labels["route"] != "/readyz":
                statuses[one.labels["status"]] += int(one.value)
    console.print(f"{statuses.total()} requests: " + ", ".join(f"{key} {statuses[key]}" for key in sorted(statuses)))
    faults = [f"{number} answers with {status}" for status, number in statuses.items() if status.startswith("5")]
    if len(samples) > 10:
        grown = growth(samples, warm_up_s=None)
        first, last = (one.resident / _MEBIBYTE for one in (samples[len(samples) // 3], samples[-1]))
        console.print(f"resident memory after the first third: {first:.0f} MiB, last {last:.0f} MiB, {grown:+.1%}")
        if grown > _MAX_GROWTH:
            faults.append(f"resident memory grew by {grown:.1%}")
    return faults


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
