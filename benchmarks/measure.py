"""Functions that measure times, and the table of results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One measured ratio.

    Attributes:
        what: The measured case.
        before: Value of the baseline, or of the case compared with.
        after: Value of the service.
        ratio: Ratio of the two; higher is better, or lower if the target is "≤".
        target: Target of the ratio, such as "≥ 30".
        note: Additional observations.
    """

    what: str
    before: str
    after: str
    ratio: float
    target: str
    note: str = ""

    @property
    def met(self) -> bool:
        """True if the ratio reaches the target."""
        sign, number = self.target.split()[:2]
        return self.ratio >= float(number) if sign == "≥" else self.ratio <= float(number)


def table(title: str, rows: Sequence[Row]) -> Table:
    """Table of the rows; missed targets are marked."""
    made = Table("what", "plain, or compared with", "ours", "ratio", "target", "", "note", title=title)
    for row in rows:
        mark = "[green]met" if row.met else "[yellow]missed"
        made.add_row(row.what, row.before, row.after, f"{row.ratio:.2f}", row.target, mark, row.note)
    return made


def seconds(call: Callable[[], object], *, repeats: int = 5, warm_up: bool = True) -> float:
    """Median time of a call in seconds."""
    if warm_up:
        call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def by_turns(
    theirs: Callable[[], object], ours: Callable[[], object], *, rounds: int = 3, ours_per_round: int = 3
) -> tuple[float, float]:
    """Median times of two calls in seconds, measured by turns so that a change of the machine's pace meets both."""
    theirs(), ours()
    before, after = [], []
    for _ in range(rounds):
        before.append(seconds(theirs, repeats=1, warm_up=False))
        after += [seconds(ours, repeats=1, warm_up=False) for _ in range(ours_per_round)]
    return statistics.median(before), statistics.median(after)


def wait_for(device: str) -> None:
    """Wait until a device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def percentile(values: Sequence[float], share: float) -> float:
    """Percentile: the value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def matmul_flops(dtype: torch.dtype = torch.float32, side: int = 2048, device: str = "cpu") -> float:
    """Operations per second of a large matrix product: the peak of this device."""
    a = torch.rand(side, side).to(device, dtype)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        a @ a
        wait_for(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def text_ms(value: float) -> str:
    """Format a number of seconds, in milliseconds if it is below 10 s."""
    return f"{1000 * value:.0f} ms" if value < 10 else f"{value:.1f} s"
