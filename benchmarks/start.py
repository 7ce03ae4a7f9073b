"""Benchmark of a start: time from the command to `/readyz`, and memory of the idle process.

`python -m benchmarks.start` prints the rows alone.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2 as httpx
from rich.console import Console

from app.demo import free_port

from .measure import Row, table, text_ms

_ROUNDS = 5
# The first metrics and the return of freed memory come right after the model's first use.
_SETTLE_S = 1.0
_TIMEOUT_S = 120.0
_MOST_MIB = 350e6 / 2**20
_IMPORT = "import torch; print(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')))"


def start_rows() -> list[Row]:
    """Medians of starts by turns with the import of torch alone, which no change here makes faster or smaller."""
    floors, starts = zip(*((_import_torch(), _start()) for _ in range(_ROUNDS)), strict=True)
    (floor_s, floor_mib), (start_s, start_mib) = (
        [statistics.median(column) for column in zip(*runs, strict=True)] for runs in (floors, starts)
    )
    return [
        Row(
            "start to /readyz",
            "",
            text_ms(start_s),
            start_s,
            "≤ 3",
            f"seconds; {start_s / floor_s:.1f} × the import of torch ({text_ms(floor_s)})",
        ),
        Row(
            "resident memory of the idle service",
            "",
            f"{start_mib:.0f} MiB",
            start_mib,
            f"≤ {_MOST_MIB:.0f}",
            f"mebibytes, the target is 350 MB; {start_mib / floor_mib:.1f} × that of a process that imports torch "
            f"({floor_mib:.0f} MiB)",
        ),
    ]


def _import_torch() -> tuple[float, float]:
    """Seconds and resident mebibytes of a process that only imports torch."""
    started = time.perf_counter()
    status = subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - started, int(status.split()[1]) / 1024


def _start() -> tuple[float, float]:
    """Seconds until a new service on an empty store is ready, and its resident mebibytes then.

    Raises:
        RuntimeError: If it ends before, or is not ready in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        settings = {"EXEMPLAR_DATA_DIR": folder, "EXEMPLAR_PORT": str(port)}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EXEMPLAR_")}
        started = time.perf_counter()
        log = Path(folder) / "service.log"
        with log.open("w") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                env=environment | settings,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        try:
            while not _ready(port):
                if process.poll() is not None or time.perf_counter() - started > _TIMEOUT_S:
                    process.kill()
                    raise RuntimeError(f"The service did not start; the end of its log:\n{log.read_text()[-2000:]}")
                time.sleep(0.02)
            spent = time.perf_counter() - started
            time.sleep(_SETTLE_S)
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return spent, int(resident.split()[1]) / 1024


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    """Print the rows alone."""
    Console(width=180).print(table("A start", start_rows()))


if __name__ == "__main__":
    main()
