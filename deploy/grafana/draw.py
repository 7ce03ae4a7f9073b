"""Draw dashboards/*.json from the data of a Prometheus, without Grafana.

    python deploy/grafana/draw.py http://127.0.0.1:9090 --minutes 60 --out build/dashboards

matplotlib draws the panels on Grafana's grid; Prometheus answers their queries. Interactive parts are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2 as httpx
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image

FOLDER = Path(__file__).parent / "dashboards"

_COLUMN_PX, _LINE_PX, _HEAD_PX, _DPI = 56, 32, 44, 100  # of Grafana's 24 columns; the head holds title and time
_LEGEND_LINES = 3
_INK, _FAINT, _PAPER, _DESK, _EDGE = "#24292e", "#6e7680", "#ffffff", "#f4f5f5", "#d9dbdf"
_COLOURS = {"red": "#d44a3a", "green": "#2e9e5b", "blue": "#3274d9"}
_LINES = ("#3274d9", "#e0752d", "#2e9e5b", "#d44a3a", "#8f5bd6", "#8a6d4b", "#d65bb0", "#7f868d", "#b5a51d", "#2ba9bd")
_STYLE = {
    "font.size": 8.5,
    "text.color": _INK,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "axes.edgecolor": _EDGE,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """Values of one line, bar or number of a panel; times are in seconds since 1970."""

    name: str
    times: list[float]
    values: list[float]

    @property
    def last(self) -> float:
        return self.values[-1]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Time range that is drawn, in seconds since 1970."""

    start: float
    end: float
    scrape_interval_s: float

    @property
    def step_s(self) -> float:
        """Step for about 300 points, not smaller than the scrape interval."""
        return max(self.scrape_interval_s, (self.end - self.start) / 300)

    def filled(self, expr: str) -> str:
        """The expression with Grafana's variables replaced, as Grafana does with all instances selected."""
        rate_interval_s = max(self.step_s + self.scrape_interval_s, 4 * self.scrape_interval_s)
        values = {
            "$__rate_interval": f"{round(rate_interval_s)}s",
            "$__range": f"{round(self.end - self.start)}s",
            "$job": ".+",
            "$instance": ".+",
        }
        for variable, value in values.items():
            expr = expr.replace(variable, value)
        return expr


def fetched(http: httpx.Client, target: Json, span: Span) -> list[Series]:
    """Query Prometheus for one target of a panel.

    Raises:
        ValueError: If Prometheus answers with an error.
    """
    expr = span.filled(target["expr"])
    if target["instant"]:
        answer = http.get("/api/v1/query", params={"query": expr, "time": span.end}).json()
    else:
        times = {"start": span.start, "end": span.end, "step": span.step_s}
        answer = http.get("/api/v1/query_range", params={"query": expr, **times}).json()
    if answer["status"] != "success":
        raise ValueError(f"Prometheus refuses {expr}: {answer['error']}")
    found = [_series(result, target["legendFormat"]) for result in answer["data"]["result"]]
    if target["format"] == "heatmap":
        return apart(found)
    return [series for series in found if not all(math.isnan(value) for value in series.values)]


def _series(result: Json, legend: str) -> Series:
    name = re.sub(r"{{(\w+)}}", lambda label: result["metric"].get(label[1], ""), legend).strip()
    points = result["values"] if "values" in result else [result["value"]]
    return Series(name, [float(at) for at, _ in points], [float(value) for _, value in points])


def apart(buckets: list[Series]) -> list[Series]:
    """Convert cumulative buckets, named by their upper bounds, to counts per bucket."""
    ordered = sorted(buckets, key=lambda bucket: float(bucket.name))
    below = [0.0, *(bucket.last for bucket in ordered)]
    return [
        Series(bucket.name, bucket.times, [bucket.last - less]) for bucket, less in zip(ordered, below, strict=False)
    ]


def told(value: float, unit: str) -> str:
    """Format a value in a unit as Grafana does, to three digits."""
    if math.isnan(value):
        return "NaN"
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        for size, name in ((60.0, "min"), (1.0, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value / 1e-6:.3g} µs" if value else "0 s"
    if unit == "bytes":
        for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if abs(value) >= 2**power:
                return f"{value / 2**power:.3g} {name}"
        return f"{value:.3g} B"
    after = {"reqps": " req/s", "ops": " ops/s"}.get(unit, "")
    return f"{value / 1000:.3g} K{after}" if abs(value) >= 1000 else f"{value:.3g}{after}"


def drawn(dashboard: Json, ask: Callable[[Json], list[Series]], span: Span) -> bytes:
    """Draw a dashboard as PNG; `ask` returns the series of a panel's target."""
    panels = dashboard["panels"]
    lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width_px, height_px = 24 * _COLUMN_PX, _HEAD_PX + lines * _LINE_PX
    with rc_context(_STYLE):
        figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI, facecolor=_DESK)
        page = _Page(figure, width_px, height_px)
        page.write(10, 28, dashboard["title"], size=13, weight="bold")
        page.write(width_px - 10, 28, _told_time(span), color=_FAINT, ha="right")
        for panel in panels:
            at = panel["gridPos"]
            box = (at["x"] * _COLUMN_PX, _HEAD_PX + at["y"] * _LINE_PX, at["w"] * _COLUMN_PX, at["h"] * _LINE_PX)
            if panel["type"] == "row":
                page.write(10, box[1] + 22, panel["title"], size=10, weight="bold")
            else:
                series = [series for target in panel["targets"] for series in ask(target)]
                _draw_panel(page, box, panel, series, span)
        return _png(figure)


