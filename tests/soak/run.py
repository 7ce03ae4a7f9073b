"""One run: a service with its embedded server, clients for some minutes, and samples of what it holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.chaos.processes import Process, serving

from .gauges import WARM_UP, Sample, growth, growth_over_teachings, sample
from .load import Client, Tally

ROWS = 12
MEBIBYTE = 1024 * 1024
# Teachings over which the growth of resident memory is told and limited.
TEACHINGS = 500


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        categories: Of each client.
        backbone: Model of the service, as `EXEMPLAR_BACKBONE` names it.
        warm_up_minutes: Time in which caches fill; None for a third of `minutes`.
        max_growth: Largest growth of resident memory after the warm-up, as a share.
        max_store_growth: Largest growth of the store after the warm-up, answers to Idempotency-Keys excluded, as a
            share.
        max_teaching_growth: Largest growth of resident memory over `TEACHINGS` teachings, in bytes.
        samples: Number of samples.
    """

    seed: int
    minutes: float = 2.0
    clients: int = 4
    categories: int = 5
    warm_up_minutes: float | None = None
    backbone: str = "embedded"
    max_growth: float = 0.05
    max_store_growth: float = 0.10
    max_teaching_growth: int = 50 * MEBIBYTE
    samples: int = 120

    @property
    def warm_up_s(self) -> float:
        """Seconds of the warm-up."""
        return 60 * (self.minutes * WARM_UP if self.warm_up_minutes is None else self.warm_up_minutes)


@dataclass(frozen=True)
class Report:
    """What a run found.

    Attributes:
        growth: Growth of resident memory after the warm-up, as a share.
        store_growth: Growth of the store after it, answers to Idempotency-Keys excluded, as a share.
        teaching_growth: Growth of resident memory over `TEACHINGS` teachings after it, in bytes; None if there were
            fewer.
    """

    samples: list[Sample]
    growth: float
    store_growth: float
    teaching_growth: int | None
    errors: list[str]
    requests: int

    def too_much(self, options: Options) -> list[str]:
        """What grew by more than the options allow."""
        grown = [
            ("resident memory", self.growth, options.max_growth),
            ("the store", self.store_growth, options.max_store_growth),
            (f"resident memory over {TEACHINGS} teachings", self.teaching_growth or 0, options.max_teaching_growth),
        ]
        return [f"{name} grew by {by:.3g}, more than {most:.3g}" for name, by, most in grown if by > most]


def run(options: Options, folder: Path, *, console: Console | None = None) -> Report:
    """Run in this folder, and print the seed first and a table last."""
    console = console or Console()
    console.print(f"seed {options.seed}: {options}")
    tally = Tally()
    with _serving(options, folder) as (process, url, redis):
        clients = [
            Client(number, seed=options.seed, categories=options.categories, url=url, tally=tally)
            for number in range(options.clients)
        ]
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
    report = Report(
        samples,
        growth(samples, warm_up_s=options.warm_up_s),
        growth(samples, lambda one: one.lasting, warm_up_s=options.warm_up_s),
        growth_over_teachings(samples, TEACHINGS, warm_up_s=options.warm_up_s),
        tally.errors,
        tally.requests.total(),
    )
    _tell(options, report, tally, console)
    return report


@contextmanager
def _serving(options: Options, folder: Path) -> Iterator[tuple[Process, str, Redis]]:
    # Ended jobs and replaced adapters are kept for a short time, so that their number stops growing; caches are small,
    # so that they are full after the warm-up.
    with (
        serving(
            folder, backbone=options.backbone, tune_steps="3", job_ttl_s="60", versions_kept="2",
            image_cache_bytes=str(4 * MEBIBYTE), adapter_cache_bytes=str(MEBIBYTE),
        ) as (process, url),
        Redis(unix_socket_path=str(folder / "valkey.sock")) as redis,
    ):  # fmt: skip
        yield process, url, redis


def _samples(
    options: Options, process: Process, redis: Redis, folder: Path, tally: Tally, console: Console
) -> list[Sample]:
    taken: list[Sample] = []
    began = time.monotonic()
    for number in track(range(1, options.samples + 1), description="soaking", console=console):
        due = began + 60 * options.minutes * number / options.samples
        time.sleep(max(0.0, due - time.monotonic()))
        seconds, requests, teachings = time.monotonic() - began, tally.requests.total(), tally.requests["teach"]
        taken.append(sample(process.pid, redis, folder, seconds=seconds, requests=requests, teachings=teachings))
    return taken


def _tell(options: Options, report: Report, tally: Tally, console: Console) -> None:
    table = Table(
        "s", "requests", "taught", "RSS MiB", "files", "keys", "answers", "store MiB", "answers MiB", "AOF MiB",
        box=SIMPLE,
    )  # fmt: skip
    rows = report.samples[:: max(1, len(report.samples) // ROWS)]
    for one in rows if rows[-1] is report.samples[-1] else [*rows, report.samples[-1]]:
        sizes = (one.resident, one.store, one.answers_bytes, one.append_only_file)
        resident, store, answers, file = (f"{size / MEBIBYTE:.1f}" for size in sizes)
        table.add_row(
            f"{one.seconds:.0f}", str(one.requests), str(one.teachings), resident, str(one.files), str(one.keys),
            str(one.answers), store, answers, file,
        )  # fmt: skip
    console.print(table)
    times_ms = sorted(1000 * seconds for seconds in tally.times_s)
    middle, late = (times_ms[int(len(times_ms) * share)] for share in (0.5, 0.99))
    console.print(", ".join(f"{name} {number}" for name, number in sorted(tally.requests.items())))
    console.print(f"half of the requests took at most {middle:.0f} ms, 99 % at most {late:.0f} ms")
    console.print(f"after a warm-up of {options.warm_up_s:.0f} s: resident memory {report.growth:+.1%}")
    console.print(f"the store without answers to Idempotency-Keys {report.store_growth:+.1%}")
    if report.teaching_growth is not None:
        console.print(f"resident memory over {TEACHINGS} teachings {report.teaching_growth / MEBIBYTE:+.1f} MiB")
    console.print(f"errors: {len(report.errors)}")
    for error in (*report.too_much(options), *report.errors[:20]):
        console.print(f"ERROR {error}", markup=False, highlight=False)
