"""What `evaluate` prints and writes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from app.method.backbone import Backbone
from app.services.evaluation import Options, Report, rows


def as_table(report: Report) -> Table:
    """IoU per class in percent, and the mean over seeds with its deviation."""
    columns = list(report.scores)
    table = Table("class", *columns, title=f"IoU in %, {report.photos} photos", show_footer=False)
    for name, scores in rows(report):
        table.add_row(name, *(f"{100 * scores[c]:.1f}" if c in scores else "–" for c in columns))
    table.add_section()
    means = [report.mean(column) for column in columns]
    table.add_row("mIoU", *(f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in means), style="bold")
    if "words" in report.scores and len(columns) > 1:
        table.add_row("classes worse than words", *(_share(report.worse_than("words", column)) for column in columns))
    return table


def as_json(report: Report, *, dataset: str, backbone: Backbone, options: Options) -> dict[str, Any]:
    """All scores of all seeds, and what they were measured with."""
    return {
        "dataset": dataset,
        "photos": report.photos,
        "backbone": {"name": backbone.name, "revision": backbone.revision},
        "options": asdict(options),
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


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"
