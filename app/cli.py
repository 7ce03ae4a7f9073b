"""The commands of the command line. An error is one sentence and a non-zero exit code."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.exceptions import TyperException

from app import logs, telemetry
from app.errors import AppError, InvalidInputError, UnavailableError
from app.settings import Scope, Settings

if TYPE_CHECKING:
    from app.client import Client

app = typer.Typer(
    help="Exemplar: learn to segment a category from one example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
errors = Console(stderr=True)

Url = Annotated[str, typer.Option(help="Address of a running service.")]
Key = Annotated[
    str | None,
    typer.Option(help="An API key, if the service requires one.", envvar="EXEMPLAR_API_KEY"),
]


def main() -> None:
    """Run a command; an expected error is printed as one sentence, without a traceback."""
    try:
        sys.exit(app(standalone_mode=False))
    except AppError as error:
        _fail(error.detail)
    except ValidationError as error:
        problems = "; ".join(f"EXEMPLAR_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        _fail(f"The settings can't be used: {problems}.")
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}.")
    except TyperException as error:
        _fail(error.format_message(), code=2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (EXEMPLAR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one (EXEMPLAR_PORT).")] = None,
) -> None:
    """Run the HTTP service."""
    settings = _settings(host=host, port=port)
    logs.configure(settings.log)
    telemetry.configure()
    asyncio.run(_serve(settings))


@app.command()
def worker() -> None:
    """Run jobs without HTTP, beside services that share the store."""
    from app.worker import run_worker

    settings = Settings()
    logs.configure(settings.log)
    telemetry.configure()
    asyncio.run(run_worker(settings))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="File to write the overlay to.")] = Path("build/demo.png"),
) -> None:
    """Start a temporary service, teach three categories, segment other photos, show the result."""
    from app.demo import run_demo

    out.parent.mkdir(parents=True, exist_ok=True)
    _check_writable(out)
    run_demo(console, out)


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="The category's name.")],
    image: Annotated[Path, typer.Argument(help="A photo.", exists=True, dir_okay=False)],
    mask: Annotated[
        Path | None, typer.Argument(help="A mask of the photo's size; non-zero = the category.", exists=True)
    ] = None,
    absent: Annotated[bool, typer.Option("--absent", help="The photo does not show the category; no mask.")] = False,
    prompt: Annotated[list[str] | None, typer.Option(help="Another word for the category; repeatable.")] = None,
    replace: Annotated[bool, typer.Option(help="Replace the earlier examples instead of adding one.")] = False,
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
) -> None:
    """Teach a running service a category from one photo and mask, and wait for its job.

    A photo in which the category was marked in error is sent with --absent instead of a mask.
    """
    from app.client import Client

    if absent == (mask is not None):
        raise InvalidInputError("Give a mask of the category, or --absent if the photo does not show it.")
    with Client(url, key=key) as client:
        job = client.teach(name, image, mask, prompts=prompt or [], replace=replace)
        for warning in job["warnings"]:
            errors.print(f"Warning: {warning['detail']}", markup=False, highlight=False, soft_wrap=True)
        with progress_bar(console) as bar:
            task = bar.add_task(f"teaching {name}", total=1.0)
            for state in client.follow(job["id"]):
                bar.update(task, completed=state["progress"])
        if state["status"] != "succeeded":
            raise InvalidInputError(f"The job {state['status']}: {state['error']}")
        adapter = client.category(name)["adapter"]
        console.print(
            f"{name}: version {adapter['version']}, IoU on its examples {adapter['example_iou']:.2f} "
            f"(words alone {adapter['zero_shot_example_iou']:.2f})"
        )


@app.command()
def segment(
    images: Annotated[list[Path], typer.Argument(help="One or several photos.", exists=True, dir_okay=False)],
    category: Annotated[
        list[str] | None, typer.Option(help="A category; repeatable; default: every category taught.")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Write the photo with masks and names to this file, as PNG; one photo only.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the response as JSON; one line per photo if there are several.")
    ] = False,
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
) -> None:
    """Segment photos with a running service; exit code 1 if one of several can't be read."""
    from app.client import Client

    names = category or []
    if overlay and len(images) > 1:
        raise InvalidInputError("--overlay accepts only one photo: name one photo, or omit --overlay.")
    if overlay:
        _check_writable(overlay)
    with Client(url, key=key) as client:
        if len(images) > 1:
            return _segment_several(client, images, names, as_json=as_json)
        answer = client.segment(images[0], names)
        if overlay:
            overlay.write_bytes(client.overlay(images[0], names))
    if as_json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
        return
    table = Table(*_FOUND)
    for found in answer["categories"]:
        table.add_row(*_row(found))
    console.print(table)


