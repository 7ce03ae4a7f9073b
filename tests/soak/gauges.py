"""Gauges: what a process and its store hold at a moment, and whether that grows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from redis import Redis

# Share of the time in which caches fill and the allocator finds its size, unless a time is given.
WARM_UP = 1 / 3
# Share of the time whose median stands for its begin and for its end.
_WINDOW = 1 / 6

_ANSWERS = "exemplar:idempotency:*"


@dataclass(frozen=True)
class Sample:
    """What is held at a moment; `seconds` counts from the begin, sizes are in bytes.

    Attributes:
        answers: Answers to an Idempotency-Key, which are kept for a day, so that a run sees no end of their growth.
        answers_bytes: Memory of the store that they take.
    """

    seconds: float
    requests: int
    teachings: int
    resident: int
    files: int
    keys: int
    store: int
    answers: int
    answers_bytes: int
    append_only_file: int

    @property
    def lasting(self) -> int:
        """Bytes of the store without the answers: what a run must not let grow."""
        return self.store - self.answers_bytes


def sample(pid: int, redis: Redis, data_dir: Path, *, seconds: float, requests: int, teachings: int) -> Sample:
    """Read all gauges of a service with this process id, store and data folder."""
    memory = redis.info("memory")
    answers = list(redis.scan_iter(_ANSWERS, count=1000))
    with redis.pipeline(transaction=False) as pipe:
        for key in answers:
            pipe.memory_usage(key)
        answers_bytes = sum(usage or 0 for usage in pipe.execute())
    return Sample(
        seconds=seconds,
        requests=requests,
        teachings=teachings,
        resident=resident_bytes(pid),
        files=open_files(pid),
        keys=int(redis.dbsize()),
        store=int(memory["used_memory"]),
        answers=len(answers),
        answers_bytes=answers_bytes,
        append_only_file=_size(data_dir / "appendonlydir"),
    )


def _size(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):  # the store rewrites its file now and then
            total += file.stat().st_size
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True, text=True)
    return 1024 * int(told.stdout)


def open_files(pid: int) -> int:
    """Number of a process' open files; 0 where the system does not tell."""
    folder = Path(f"/proc/{pid}/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def growth(
    samples: Sequence[Sample], gauge: Callable[[Sample], int] = lambda one: one.resident, *, warm_up_s: float | None
) -> float:
    """Growth of a gauge from the end of the warm-up to the end, as a share.

    Args:
        samples: Of a run, in the order of time.
        gauge: What is looked at; resident memory unless another is given.
        warm_up_s: Seconds of the warm-up; None for a third of the time.
    """
    before, after = _windows(samples, warm_up_s)
    return median(map(gauge, after)) / median(map(gauge, before)) - 1


def growth_over_teachings(samples: Sequence[Sample], number: int, *, warm_up_s: float) -> int | None:
    """Bytes by which resident memory grew with so many teachings after the warm-up; None if there were fewer.

    Of one moment it would tell how busy the service was just then.
    """
    before, after = _windows(samples, warm_up_s)
    taught = median(one.teachings for one in after) - median(one.teachings for one in before)
    if taught < number:
        return None
    grown = median(one.resident for one in after) - median(one.resident for one in before)
    return round(number * grown / taught)


def _windows(samples: Sequence[Sample], warm_up_s: float | None) -> tuple[list[Sample], list[Sample]]:
    """The samples right after the warm-up, and the last ones; all where there are none."""
    total = samples[-1].seconds
    since_s = WARM_UP * total if warm_up_s is None else warm_up_s

    def within(since: float, until: float) -> list[Sample]:
        return [one for one in samples if since <= one.seconds <= until] or list(samples)

    return within(since_s, since_s + _WINDOW * total), within(total - _WINDOW * total, total)
