"""One run: a service with its embedded server, clients for some minutes, and samples of what it holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.storage.server import EmbeddedServer
from tests.chaos.processes import Process, application, free_port, ready, wait_until

from .gauges import Sample, growth, sample
from .load import Client, Tally

ROWS = 12
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        backbone: Model of the service, as `EXEMPLAR_BACKBONE` names it.
        max_growth: Largest growth of resident memory after the warm-up, as a share.
        samples: Number of samples.
    """

    seed: int
    minutes: float = 2.0
    clients: int = 4
    backbone: str = "embedded"
    max_growth: float = 0.05
    samples: int = 120


@dataclass(frozen=True)
class Report:
    """What a run found; `growth` is that of resident memory after the warm-up."""

    samples: list[Sample]
    growth: float
    errors: list[str]
    requests: int


def run(options: Options, folder: Path, *, console: Console | None = None) -> Report:
    """Run in this folder, and print the seed first and a table last."""
    console = console or Console()
    console.print(f"seed {options.seed}: {options}")
    tally = Tally()
    with _serving(options, folder) as (process, url, redis):
        clients = [Client(number, seed=options.seed, url=url, tally=tally) for number in range(options.clients)]
        for client in clients:
            client.start()
        try:
            samples = _samples(options, process, redis, folder, tally, console)
        finally:
            for client in clients:
                client.leave()
            for client in clients:
                client.join()
        if status := process.end():
            tally.blame(f"the service ended with status {status}")
    if "Traceback" in process.log.read_text(errors="replace"):
        tally.blame("the log has a traceback")
    report = Report(samples, growth(samples), tally.errors, tally.requests.total())
    _tell(report, tally, console)
    return report


@contextmanager
def _serving(options: Options, folder: Path) -> Iterator[tuple[Process, str, Redis]]:
    port = free_port()
    settings = {
        # Ended jobs are kept for the shortest time allowed, so that their number stops growing; caches are small, so
        # that they are full after the warm-up.
        "data_dir": str(folder), "backbone": options.backbone, "port": str(port), "tune_steps": "3", "job_ttl_s": "60",
        "image_cache_bytes": str(4 * MEBIBYTE), "adapter_cache_bytes": str(MEBIBYTE),
    }  # fmt: skip
    process = application("service", ["serve"], folder=folder, settings=settings)
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: ready(url), "the service is ready")
        with Redis(unix_socket_path=str(folder / "valkey.sock")) as redis:
            yield process, url, redis
    finally:
        process.kill()
        if (folder / "valkey.sock").exists():  # the service was killed: its server goes on
            EmbeddedServer.start(folder).stop()


def _samples(
    options: Options, process: Process, redis: Redis, folder: Path, tally: Tally, console: Console
) -> list[Sample]:
    taken: list[Sample] = []
    began = time.monotonic()
    for number in track(range(1, options.samples + 1), description="soaking", console=console):
        due = began + 60 * options.minutes * number / options.samples
        time.sleep(max(0.0, due - time.monotonic()))
        seconds, requests = time.monotonic() - began, tally.requests.total()
        taken.append(sample(process.pid, redis, folder, seconds=seconds, requests=requests))
    return taken


def _tell(report: Report, tally: Tally, console: Console) -> None:
    table = Table("s", "requests", "resident MiB", "open files", "keys", "store MiB", "append-only file MiB")
    for one in report.samples[:: max(1, len(report.samples) // ROWS)]:
        sizes = (one.resident, one.store, one.append_only_file)
        resident, store, file = (f"{size / MEBIBYTE:.1f}" for size in sizes)
        table.add_row(f"{one.seconds:.0f}", str(one.requests), resident, str(one.files), str(one.keys), store, file)
    console.print(table)
    times_ms = sorted(1000 * seconds for seconds in tally.times_s)
    middle, late = (times_ms[int(len(times_ms) * share)] for share in (0.5, 0.99))
    console.print(", ".join(f"{name} {number}" for name, number in sorted(tally.requests.items())))
    console.print(f"half of the requests took at most {middle:.0f} ms, 99 % at most {late:.0f} ms")
    console.print(f"resident memory after the warm-up: {report.growth:+.1%}; errors: {len(report.errors)}")
    for error in report.errors[:20]:
        console.print(f"ERROR {error}", markup=False, highlight=False)
