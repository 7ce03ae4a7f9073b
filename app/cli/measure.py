"""Commands that measure: quality on labelled photos, and agreement with the authors' code."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from app.cli.terminal import check_writable, console, progress_bar, settings_with
from app.errors import InvalidInputError


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
    if protocol == "single":
        protocol, single = "open", True
    _check_evaluation(protocol, method, pictures)
    category_count = _category_count(categories)
    for file in (json_file, pictures):
        if file:
            check_writable(file)
    import torch

    from app.method.pipeline import default_min_presence
    from app.method.prompts import BACKGROUND_WORDS
    from app.research.dataset import joined
    from app.research.evaluation import Evaluation
    from app.research.layouts import read_dataset
    from app.research.open_set import open_set, sights
    from app.research.subject import Options, Subject
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
