"""How times are taken, and the table they end in."""

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
        what: What was measured.
        before: Of the plain path, or of the case compared with.
        after: Of the service's path.
        ratio: Of the two, so that more (or, with a target "≤", less) is better.
        target: What is wanted of the ratio, such as "≥ 30".
        note: What else was seen.
    """

    what: str
    before: str
    after: str
    ratio: float
    target: str
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the ratio is what is wanted."""
        sign, number = self.target.split()[:2]
        return self.ratio >= float(number) if sign == "≥" else self.ratio <= float(number)


def table(title: str, rows: Sequence[Row]) -> Table:
    """Rows as a table, with a mark at what missed its target."""
    made = Table("what", "plain, or compared with", "ours", "ratio", "target", "", "note", title=title)
    for row in rows:
        mark = "[green]met" if row.met else "[yellow]missed"
        made.add_row(row.what, row.before, row.after, f"{row.ratio:.2f}", row.target, mark, row.note)
    return made


def seconds(call: Callable[[], object], *, repeats: int = 5, warm_up: bool = True) -> float:
    """Median time of a call."""
    if warm_up:
        call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values doesn't exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def matmul_flops(dtype: torch.dtype = torch.float32, side: int = 2048) -> float:
    """Operations per second of a large matrix product: the most that this machine gives."""
    a = torch.rand(side, side).to(dtype)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def text_ms(value: float) -> str:
    """Seconds as text, in milliseconds or seconds."""
    return f"{1000 * value:.0f} ms" if value < 10 else f"{value:.1f} s"