def _segment_several(client: Client, images: list[Path], names: list[str], *, as_json: bool) -> None:
    table = Table("photo", *_FOUND)
    problems = 0
    with progress_bar(errors) as bar:
        for line in bar.track(client.batch(images, names), total=len(images), description="segmenting"):
            image = str(images[line["index"]])
            problems += "problem" in line
            if as_json:
                print(json.dumps(line | {"filename": image}, ensure_ascii=False))
            elif "problem" in line:
                errors.print(f"[red]{image}:[/red] {line['problem']['detail']}", highlight=False, soft_wrap=True)
            for found in line.get("categories", ()):
                table.add_row(image, *_row(found))
    if not as_json:
        console.print(table)
    if problems:
        raise typer.Exit(1)


_FOUND = ("category", "taught", "presence", "area")


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    return (
        found["name"],
        "yes" if found["adapted"] else "named",
        f"{found['presence']:.2f}",
        f"{found['area']:,}",
    )


@app.command()
def parity(files: Annotated[list[Path], typer.Argument(help="Golden cases (safetensors).", exists=True)]) -> None:
    """Compare the method with outputs of the authors' code; exit code 1 if a difference is too large."""
    from app.research.parity import check

    good = True
    for file in files:
        table = Table("output", "largest error", "allowed", "", title=file.name)
        for row in check(file):
            table.add_row(row.output, f"{row.error:.2e}", f"{row.allowed:.0e}", "ok" if row.ok else "TOO FAR")
            good &= row.ok
        console.print(table)
    if not good:
        raise typer.Exit(1)


@app.command()
def evaluate(
    data: Annotated[
        list[Path],
        typer.Option(
            help="Folder with index.json, images/ and masks/. Several folders count as one; classes of the same "
            "name are one class."
        ),
    ],
    protocol: Annotated[
        Literal["words", "one-shot", "joint", "interference", "open", "single"],
        typer.Option(
            help="words: names only; one-shot: an adapter per class from --shots photos; joint: the authors' joint "
            "tuning; interference: change of the other classes when one class is taught; open: --categories are taught "
            "and requested in every photo, shown or not; single: open, and every category is requested alone."
        ),
    ] = "words",
    method: Annotated[
        Literal["attention", "prototype"], typer.Option(help="prototype: the baseline of frozen features.")
    ] = "attention",
    prompts: Annotated[
        Literal["present", "all"], typer.Option(help="Classes requested in a photo: those present, or all.")
    ] = "present",
    categories: Annotated[
        str, typer.Option(help="Number of categories that open draws for each seed, or all.", metavar="NUMBER|all")
    ] = "20",
    single: Annotated[bool, typer.Option("--single", help="As --protocol single.")] = False,
    min_presence: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="As EXEMPLAR_MIN_PRESENCE; by default only for open, which requests absent categories too.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of draws of the supports.")] = 3,
    shots: Annotated[int, typer.Option(min=1, help="Supports per class.")] = 1,
    joint_epochs: Annotated[
        int, typer.Option(min=1, help="Passes of joint over its supports (the authors: 5 on PASCAL, 2 on COCO).")
    ] = 2,
    split: Annotated[str | None, typer.Option(help="Only this split of the index.")] = None,
    ids: Annotated[Path | None, typer.Option(help="JSON list of photo ids to keep.", exists=True)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of photos.")] = None,
    size: Annotated[
        Literal["original", "input"],
        typer.Option(help="Size at which masks are compared: the photo's, or the network input's."),
    ] = "original",
    crf: Annotated[bool, typer.Option(help="Also measure with the CRF; interference is measured without.")] = True,
    layers: Annotated[str | None, typer.Option(help="Layers to read, such as 0,3.")] = None,
    tiles: Annotated[bool | None, typer.Option(help="As EXEMPLAR_TILES.")] = None,
    backbone: Annotated[str | None, typer.Option(help="As EXEMPLAR_BACKBONE.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Draw cases to this file, as PNG: good, middling and failed ones; of open, ten categories in photos "
            "that show them and photos that do not. Not for interference."
        ),
    ] = None,
) -> None:
    """Measure mIoU on a folder of photos with masks; every protocol also measures the words alone."""
    if protocol == "single":
        protocol, single = "open", True
    _check_evaluation(protocol, method, pictures)
    category_count = _category_count(categories)
    for file in (json_file, pictures):
        if file:
            _check_writable(file)
    import torch

    from app.method.pipeline import default_min_presence
    from app.method.prompts import BACKGROUND_WORDS
    from app.research.dataset import joined, read_dataset
    from app.research.evaluation import Evaluation
    from app.research.open_set import open_set, sights
    from app.research.subject import Options, Subject
    from app.wiring import backbone_loaders, compute_threads, recipe_of, uses_mask_decoder

    settings = _settings(backbone=backbone, layers=layers, tiles=tiles)
    torch.set_num_threads(compute_threads(settings))
    dataset = joined([read_dataset(folder, split=split, ids=ids, limit=limit) for folder in data])
    if method == "prototype" and protocol == "words":
        protocol = "one-shot"
    with progress_bar(console) as bar:
        task = bar.add_task("loading the model", total=None)
        model = backbone_loaders(settings)[0]()
        if min_presence is None:
            min_presence = default_min_presence(model, settings.min_presence) if protocol == "open" else 0.0
        options = Options(
            protocol=protocol,
            method=method,
            prompts=prompts,
            seeds=seeds,
            shots=shots,
            joint_epochs=joint_epochs,
            categories=category_count,
            single=single,
            min_presence=min_presence,
            size=size,
            crf=crf and protocol != "interference",
            use_mask_decoder=uses_mask_decoder(settings),
            use_tiles=settings.tiles,
            layers=settings.layer_numbers,
            background=settings.background_words or BACKGROUND_WORDS,
            recipe=recipe_of(settings),
        )
        progress = partial(_show_progress, bar, task)
        if protocol == "open":
            subject = Subject(model, dataset, options, progress)
            opened = open_set(subject)
        else:
            evaluation = Evaluation(model, dataset, options, progress)
            report = evaluation.run()
    from app.research.report import as_json, as_open_json, as_open_picture, as_open_table, as_picture, as_table

    console.print(as_open_table(opened) if protocol == "open" else as_table(report))
    if json_file:
        name = " + ".join(folder.name for folder in data)
        scores = as_open_json(opened) if protocol == "open" else as_json(report)
        facts = {
            "dataset": name,
            "backbone": {"name": model.name, "revision": model.revision},
            "options": asdict(options),
        }
        json_file.write_text(json.dumps(facts | scores, indent=2))
    if pictures:
        sheet = (
            as_open_picture(sights(subject, opened.draws[-1], 10))
            if protocol == "open"
            else as_picture(evaluation.cases(9), dataset.classes)
        )
        sheet.save(pictures, format="PNG")


