"""The command `teach`: a category from one photo, or all categories of a COCO file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from app.cli.terminal import DEFAULT_URL, Key, Url, console, progress_bar, say, show, table_of, warn
from app.errors import InvalidInputError

if TYPE_CHECKING:
    from app.cli.coco_examples import Taught
    from app.client import Client


def teach(
    name: Annotated[str | None, typer.Argument(help="The category's name.", show_default=False)] = None,
    image: Annotated[
        Path | None, typer.Argument(help="A photo.", exists=True, dir_okay=False, show_default=False)
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Argument(help="A mask of the photo's size; non-zero = the category.", exists=True, show_default=False),
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="A box around the category, in pixels, instead of a mask.", metavar="X,Y,W,H")
    ] = None,
    absent: Annotated[bool, typer.Option("--absent", help="The photo does not show the category; no mask.")] = False,
    prompt: Annotated[list[str] | None, typer.Option(help="Another word for the category; repeatable.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the earlier examples instead of adding one.")
    ] = False,
    coco: Annotated[
        Path | None,
        typer.Option(
            help="Teach every category of this COCO instances file, also one exported by Label Studio or CVAT.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the photos of --coco; default: beside the file, or in images beside it or its folder.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Photos per category of --coco.")] = 1,
    category: Annotated[
        list[str] | None, typer.Option(help="Only this category of --coco; repeatable.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Teach a running service a category from one photo and mask, and wait for its job.

    A photo in which the category was marked in error is sent with --absent instead of a mask. With --coco, the photos
    and masks come from a COCO file: of each category those photos that show it largest, with all that is marked there.
    """
    if coco is not None:
        if name is not None or box is not None or absent or prompt:
            raise InvalidInputError(
                "--coco names the categories and photos: omit NAME, IMAGE, --box, --absent and --prompt."
            )
        _teach_file(coco, images, category or [], shots=shots, replace=replace, url=url, key=key)
        return
    if name is None or image is None:
        raise InvalidInputError("Give NAME and IMAGE, or --coco with a file of annotations.")
    if images is not None or category or shots != 1:
        raise InvalidInputError("--images, --category and --shots belong to --coco: give the file, or omit them.")
    if absent + (mask is not None) + (box is not None) != 1:
        raise InvalidInputError(
            "Give a mask of the category, or --absent if the photo does not show it, or a --box around it: one of them."
        )
    _teach_one(name, image, mask, box=_numbers(box), prompts=prompt or [], replace=replace, url=url, key=key)


def _teach_one(
    name: str,
    image: Path,
    mask: Path | None,
    *,
    box: list[float] | None,
    prompts: list[str],
    replace: bool,
    url: str,
    key: str | None,
) -> None:
    from app.client import Client

    with Client(url, key=key) as client:
        job = client.teach(name, image, mask, box=box, prompts=prompts, replace=replace)
        for warning in job["warnings"]:
            warn(f"Warning: {warning['detail']}")
        state = _watched(client, job, f"teaching {name}")
        if state["status"] != "succeeded":
            raise InvalidInputError(f"The job {state['status']}: {state['error']}")
        for warning in state.get("warnings", ()):
            warn(f"Warning: {warning['detail']}")
        adapter = client.category(name)["adapter"]
        if adapter is None:
            raise InvalidInputError(f"{name} was changed by another client meanwhile: look at it with `category`.")
        say(
            f"{name}: version {adapter['version']}, IoU on its examples {adapter['example_iou']:.2f} "
            f"(words alone {adapter['zero_shot_example_iou']:.2f})"
        )


def _watched(client: Client, job: dict[str, Any], title: str) -> dict[str, Any]:
    """The final state of a job, after a progress bar."""
    state = job
    with progress_bar(console) as bar:
        task = bar.add_task(title, total=1.0)
        for state in client.follow(job["id"]):
            bar.update(task, completed=state["progress"])
    return state


def _numbers(box: str | None) -> list[float] | None:
    if box is None:
        return None
    try:
        x, y, width, height = map(float, box.strip("[] ").split(","))
    except ValueError as error:
        raise InvalidInputError(f"--box is x,y,width,height in pixels, such as 118,69,522,284, not {box!r}.") from error
    return [x, y, width, height]


def _teach_file(
    file: Path, images: Path | None, names: list[str], *, shots: int, replace: bool, url: str, key: str | None
) -> None:
    from app.cli.coco_examples import read_categories, teach_category
    from app.client import Client

    categories = read_categories(file, images, names)
    outcomes: list[Taught] = []
    try:
        with Client(url, key=key) as client, progress_bar(console) as bar:
            task = bar.add_task("teaching", total=len(categories))
            for category in categories:
                bar.update(task, description=f"teaching {category.name}", completed=len(outcomes))
                told = partial(_advance, bar, task, len(outcomes))
                outcomes.append(teach_category(client, category, shots=shots, replace=replace, told=told))
            bar.update(task, description="taught", completed=len(outcomes))
    finally:
        if outcomes:
            show(_table(outcomes))
    failed = sum(outcome.problem is not None for outcome in outcomes)
    if failed:
        warn(f"{failed} of {len(outcomes)} categories were not taught: the table says why.")
        raise typer.Exit(1)


def _advance(bar: Progress, task: TaskID, done: int, share: float) -> None:
    """Show the number of categories that are done, with the share of the next one."""
    bar.update(task, completed=done + share)


def _table(outcomes: list[Taught]) -> Table:
    table = table_of("category", "photos", "version", "IoU", "words alone", "remark")
    for outcome in outcomes:
        adapter = outcome.adapter
        measured = (
            (str(adapter["version"]), f"{adapter['example_iou']:.2f}", f"{adapter['zero_shot_example_iou']:.2f}")
            if adapter
            else ("", "", "")
        )
        remark = outcome.problem or "; ".join(outcome.warnings)
        table.add_row(outcome.name, "\n".join(outcome.photos), *measured, remark)
    return table