def _told_time(span: Span) -> str:
    start, end = (datetime.fromtimestamp(at, UTC) for at in (span.start, span.end))
    return f"{start:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC"


def _png(figure: Figure) -> bytes:
    """Render a PNG with few colours, which makes the file a third as large."""
    full, small = BytesIO(), BytesIO()
    figure.savefig(full, format="png", facecolor=figure.get_facecolor())
    Image.open(full).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


Box = tuple[float, float, float, float]  # left, top, width and height in pixels, from the top left


@dataclass(frozen=True)
class _Page:
    """A figure with positions in pixels from its top left corner."""

    figure: Figure
    width_px: float
    height_px: float

    def write(self, x: float, y: float, text: str, *, size: float = 8.5, **look: Any) -> None:
        look = {"va": "baseline", "ha": "left", **look}
        self.figure.text(x / self.width_px, 1 - y / self.height_px, text, fontsize=size, **look)

    def axes(self, box: Box) -> Axes:
        left, top, width, height = box
        axes: Axes = self.figure.add_axes(
            (
                left / self.width_px,
                1 - (top + height) / self.height_px,
                width / self.width_px,
                height / self.height_px,
            )
        )
        return axes

    def sheet(self, box: Box) -> None:
        left, top, width, height = box
        corner = (left / self.width_px, 1 - (top + height) / self.height_px)
        size = (width / self.width_px, height / self.height_px)
        shape = Rectangle(corner, *size, facecolor=_PAPER, edgecolor=_EDGE, linewidth=0.8, zorder=-1)
        self.figure.add_artist(shape)


def _draw_panel(page: _Page, box: Box, panel: Json, series: list[Series], span: Span) -> None:
    left, top, width, height = (box[0] + 4, box[1] + 4, box[2] - 8, box[3] - 8)
    page.sheet((left, top, width, height))
    page.write(left + 10, top + 18, panel["title"], weight="bold")
    inside = (left + 10, top + 30, width - 20, height - 38)
    if not series:
        x, y = inside[0] + inside[2] / 2, inside[1] + inside[3] / 2
        page.write(x, y, "No data", size=11, color=_FAINT, ha="center", va="center")
        return
    draw = {"timeseries": _draw_lines, "stat": _draw_numbers, "bargauge": _draw_bars}[panel["type"]]
    draw(page, inside, panel["fieldConfig"]["defaults"], series, span)