def _check_evaluation(protocol: str, method: str, pictures: Path | None) -> None:
    """Refuse options that have no meaning together."""
    if pictures and protocol == "interference":
        raise InvalidInputError(
            "--pictures does not work with --protocol interference, which finds other masks for every class that it "
            "teaches: omit --pictures, or choose another protocol."
        )
    if method == "prototype" and protocol in ("joint", "interference", "open"):
        raise InvalidInputError(
            f"--method prototype does no tuning, which --protocol {protocol} measures: choose --protocol one-shot."
        )


def _show_progress(bar: Progress, task: TaskID, step: int, steps: int, activity: str) -> None:
    bar.update(task, completed=step, total=steps, description=activity)


def _category_count(text: str) -> int | None:
    """Number of categories of --categories; None for all."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or not int(text):
        raise InvalidInputError(f"--categories is a positive whole number or all, not {text!r}.")
    return int(text)


@app.command(name="key")
def make_key(
    scope: Annotated[
        Scope, typer.Argument(help="read: read and segment; teach: also teach; admin: everything.")
    ] = "teach",
) -> None:
    """Make an API key: one line for the caller, one for EXEMPLAR_API_KEYS of the service."""
    key = secrets.token_urlsafe(32)
    print(f"key      {key}")
    print(f"setting  {scope}:{hashlib.sha256(key.encode()).hexdigest()}")


@app.command(name="backbones")
def list_backbones(
    loaded: Annotated[bool, typer.Option(help="Also load the models of EXEMPLAR_BACKBONE and show their size.")] = True,
    backbone: Annotated[str | None, typer.Option(help="As EXEMPLAR_BACKBONE.")] = None,
) -> None:
    """List the model families and their properties, and the models of EXEMPLAR_BACKBONE with their size."""
    from app.research.report import as_backbone_table, as_family_table
    from app.wiring import backbone_loaders, family_list

    console.print(as_family_table(family_list()))
    if loaded:
        with progress_bar(console) as bar:
            task = bar.add_task("loading", total=None)
            models = [load() for load in bar.track(backbone_loaders(_settings(backbone=backbone)), task_id=task)]
        console.print(as_backbone_table(models))


async def _serve(settings: Settings) -> None:
    """Start the components first, so that an error is printed as one sentence; then listen until SIGINT or SIGTERM."""
    import uvicorn

    from app.main import create_app
    from app.wiring import service

    await _check_address(settings.host, settings.port)
    async with service(settings) as live:
        config = uvicorn.Config(
            create_app(settings, live=live),
            host=settings.host,
            port=settings.port,
            log_config=None,
            # Enough for current requests. Event streams still open after it are closed; their clients reconnect.
            timeout_graceful_shutdown=10,
        )
        # After it has stopped, uvicorn raises the signal again; ignoring it leaves time to stop the components.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        await uvicorn.Server(config).serve()


async def _check_address(host: str, port: int) -> None:
    """Check the address before the models are loaded; uvicorn would exit the process only afterwards.

    Raises:
        UnavailableError: If the port is taken, or the address is not this machine's.
    """
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(
            f"Nothing can listen at {host}:{port}: choose another --host or --port ({error})."
        ) from error
    server.close()


def progress_bar(on: Console) -> Progress:
    """Progress bar of the long commands."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=on
    )


def _check_writable(file: Path) -> None:
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


def _settings(**given: object) -> Settings:
    return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _fail(sentence: str, *, code: int = 1) -> None:
    errors.print(f"[red]Error:[/red] {sentence}", highlight=False, soft_wrap=True)
    sys.exit(code)
