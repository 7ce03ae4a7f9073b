"""Commands that measure: quality on labelled photos, and agreement with the authors' code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from app.cli.terminal import check_writable, console, progress_bar, settings_with
from app.errors import InvalidInputError

if TYPE_CHECKING:
    from PIL import Image

    from app.method.backbone import Backbone
    from app.research.dataset import Dataset
    from app.research.subject import Options, Protocol


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


def evaluate(
    context: typer.Context,
    data: Annotated[
        list[Path],
        typer.Option(
            help="Folder with index.json, images/ and masks/; a COCO instances file, or a folder with one in "
            "annotations/; or a folder with JPEGImages/ and SegmentationClass/ as VOC. Several count as one; classes "
            "of the same name are one class."
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the photos of a COCO file; default: where they usually lie.", exists=True, file_okay=False
        ),
    ] = None,
    protocol: Annotated[
        Literal["words", "one-shot", "joint", "interference", "open", "single", "click"],
        typer.Option(
            help="words: names only; one-shot: an adapter per class from --shots photos; joint: the authors' joint "
            "tuning; interference: change of the other classes when one class is taught; open: --categories are taught "
            "and requested in every photo, shown or not; single: open, and every category is requested alone; click: "
            "objects are clicked, again where the mask is most wrong."
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
    split: Annotated[
        str | None, typer.Option(help="Only this split: of the index, of the COCO files, or of ImageSets/Segmentation.")
    ] = None,
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
    protocol, single = _open_alone(context, protocol, single=single)
    _check_evaluation(protocol, method, pictures)
    _check_unused(context, "prototype" if method == "prototype" else protocol)
    category_count = _category_count(categories)
    for file in (json_file, pictures):
        if file:
            check_writable(file)
    import torch

    from app.method.pipeline import default_min_presence
    from app.method.prompts import BACKGROUND_WORDS
    from app.research.dataset import joined
    from app.research.layouts import read_dataset
    from app.research.subject import Options
    from app.wiring import backbone_loaders, compute_threads, recipe_of, uses_mask_decoder

    settings = settings_with(backbone=backbone, layers=layers, tiles=tiles)
    torch.set_num_threads(compute_threads(settings))
    dataset = joined([read_dataset(folder, split=split, ids=ids, limit=limit, images=images) for folder in data])
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
            use_tiles=settings.tiles and "tiles" not in _UNUSED[protocol if method == "attention" else method],
            layers=settings.layer_numbers,
            background=settings.background_words or BACKGROUND_WORDS,
            recipe=recipe_of(settings),
        )
        measured = _measured(model, dataset, options, partial(_show_progress, bar, task))
    console.print(measured.table)
    if json_file:
        name = " + ".join(folder.name for folder in data)
        facts = {
            "dataset": name,
            "backbone": {"name": model.name, "revision": model.revision},
            "options": asdict(options),
        }
        json_file.write_text(json.dumps(facts | measured.scores, indent=2, allow_nan=False))
    if pictures and measured.draw:
        measured.draw().save(pictures, format="PNG")


@dataclass(frozen=True)
class _Measured:
    """A measurement: its table, its scores as JSON, and what draws its cases, if it has any."""

    table: Table
    scores: dict[str, Any]
    draw: Callable[[], Image.Image] | None = None


def _measured(
    model: Backbone, dataset: Dataset, options: Options, progress: Callable[[int, int, str], None]
) -> _Measured:
    """Measure by the protocol of the options."""
    from app.research import clicks, report
    from app.research.evaluation import Evaluation
    from app.research.open_set import open_set, sights
    from app.research.subject import Subject

    if options.protocol == "click":
        clicked = clicks.measure(Subject(model, dataset, options, progress))
        return _Measured(report.as_click_table(clicked), report.as_click_json(clicked))
    if options.protocol == "open":
        subject = Subject(model, dataset, options, progress)
        opened = open_set(subject)
        return _Measured(
            report.as_open_table(opened),
            report.as_open_json(opened),
            lambda: report.as_open_picture(sights(subject, opened.draws[-1], 10)),
        )
    evaluation = Evaluation(model, dataset, options, progress)
    found = evaluation.run()
    return _Measured(
        report.as_table(found), report.as_json(found), lambda: report.as_picture(evaluation.cases(9), dataset.classes)
    )


_OF_OPEN = ("categories", "single")
# Options that have no effect on a protocol or a method.
_UNUSED = {
    "words": (*_OF_OPEN, "seeds", "shots", "joint_epochs"),
    "one-shot": (*_OF_OPEN, "joint_epochs"),
    "joint": (*_OF_OPEN, "tiles", "min_presence"),
    "interference": (*_OF_OPEN, "joint_epochs", "crf"),
    "prototype": (*_OF_OPEN, "joint_epochs", "tiles", "min_presence"),
    "open": ("joint_epochs", "size", "prompts"),
    "click": (*_OF_OPEN, "seeds", "shots", "joint_epochs", "tiles", "layers", "size", "prompts", "min_presence"),
}


def _open_alone(
    context: typer.Context, protocol: Protocol | Literal["single"], *, single: bool
) -> tuple[Protocol, bool]:
    """The protocol, and whether `open` requests each category alone, which `single` and --single are names for."""
    if protocol == "single" or (single and not _is_given(context, "protocol")):
        return "open", True
    return protocol, single


def _is_given(context: typer.Context, name: str) -> bool:
    """True if an option is on the command line; its default is not."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_unused(context: typer.Context, measured: str) -> None:
    """Refuse options on the command line that have no effect on what is measured."""
    for name in _UNUSED[measured]:
        if _is_given(context, name):
            option = ("--no-" if context.params[name] is False else "--") + name.replace("_", "-")
            kind = "--method" if measured == "prototype" else "--protocol"
            raise InvalidInputError(f"{option} has no effect on {kind} {measured}: omit it.")


def _check_evaluation(protocol: str, method: str, pictures: Path | None) -> None:
    """Refuse options that have no meaning together."""
    if pictures and protocol == "interference":
        raise InvalidInputError(
            "--pictures does not work with --protocol interference, which finds other masks for every class that it "
            "teaches: omit --pictures, or choose another protocol."
        )
    if pictures and protocol == "click":
        raise InvalidInputError("--pictures does not work with --protocol click: omit it.")
    if method == "prototype" and protocol in ("joint", "interference", "open", "click"):
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