def _draw_lines(page: _Page, box: Box, field: Json, series: list[Series], span: Span) -> None:
    left, top, width, height = box
    columns, shown = _fitted(series, width)
    legend_px = 16 * math.ceil(len(shown) / columns) + 6
    axes = page.axes((left + 62, top + 4, width - 68, height - 20 - legend_px))
    custom = field.get("custom", {})
    handles = (_stack if "stacking" in custom else _lines)(axes, series)
    axes.set_xlim(_day(span.start), _day(span.end))
    _scale(axes, field, series)
    locator = AutoDateLocator(minticks=2, maxticks=max(3, int(width / 70)))
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S" if span.end - span.start < 240 else "%H:%M", tz=UTC))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, field["unit"])))
    axes.tick_params(length=0, labelsize=8, pad=3)
    axes.grid(color=_EDGE, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    keys = axes.legend(
        [handles[i] for i in shown],
        _names(series, shown),
        loc="upper left",
        bbox_to_anchor=(-58 / (width - 68), -18 / (height - 20 - legend_px)),
        ncols=columns,
        frameon=False,
        fontsize=8,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.4,
        labelspacing=0.35,
    )
    keys.set_in_layout(False)


def _fitted(series: list[Series], width: float) -> tuple[int, list[int]]:
    """Number of legend columns, and the series in the legend: those with the largest values, in order."""
    longest = max(len(one.name) for one in series)
    columns = max(1, min(len(series), int(width / (34 + 6.1 * longest))))
    largest = sorted(range(len(series)), key=lambda i: -_largest(series[i].values))
    return columns, sorted(largest[: columns * _LEGEND_LINES])


def _names(series: list[Series], shown: list[int]) -> list[str]:
    names = [series[i].name or "(no name)" for i in shown]
    if len(shown) < len(series):
        names[-1] += f"  + {len(series) - len(shown)} more"
    return names


def _lines(axes: Axes, series: list[Series]) -> list[Any]:
    handles = []
    for i, one in enumerate(series):
        lonely = len(one.values) == 1
        drawn_line = axes.plot(
            [_day(at) for at in one.times],
            one.values,
            color=_LINES[i % len(_LINES)],
            linewidth=1.4,
            marker="o" if lonely else None,
            markersize=3,
            linestyle="-" if i < len(_LINES) else "--",
        )
        handles += drawn_line
    return handles


def _stack(axes: Axes, series: list[Series]) -> list[Any]:
    times = sorted({at for one in series for at in one.times})
    known = [dict(zip(one.times, one.values, strict=True)) for one in series]
    heights = [[_number(values.get(at, 0.0)) for at in times] for values in known]
    colours = [_LINES[i % len(_LINES)] for i in range(len(series))]
    return list(axes.stackplot([_day(at) for at in times], heights, colors=colours, alpha=0.75, linewidth=0))


def _scale(axes: Axes, field: Json, series: list[Series]) -> None:
    """Set the limits and ticks of the value axis; series that are 0 throughout get the range 0 to 1."""
    if field.get("min") == 0:
        flat = max(_largest(one.values) for one in series) <= 0
        axes.set_ylim(0, 1 if flat else None)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    high = axes.get_ylim()[1]
    if field["unit"] == "bytes":
        axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(high / 5))))


def _draw_numbers(page: _Page, box: Box, field: Json, series: list[Series], _: Span) -> None:
    left, top, width, height = box
    share = width / len(series)
    for i, one in enumerate(series):
        x = left + (i + 0.5) * share
        colour = _coloured(one.last, field)
        middle = top + height / 2
        page.write(x, middle - 8, told(one.last, field["unit"]), size=19, color=colour, ha="center", va="center")
        page.write(x, middle + 18, one.name, color=_FAINT, ha="center", va="center")


def _draw_bars(page: _Page, box: Box, field: Json, series: list[Series], _: Span) -> None:
    left, top, width, height = box
    names = [one.name or "(no name)" for one in series]
    values = [_number(one.last) for one in series]
    beside = 12 + 6 * max(len(name) for name in names)
    axes = page.axes((left + beside, top, width - beside - 60, height))
    places = range(len(series))
    axes.barh(places, values, height=0.62, color=[_coloured(value, field) for value in values])
    axes.set_ylim(len(series) - 0.4, -0.6)  # the first on top
    low, high = min(0.0, *values), max(0.0, *values)
    axes.set_xlim(low, high if high > low else 1)
    axes.axvline(0, color=_FAINT, linewidth=0.6)
    axes.set_yticks(list(places), names)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8.5, labelcolor=_INK)
    for side in axes.spines.values():
        side.set_visible(False)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            told(value, field["unit"]),
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(56, 0),
            textcoords="offset pixels",
            ha="right",
            va="center",
        )


def _coloured(value: float, field: Json) -> str:
    """Colour of the highest threshold that the value has reached."""
    colour = _INK
    for step in field.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            colour = _COLOURS[step["color"]]
    return colour


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _largest(values: list[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=0.0)


def _day(at: float) -> float:
    """Convert seconds since 1970 to matplotlib's days."""
    return at / 86400


def draw(url: str, span: Span, out: Path) -> list[Path]:
    """Draw every dashboard into a folder and return the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    with httpx.Client(base_url=url, timeout=60) as http:
        for file in sorted(FOLDER.glob("*.json")):
            dashboard = json.loads(file.read_text(encoding="utf-8"))
            files.append(out / f"{file.stem}.png")
            files[-1].write_bytes(drawn(dashboard, lambda target: fetched(http, target, span), span))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the dashboards from the data of a Prometheus.")
    parser.add_argument("url", help="address of Prometheus, such as http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=60, help="length of the time range (60)")
    parser.add_argument("--end", type=float, default=None, help="end of the time range in seconds since 1970 (now)")
    parser.add_argument(
        "--scrape-interval", type=float, default=15, help="scrape interval of Prometheus, in seconds (15)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/dashboards"), help="output folder (build/dashboards)")
    asked = parser.parse_args()
    end = asked.end or time.time()
    span = Span(start=end - 60 * asked.minutes, end=end, scrape_interval_s=asked.scrape_interval)
    for file in draw(asked.url, span, asked.out):
        print(file)


if __name__ == "__main__":
    main()
