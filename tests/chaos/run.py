"""One run: start everything, let clients work while troubles come, let calm return, and check what must hold."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.backbones import albef_model

from .calls import Watch
from .clients import Client
from .invariants import JOBS_END_S, check, kinds_of_keys, statuses, wait_for_jobs
from .journal import Journal
from .processes import wait_until
from .troubles import TROUBLES, Plant, mend, schedule

# Lines of a log that tell of an error which nobody expected.
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        seconds: Longest time of the troubles.
        kills: Times that each kind of trouble comes, unless the seconds end first.
        kinds: Names of the kinds of trouble.
        jobs_end_s: Time in which all jobs must end after the last trouble.
        longest_s: Longest time of one trouble, and of the calm after it.
        redelivery_s: Time after which the job of a dead worker is delivered to another one.
    """

    seed: int
    seconds: float = 300.0
    kills: int = 30
    clients: int = 3
    fsync: str = "always"
    kinds: tuple[str, ...] = tuple(TROUBLES)
    jobs_end_s: float = JOBS_END_S
    longest_s: float = 6.0
    redelivery_s: float = 3.0


@dataclass
class Report:
    """What a run found."""

    troubles: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    tracebacks: Counter[str] = field(default_factory=Counter)
    doubted: int = 0
    calm_s: float = 0.0
    violations: list[str] = field(default_factory=list)


def write_model(folder: Path) -> str:
    """Write a small random model and return what `EXEMPLAR_BACKBONE` says for it.

    It is an ALBEF, whose classes are ours: importing those of a transformers model takes four seconds of every start.
    """
    return albef_model.write(folder, patch_px=48)


def run(options: Options, folder: Path, *, console: Console | None = None) -> Report:
    """Run in this folder, and print the seed first and tables last."""
    console = console or Console()
    console.print(f"seed {options.seed}: {options}")
    model = write_model(folder / "model")
    journal = Journal()
    redelivery = {"job_redelivery_s": str(options.redelivery_s)}
    plant = Plant(folder, model=model, fsync=options.fsync, journal=journal, **redelivery)
    report = Report()
    with plant.running():
        watch = Watch(plant.documented())
        clients = [
            Client(number, seed=options.seed, url=plant.url, journal=journal, watch=watch)
            for number in range(options.clients)
        ]
        for client in clients:
            client.start()
        try:
            _trouble(plant, options, report, console)
        finally:
            for client in clients:
                client.leave()
            mend(plant)
        began = time.monotonic()
        for client in clients:
            client.join()
        _conclude(plant, options, journal, report)
        report.calm_s = time.monotonic() - began
    journal.write(folder / "journal.jsonl")
    report.answers, report.doubted = watch.answers, plant.doubted
    report.violations[:0] = watch.violations
    report.outcomes = Counter(f"{entry.action}: {entry.outcome}" for entry in journal.entries())
    for process in plant.processes:
        report.ends[process.name] = process.ends
        report.tracebacks[process.name] = process.log.read_text(errors="replace").count(_TRACEBACK)
    _tell(report, console)
    return report


def _trouble(plant: Plant, options: Options, report: Report, console: Console) -> None:
    """Let the troubles come one after another, until all came or the time is over."""
    coming = schedule(Random(f"{options.seed}/troubles"), kinds=list(options.kinds), times=options.kills)
    deadline = time.monotonic() + options.seconds
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(coming))
        for name, lasts_s, calm_s in coming:
            if time.monotonic() > deadline:
                break
            progress.update(bar, description=name)
            TROUBLES[name](plant, min(lasts_s, options.longest_s))
            report.troubles[name] += 1
            wait_until(plant.mended, f"the service is ready after {name}")
            plant.pause(min(calm_s, options.longest_s))
            progress.advance(bar)


def _conclude(plant: Plant, options: Options, journal: Journal, report: Report) -> None:
    wait_until(plant.mended, "the service is ready in the end")
    with httpx2.Client(base_url=plant.url, timeout=30) as http, plant.store.client() as redis:
        report.violations += wait_for_jobs(http, within_s=options.jobs_end_s)
        report.violations += check(http, redis, journal)
        report.jobs, report.keys = statuses(http), kinds_of_keys(redis)


def _tell(report: Report, console: Console) -> None:
    table = Table(title="What was seen", show_header=False)
    for name in ("troubles", "outcomes", "answers", "jobs", "keys", "ends", "tracebacks"):
        counts: Counter[str] = getattr(report, name)
        table.add_row(name, ", ".join(f"{key} {number}" for key, number in sorted(counts.items())))
    table.add_row("doubted", str(report.doubted))
    table.add_row("until calm", f"{report.calm_s:.1f} s")
    console.print(table)
    for violation in report.violations:
        console.print(f"VIOLATION {violation}", markup=False, highlight=False)
    console.print("no violation" if not report.violations else f"{len(report.violations)} violations")
