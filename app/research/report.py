"""Tables, JSON and pictures that `evaluate` and `backbones` print and write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from app.backbones.shared.family import Family
from app.masks.pictures import overlay
from app.method.backbone import Backbone
from app.method.shot import IGNORE

from .clicks import ClickReport
from .evaluation import Case
from .open_metrics import METRICS
from .open_set import COLUMNS, Estimate, OpenReport
from .scores import Report

if TYPE_CHECKING:
    from .open_set import Sight


def as_table(report: Report) -> Table:
    """Table of the IoU per class in percent, and of the mean over seeds with its deviation."""
    columns = list(report.scores)
    table = Table("class", *columns, title=f"IoU in %, {report.photos} photos", show_footer=False)
    for name, scores in report.rows():
        table.add_row(name, *(f"{100 * scores[c]:.1f}" if c in scores else "–" for c in columns))
    table.add_section()
    means = [report.mean(column) for column in columns]
    table.add_row("mIoU", *(f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in means), style="bold")
    if "words" in report.scores and len(columns) > 1:
        worse = (report.worse_than("words", column) for column in columns)
        table.add_row("classes worse than words", *("" if each is None else _share(*each) for each in worse))
    return table


def as_open_table(report: OpenReport) -> Table:
    """Table of the metrics of protocol `open` with their 95 % intervals, in percent but for AUC and calibration."""
    table = Table("", *COLUMNS, title=f"{report.photos} photos, {len(report.draws)} draws; 95 % intervals over photos")
    columns = report.estimates
    for metric in METRICS:
        table.add_row(metric, *(_estimate(columns[column][metric], metric) for column in COLUMNS))
    table.add_section()
    table.add_row("mIoU gained", "", _estimate(report.gain))
    table.add_row("present pairs missed that the words find", "", _estimate(report.missed_though_named))
    worse = report.worse
    names = f": {', '.join(worse)}" if worse else ""
    table.add_row("categories worse than words", "", _share(len(worse), len(report.changes)) + names)
    return table


def as_open_json(report: OpenReport) -> dict[str, Any]:
    """All estimates of protocol `open`, and the categories of each draw."""
    return {
        "photos": report.photos,
        "draws": [draw.categories for draw in report.draws],
        "columns": {
            column: {metric: _estimate_json(estimate) for metric, estimate in estimates.items()}
            for column, estimates in report.estimates.items()
        },
        "gain": _estimate_json(report.gain),
        "missed_though_named": _estimate_json(report.missed_though_named),
        "changes": {name: _estimate_json(change) for name, change in report.changes.items()},
    }


def as_click_table(report: ClickReport) -> Table:
    """Table of the mean IoU by the number of clicks, in percent."""
    table = Table("clicks", *report.ious, title=f"IoU in %, {report.objects} objects of {report.photos} photos")
    for count in next(iter(report.ious.values())):
        table.add_row(str(count), *(f"{100 * column[count]:.1f}" for column in report.ious.values()))
    return table


def as_click_json(report: ClickReport) -> dict[str, Any]:
    """The same as fractions."""
    return asdict(report)


def as_family_table(families: Sequence[Family]) -> Table:
    """Table of the families and their properties; memory is that of the example's weights."""
    columns = ("family", "models", "EXEMPLAR_BACKBONE, for example", "text looks at the image in", "image-text score")
    table = Table(*columns, "tuned by one example", "parameters", "float32", "bfloat16", title="Families")
    for one in families:
        sizes = [f"{one.parameters_m * width / 1000:.2f} GB" for width in (4, 2)]
        told = (one.name, one.models, one.setting, one.attention, one.image_text_score, one.tuned)
        table.add_row(*told, f"{one.parameters_m:,.0f} M", *sizes)
    return table


def as_backbone_table(backbones: Sequence[Backbone]) -> Table:
    """Table of the loaded models: device, memory, layers, patch grid."""
    table = Table("model", "revision", "on", "memory", "layers", "read by default", "patches", title="Loaded")
    for one in backbones:
        rows, columns = one.patch_grid_hw
        table.add_row(
            one.name,
            one.revision,
            f"{one.device}, {one.dtype}",
            f"{one.memory_bytes / 2**20:,.0f} MiB",
            str(one.layer_count),
            ", ".join(map(str, one.default_layers)),
            f"{rows} × {columns}",
        )
    return table


def as_json(report: Report) -> dict[str, Any]:
    """All scores of all seeds."""
    return {
        "photos": report.photos,
        "columns": {
            column: {
                "miou": report.mean(column)[0],
                "spread": report.mean(column)[1],
                "seeds": [score.mean for score in scores],
                "classes": {report.classes[n]: iou for n, iou in report.by_class(column).items()},
            }
            for column, scores in report.scores.items()
        },
    }


def as_picture(cases: Sequence[Case], classes: Sequence[str], height: int = 240) -> Image.Image:
    """One row per case: the photo, the true labels, and the labels of each column."""
    return _below([_row(case, classes, height) for case in cases])


def as_open_picture(rows: Mapping[str, Sequence[Sight]], height: int = 160) -> Image.Image:
    """One row per category: its example, photos that show it, and photos that do not, each with its mask."""
    pictures = []
    for name, sights in rows.items():
        tiles = [overlay(sight.photo, [sight.mask], [name]) for sight in sights]
        pictures.append(_beside(tiles, [sight.title for sight in sights], height))
    return _below(pictures)


def _row(case: Case, classes: Sequence[str], height: int) -> Image.Image:
    numbers = sorted({int(n) for labels in case.labels.values() for n in np.unique(labels)} - {0, IGNORE})
    names = [classes[number] for number in numbers]
    painted = [overlay(case.photo, [labels == n for n in numbers], names) for labels in case.labels.values()]
    return _beside([case.photo, *painted], ["", *case.labels], height)


def _beside(pictures: Sequence[np.ndarray], titles: Sequence[str], height: int) -> Image.Image:
    """Pictures of one height from left to right, each with its title."""
    tiles = [Image.fromarray(picture) for picture in pictures]
    tiles = [tile.resize((max(1, round(tile.width * height / tile.height)), height)) for tile in tiles]
    row = Image.new("RGB", (sum(tile.width for tile in tiles), height))
    left = 0
    for title, tile in zip(titles, tiles, strict=True):
        row.paste(tile, (left, 0))
        ImageDraw.Draw(row).text((left + 4, height - 14), title, fill="white", stroke_width=2, stroke_fill="black")
        left += tile.width
    return row


def _below(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows of one height, one below the other."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _estimate_json(estimate: Estimate) -> dict[str, float | None]:
    """An estimate; null for what is undefined, such as the share of absent pairs where none is absent."""
    return {name: None if math.isnan(value) else value for name, value in asdict(estimate).items()}


def _estimate(estimate: Estimate, metric: str = "") -> str:
    if math.isnan(estimate.mean):
        return "–"
    factor, digits = (1, 3) if metric.startswith("presence") else (100, 1)
    mean, low, high = (f"{factor * value:.{digits}f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} … {high})"


def _share(count: int, all_: int) -> str:
    return f"{100 * count / all_:.0f} % of {all_}" if all_ else "–"
