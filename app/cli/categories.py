"""Commands that show and change what a running service keeps: categories, versions and jobs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from app.cli.terminal import (
    DEFAULT_URL,
    AsJson,
    CategoryName,
    Key,
    Url,
    check_replaceable,
    check_writable,
    console,
    print_json,
    say,
    show,
    table_of,
)

_ADAPTER_HEADER = b'{"__metadata__":{"exemplar":'

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "superseded"]


def list_categories(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the categories of a service."""
    from app.client import Client

    with Client(url, key=key) as client:
        categories = client.categories()
    _show_categories(categories, as_json=as_json)


def show_category(name: CategoryName, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show one category."""
    from app.client import Client

    with Client(url, key=key) as client:
        category = client.category(name)
    _show_category(category, as_json=as_json)


def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only jobs with this status.")] = None,
    category: Annotated[str | None, typer.Option(help="Only jobs of this category.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs.")] = 100,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    from app.client import Client

    with Client(url, key=key) as client:
        jobs = list(islice(client.jobs(category=category, status=status), limit))
    if as_json:
        return print_json(jobs)
    # Without lines, and without the year and the seconds, a row fits into 80 characters. Where these are, only the
    # category is folded.
    wide = console.width >= 80
    widths = {"job": 32, "category": 8, "kind": 4, "status": 11, "created": 11}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, width in widths.items():
        table.add_column(name, min_width=width, no_wrap=wide and name != "category", overflow="fold")
    for job in jobs:
        share = f" {job['progress']:.0%}" if job["status"] == "running" else ""
        created = _moment(job["created_at"])[5:16]
        table.add_row(job["id"], job["category"] or "", job["kind"], job["status"] + share, created)
    show(table)
    for job in jobs:
        if job["error"]:
            say(f"{job['id']}: {job['error']}")


def list_versions(name: CategoryName, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the adapter versions of a category, the newest first."""
    from app.client import Client

    with Client(url, key=key) as client:
        versions = client.versions(name)
    if as_json:
        return print_json(versions)
    table = table_of("version", "in use", "IoU", "words alone", "model", "created")
    for version in versions:
        table.add_row(
            str(version["version"]),
            "yes" if version["current"] else "",
            f"{version['example_iou']:.2f}",
            f"{version['zero_shot_example_iou']:.2f}",
            version["backbone"],
            _moment(version["created_at"]),
        )
    show(table)


def rollback(
    name: CategoryName,
    version: Annotated[int, typer.Argument(min=1, help="A version that `versions` lists.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Use an older adapter version of a category again; a job that is queued or running is superseded."""
    from app.client import Client

    with Client(url, key=key) as client:
        category = client.rollback(name, version)
    _show_category(category, as_json=as_json)


def delete(name: CategoryName, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Delete a category with its examples and versions. It can't be undone."""
    from app.client import Client

    with Client(url, key=key) as client:
        client.delete(name)
    if as_json:
        return print_json({"deleted": name})
    say(f"{name} was deleted.")


def export_adapter(
    name: CategoryName,
    file: Annotated[Path, typer.Argument(help="File to write, safetensors.", dir_okay=False)],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Write the adapter of a category to a file, for another service with the same model."""
    from app.client import Client
    from app.coco import write_whole

    check_writable(file)
    check_replaceable(file, _is_adapter)
    with Client(url, key=key) as client:
        adapter = client.export(name)
    write_whole(file, adapter)
    if as_json:
        return print_json({"name": name, "file": str(file), "bytes": len(adapter)})
    say(f"{file}: {len(adapter):,} bytes")


def import_adapter(
    name: CategoryName,
    file: Annotated[Path, typer.Argument(help="A file of `export`.", exists=True, dir_okay=False)],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Give a category the adapter that another service exported."""
    from app.client import Client

    with Client(url, key=key) as client:
        category = client.import_(name, file.read_bytes())
    _show_category(category, as_json=as_json)


def _is_adapter(file: Path) -> bool:
    """True if `export` made a file: safetensors, eight bytes before its header, with a header of ours."""
    with file.open("rb") as opened:
        return opened.read(8 + len(_ADAPTER_HEADER))[8:] == _ADAPTER_HEADER


# What makes the masks of a category, by the `kept` of its adapter; services of earlier releases tell none.
_USES = {"adapter": "adapter", "words": "words", "presence": "words, example for presence"}


def _show_category(category: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        return print_json(category)
    _show_categories([category], as_json=False)


def _show_categories(categories: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        return print_json(categories)
    table = table_of("category", "words", "examples", "version", "IoU", "words alone", "uses", "model")
    for category in categories:
        table.add_row(category["name"], ", ".join(category["prompts"]), str(category["examples"]), *_adapter(category))
    show(table)


def _adapter(category: dict[str, Any]) -> tuple[str, ...]:
    adapter = category["adapter"]
    if adapter is None:
        return "", "", "", "words", ""
    return (
        str(adapter["version"]),
        f"{adapter['example_iou']:.2f}",
        f"{adapter['zero_shot_example_iou']:.2f}",
        _USES.get(adapter.get("kept"), ""),
        adapter["backbone"],
    )


def _moment(text: str) -> str:
    """A time of the service, to the second."""
    return text.partition(".")[0].replace("T", " ").removesuffix("+00:00").removesuffix("Z")
