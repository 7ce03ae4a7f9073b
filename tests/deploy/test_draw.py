"""Drawing of a dashboard: parsed answers of Prometheus, formatted values, and the size of the picture."""

from __future__ import annotations

import math
from io import BytesIO

import httpx2 as httpx
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def span(drawing):
    return drawing.Span(start=1000.0, end=1300.0, scrape_interval_s=5.0)


def answering(results, asked):
    """A Prometheus that has one answer, and notes what it was asked."""

    def answer(request):
        asked.append((request.url.path, dict(request.url.params)))
        return httpx.Response(200, json={"status": "success", "data": {"result": results}})

    return httpx.Client(base_url="http://prometheus", transport=httpx.MockTransport(answer))


def target(expr, *, legend="{{route}}", instant=False, form="time_series"):
    return {"expr": expr, "legendFormat": legend, "instant": instant, "format": form}


def test_grafanas_variables_are_filled_in(drawing, span):
    expr = 'rate(a{job=~"$job", instance=~"$instance"}[$__rate_interval]) + increase(a[$__range])'

    # 300 s in steps of 5 s, the scrape interval; a rate takes at least four of these.
    assert span.step_s == 5
    assert span.filled(expr) == 'rate(a{job=~".+", instance=~".+"}[20s]) + increase(a[300s])'


def test_a_range_is_asked_for_and_named_by_its_labels(drawing, span):
    asked = []
    results = [
        {"metric": {"route": "/segment"}, "values": [[1000, "1"], [1005, "NaN"]]},
        {"metric": {"route": "/jobs"}, "values": [[1000, "NaN"], [1005, "NaN"]]},
    ]

    (series,) = drawing.fetched(answering(results, asked), target("up"), span)  # one without any number is left out

    assert (series.name, series.times, series.values[0]) == ("/segment", [1000.0, 1005.0], 1.0)
    assert math.isnan(series.values[1])
    assert asked == [("/api/v1/query_range", {"query": "up", "start": "1000.0", "end": "1300.0", "step": "5.0"})]


def test_buckets_are_taken_apart(drawing, span):
    cumulative = {"+Inf": "7", "0.1": "5", "-0.1": "2"}
    results = [{"metric": {"le": le}, "value": [1300, count]} for le, count in cumulative.items()]
    bars = target("gain_bucket", legend="{{le}}", instant=True, form="heatmap")

    found = drawing.fetched(answering(results, asked := []), bars, span)

    assert [(one.name, one.last) for one in found] == [("-0.1", 2.0), ("0.1", 3.0), ("+Inf", 2.0)]
    assert asked == [("/api/v1/query", {"query": "gain_bucket", "time": "1300.0"})]


def test_what_prometheus_refuses_is_said(drawing, span):
    refusing = httpx.MockTransport(lambda _: httpx.Response(400, json={"status": "error", "error": "parse error"}))
    http = httpx.Client(base_url="http://prometheus", transport=refusing)

    with pytest.raises(ValueError, match=r"refuses up\{: parse error"):
        drawing.fetched(http, target("up{"), span)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0421, "s", "42.1 ms"),
        (1.5, "s", "1.5 s"),
        (90, "s", "1.5 min"),
        (0, "s", "0 s"),
        (3 * 2**20, "bytes", "3 MiB"),
        (0.125, "percentunit", "12.5 %"),
        (-0.025, "percentunit", "-2.5 %"),
        (1.234, "reqps", "1.23 req/s"),
        (0.5, "ops", "0.5 ops/s"),
        (1500, "short", "1.5 K"),
        (1, "bool_yes_no", "Yes"),
        (0, "bool_yes_no", "No"),
        (math.nan, "percentunit", "NaN"),
    ],
)
def test_units(drawing, value, unit, text):
    assert drawing.told(value, unit) == text


@pytest.mark.parametrize("name", ["service", "teaching", "model"])
@pytest.mark.parametrize("series", [0, 12])
def test_every_dashboard_is_drawn_whatever_there_is(drawing, dashboards, span, name, series):
    """Nothing, or more than a legend has room for; with gaps, and below 0."""
    times = [1000.0, 1100.0, 1200.0]
    lines = [drawing.Series(f"line {i}", times, [i - 1.0, math.nan, 2.0 * i]) for i in range(series)]
    lowest = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboards[name]["panels"])

    picture = Image.open(BytesIO(drawing.drawn(dashboards[name], lambda _: lines, span)))

    assert picture.format == "PNG"
    assert picture.size == (24 * 56, 44 + 32 * lowest)
    assert len(picture.getcolors()) > 10  # letters at least


def test_the_pictures_of_the_documentation_are_of_todays_dashboards(root, dashboards):
    folder = root / "docs/dashboards"

    assert {file.stem for file in folder.iterdir()} == set(dashboards)
    for file in folder.iterdir():
        lowest = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboards[file.stem]["panels"])
        with Image.open(file) as picture:
            assert picture.size == (24 * 56, 44 + 32 * lowest), f"draw {file.name} again"
        assert file.stat().st_size < 250_000
