"""Gauges: what a process and its store hold at a moment, and whether that grows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from redis import Redis

# Share of the time in which caches fill and the allocator finds its size.
WARM_UP = 1 / 3
# Share of the time whose median stands for its begin and for its end.
_WINDOW = 1 / 6


@dataclass(frozen=True)
class Sample:
    """What is held at a moment; `seconds` counts from the begin, sizes are in bytes."""

    seconds: float
    requests: int
    resident: int
    files: int
    keys: int
    store: int
    append_only_file: int


def sample(pid: int, redis: Redis, data_dir: Path, *, seconds: float, requests: int) -> Sample:
    """Read all gauges of a service with this process id, store and data folder."""
    memory = redis.info("memory")
    files = data_dir.glob("appendonlydir/*")
    return Sample(
        seconds=seconds,
        requests=requests,
        resident=resident_bytes(pid),
        files=open_files(pid),
        keys=int(redis.dbsize()),
        store=int(memory["used_memory"]),
        append_only_file=sum(file.stat().st_size for file in files),
    )


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True, text=True)
    return 1024 * int(told.stdout)


def open_files(pid: int) -> int:
    """Number of a process' open files; 0 where the system does not tell."""
    folder = Path(f"/proc/{pid}/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def growth(samples: Sequence[Sample]) -> float:
    """Growth of resident memory from the end of the warm-up to the end, as a share."""
    total = samples[-1].seconds

    def middle(since: float, until: float) -> float:
        window = [one.resident for one in samples if since * total <= one.seconds <= until * total]
        return median(window or [one.resident for one in samples])

    return middle(1 - _WINDOW, 1) / middle(WARM_UP, WARM_UP + _WINDOW) - 1
