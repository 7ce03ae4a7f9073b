"""Progress on standard error: a bar in a terminal, one line at the end elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

# Shows how much of the total is done, and a text beside the bar.
Show: TypeAlias = Callable[[float, str], None]

_BAR_CHARACTERS = 30


@contextmanager
def progress_bar(label: str, *, total: float | None, enabled: bool = True) -> Iterator[Show]:
    """Show the progress of a block.

    Args:
        label: What is going on.
        total: What `done` reaches at the end; None if unknown.
        enabled: False to show nothing.

    Yields:
        A function to call with what is done so far and a text.
    """
    if not enabled:
        yield lambda done, text: None
    elif not sys.stderr.isatty():
        with _last_line(label) as show:
            yield show
    elif importlib.util.find_spec("rich"):
        with _rich(label, total) as show:
            yield show
    elif importlib.util.find_spec("tqdm"):
        with _tqdm(label, total) as show:
            yield show
    else:
        with _plain(label, total) as show:
            yield show


@contextmanager
def _last_line(label: str) -> Iterator[Show]:
    last = ""

    def show(done: float, text: str) -> None:
        nonlocal last
        last = text

    yield show
    print(f"{label}: {last}", file=sys.stderr)


@contextmanager
def _plain(label: str, total: float | None) -> Iterator[Show]:
    def show(done: float, text: str) -> None:
        filled = round(_BAR_CHARACTERS * min(1.0, done / total)) if total else 0
        bar = "#" * filled + "." * (_BAR_CHARACTERS - filled)
        print(f"\r{label} [{bar}] {text}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print(file=sys.stderr)


@contextmanager
def _rich(label: str, total: float | None) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        # The label is a category's name, not rich's markup.
        task = bar.add_task(label.replace("[", r"\["), total=total, note="")
        yield lambda done, text: bar.update(task, completed=done, note=text)


@contextmanager
def _tqdm(label: str, total: float | None) -> Iterator[Show]:
    from tqdm import tqdm

    with tqdm(total=total, desc=label, bar_format="{desc} |{bar}| {postfix} [{elapsed}]") as bar:

        def show(done: float, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)

        yield show
