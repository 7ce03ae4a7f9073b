"""What commands share: the consoles, options, progress bar, tables and checks of files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from app.errors import InvalidInputError
from app.settings import Settings

console = Console()
errors = Console(stderr=True)

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(help="Address of a running service.", envvar="EXEMPLAR_URL")]
Key = Annotated[
    str | None,
    typer.Option(help="An API key, if the service requires one.", envvar="EXEMPLAR_API_KEY"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer of the service as JSON.")]
CategoryName = Annotated[str, typer.Argument(metavar="NAME", help="The category's name.")]


def progress_bar(on: Console) -> Progress:
    """Progress bar of the long commands."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=on,
    )


def table_of(*columns: str) -> Table:
    """A table whose cells are folded, never cut off: names and ids are copied from it."""
    return Table(*(Column(column, overflow="fold") for column in columns))


def show(table: Table) -> None:
    """Print a table; brackets in names are no markup. One that is wider than the terminal is wrapped, not cut off."""
    console.print(table, markup=False, crop=False)


def say(text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON on several lines."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def warn(text: str) -> None:
    """Print a line to stderr as it is, however long."""
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def check_writable(file: Path) -> None:
    """Check an output file before the work, which may take minutes.

    Raises:
        InvalidInputError: If the folder doesn't exist, or the file can't be written.
    """
    if file.is_dir():
        raise InvalidInputError(f"{file} is a folder: name a file in it.")
    if not file.parent.is_dir():
        raise InvalidInputError(f"{file} can't be written: there is no folder {file.parent}.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InvalidInputError(f"{file} can't be written: permission denied; choose another path.")


def check_replaceable(file: Path, is_ours: Callable[[Path], bool]) -> None:
    """Check that an output file replaces none of another origin.

    Raises:
        InvalidInputError: If a file with content is there that `is_ours` does not know.
    """
    if os.path.isfile(file) and file.stat().st_size and not is_ours(file):
        raise InvalidInputError(
            f"{file} was not written by this command, and is kept: move it away, or choose another place."
        )


def settings_with(**given: object) -> Settings:
    """The settings of the environment, with those options that were given."""
    return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def fail(sentence: str, *, code: int = 1) -> None:
    """Print an error and exit."""
    errors.print(f"[red]Error:[/red] {escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(code)
