"""Write dashboards/*.json. Edit the panels here, then run `python deploy/grafana/dashboard.py`.

One dashboard per role: service (on call), teaching (people who teach categories), model (people who size the machine).
They follow the rules of grafana/dashboard-linter; tests/deploy/test_dashboard.py checks these.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "dashboards"

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SELECTED = 'job=~"$job", instance=~"$instance"'
_ROW_WIDTH = 24  # Grafana's grid


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `queries` maps a PromQL expression to its legend.

    A `stat` shows the latest value, large; `bars` one bar for each latest value, `buckets` one for each bucket of a
    histogram. `signed` values may be below 0.
    """

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: Literal["timeseries", "stat", "bars", "buckets"] = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    signed: bool = False


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One dashboard: rows of panels, by title."""

    title: str
    description: str
    rows: dict[str, list[Panel]]


def now(metric: str, *, more: str = "") -> str:
    return f"{metric}{{{_SELECTED}{more}}}"


def rate(metric: str, *, by: str = "", more: str = "") -> str:
    return total(f"rate({now(metric, more=more)}[$__rate_interval])", by=by)


def increase(metric: str, *, by: str = "", over: str = "$__rate_interval") -> str:
    return total(f"increase({now(metric)}[{over}])", by=by)


def quantile(share: float, histogram: str, *, by: str = "", more: str = "") -> str:
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', by=f'le, {by}' if by else 'le', more=more)})"


def total(vector: str, *, by: str = "") -> str:
    return f"sum by ({by}) ({vector})" if by else f"sum({vector})"


def gain_quantile(share: float, *, by: str = "") -> str:
    """Quantile of all gains since the processes started.

    Not a rate: teaching is rare, and a category's first gain, which is often the only one, creates its series with the
    value 1, which a rate doesn't see. Not a mean: gains can be negative, so the metric has no `_sum`.
    """
    counts = total(now("exemplar_example_gain_bucket"), by=f"le, {by}" if by else "le")
    return f"histogram_quantile({share}, {counts})"


_NO_PROBES = ', route!~"/healthz|/readyz|/metrics|/v2/health/.+"'
_REQUESTS = rate("exemplar_requests_total", more=_NO_PROBES)
# `or vector(0)`: a counter with labels has no series before its first event, and no errors is 0, not "no data".
_ERRORS = "(" + rate("exemplar_requests_total", more=f', status=~"5.."{_NO_PROBES}') + " or vector(0))"
_HITS, _MISSES = rate("exemplar_adapter_cache_hits_total"), rate("exemplar_adapter_cache_misses_total")
_PHOTO_HITS, _PHOTO_MISSES = rate("exemplar_image_cache_hits_total"), rate("exemplar_image_cache_misses_total")

_NO_STREAMS = ', route!="/jobs/{id}/events"'
_IF_TOLD_APART = "Without EXEMPLAR_METRICS_CATEGORIES there is one line without a name for all categories."

SERVICE = Dashboard(
    title="Exemplar: service",
    description="Rate, errors, duration and saturation of the service.",
    rows={
        "Now": [
            Panel(
                title="Ready",
                description="Yes if every selected instance was ready at its last look, every 5 s.",
                unit="bool_yes_no",
                kind="stat",
                width=6,
                height=4,
                queries={f"min({now('exemplar_ready')})": "ready"},
            ),
            Panel(
                title="Store up",
                description="Up: the store took the last test write of every selected instance. Used: no instance has "
                "stopped waiting for it.",
                unit="bool_yes_no",
                kind="stat",
                width=6,
                height=4,
                queries={
                    f"min({now('exemplar_redis_up')})": "up",
                    f"1 - max({now('exemplar_redis_away')})": "used",
                },
            ),
            Panel(
                title="Requests per second",
                description="Requests answered per second, with any status. Probes and scrapes are left out.",
                unit="reqps",
                kind="stat",
                width=6,
                height=4,
                queries={_REQUESTS: "requests"},
            ),
            Panel(
                title="Version",
                description="Instances by version; two versions at once are a rollout in progress.",
                unit="short",
                kind="stat",
                width=6,
                height=4,
                queries={f"sum by (version) ({now('exemplar_build_info')})": "{{version}}"},
            ),
        ],
        "Rate and errors": [
            Panel(
                title="Request rate by route",
                description="Requests per second, by route template; `none` is a path without a route.",
                unit="reqps",
                queries={rate("exemplar_requests_total", by="route"): "{{route}}"},
            ),
            Panel(
                title="Answers by status",
                description="Requests per second, by the status of their answers. Probes and scrapes are left out.",
                unit="reqps",
                stacked=True,
                queries={rate("exemplar_requests_total", by="status", more=_NO_PROBES): "{{status}}"},
            ),
            Panel(
                title="Error ratio",
                description="Share of the requests answered with a 5xx, the 503 of a full queue among them. Probes and "
                "scrapes are left out.",
                unit="percentunit",
                queries={f"{_ERRORS} / {_REQUESTS}": "5xx"},
            ),
        ],
        "Duration": [
            Panel(
                title="Latency by route, median",
                description="Half of the requests are answered faster. Event streams last as jobs do and are left out.",
                unit="s",
                width=12,
                queries={quantile(0.5, "exemplar_request_duration_seconds", by="route", more=_NO_STREAMS): "{{route}}"},
            ),
            Panel(
                title="Latency by route, p95",
                description="One request in twenty is answered slower. Event streams last as jobs do and are left out.",
                unit="s",
                width=12,
                queries={
                    quantile(0.95, "exemplar_request_duration_seconds", by="route", more=_NO_STREAMS): "{{route}}"
                },
            ),
        ],
        "Saturation": [
            Panel(
                title="Lane busy",
                description="Share of the time in which an instance's model computes, counted when a call ends. "
                "Near 100 % calls wait.",
                unit="percentunit",
                queries={
                    rate("exemplar_lane_busy_seconds_total", by="instance, backbone"): "{{instance}} {{backbone}}"
                },
            ),
            Panel(
                title="Queue depth",
                description="Calls that wait for an instance's model. At EXEMPLAR_QUEUE_LIMIT it answers the next one "
                "with 503.",
                unit="short",
                queries={f"max by (instance, backbone) ({now('exemplar_queue_depth')})": "{{instance}} {{backbone}}"},
            ),
            Panel(
                title="Requests under way",
                description="HTTP requests in progress, including this scrape.",
                unit="short",
                queries={f"sum({now('exemplar_inflight_requests')})": "requests"},
            ),
            Panel(
                title="Rejected requests",
                description="Requests per second refused before any model work, by reason.",
                unit="reqps",
                queries={rate("exemplar_rejected_total", by="reason"): "{{reason}}"},
            ),
            Panel(
                title="Store probe, p95",
                description="Duration of the test writes to the store, every 5 s and by /readyz.",
                unit="s",
                queries={quantile(0.95, "exemplar_redis_probe_seconds"): "p95"},
            ),
            Panel(
                title="Store: outages and unreadable records",
                description="Times that the store stopped answering requests, look-ups that were answered "
                "from memory meanwhile, and stored records that an instance skips because it can't read them.",
                unit="short",
                queries={
                    increase("exemplar_redis_outages_total"): "outages",
                    increase("exemplar_lookups_from_memory_total"): "from memory",
                    f"max by (kind) ({now('exemplar_unreadable_records')})": "unreadable: {{kind}}",
                },
            ),
        ],
    },
)

TEACHING = Dashboard(
    title="Exemplar: teaching",
    description="Outcomes and durations of jobs, and the gain of one example over the words alone.",
    rows={
        "Jobs": [
            Panel(
                title="Jobs running",
                description="Jobs that the selected instances are running, by kind.",
                unit="short",
                queries={f"sum by (kind) ({now('exemplar_jobs_running')})": "{{kind}}"},
            ),
            Panel(
                title="Jobs ended, by outcome",
                description="Jobs that ended in the rate window before each point.",
                unit="short",
                stacked=True,
                queries={increase("exemplar_jobs_total", by="kind, outcome"): "{{kind}} {{outcome}}"},
            ),
            Panel(
                title="Time to taught",
                description="Time from the start of a job to its end. Jobs longer than half an hour show half an hour.",
                unit="s",
                queries={
                    quantile(0.5, "exemplar_job_duration_seconds", by="kind"): "{{kind}} median",
                    quantile(0.95, "exemplar_job_duration_seconds", by="kind"): "{{kind}} p95",
                },
            ),
            Panel(
                title="Examples sent",
                description="Requests per second that send an example, by the status of their answers.",
                unit="reqps",
                queries={
                    rate(
                        "exemplar_requests_total", by="status", more=', route="/categories/{name}/example"'
                    ): "{{status}}"
                },
            ),
            Panel(
                title="Failed share",
                description="Jobs that failed among those that ended; cancelled and superseded ones did not fail.",
                unit="percentunit",
                queries={
                    rate("exemplar_jobs_total", more=', outcome="failed"')
                    + " / "
                    + rate("exemplar_jobs_total"): "failed"
                },
            ),
            Panel(
                title="Redeliveries",
                description="Jobs taken over from a worker that died, and messages of the job queue that this program "
                "did not write, in the rate window before each point.",
                unit="short",
                queries={
                    increase("exemplar_job_redeliveries_total"): "redeliveries",
                    increase("exemplar_dropped_messages_total"): "dropped messages",
                },
            ),
        ],
        "Gain of one example": [
            Panel(
                title="Gain over the words",
                description="IoU on a category's own examples, adapter minus words alone, "
                "over all jobs since the processes started.",
                unit="percentunit",
                signed=True,
                queries={
                    gain_quantile(0.9): "best tenth above",
                    gain_quantile(0.5): "median",
                    gain_quantile(0.1): "worst tenth below",
                },
            ),
            Panel(
                title="Gains by size",
                description="Number of gains between each bound and the one before, since the processes "
                "started. Gains up to 0.0 are examples that did not help.",
                unit="short",
                kind="buckets",
                queries={f"sum by (le) ({now('exemplar_example_gain_bucket')})": "{{le}}"},
            ),
            Panel(
                title="Worst categories",
                description="Lowest median gains since the processes started, estimated within their buckets. "
                + _IF_TOLD_APART,
                unit="percentunit",
                kind="bars",
                signed=True,
                queries={f"bottomk(10, {gain_quantile(0.5, by='category')})": "{{category}}"},
            ),
        ],
        "Demand": [
            Panel(
                title="Most asked categories",
                description="Requests for taught categories in the time range. " + _IF_TOLD_APART,
                unit="short",
                kind="bars",
                width=24,
                queries={
                    f"topk(10, {increase('exemplar_category_requests_total', by='category', over='$__range')})": (
                        "{{category}}"
                    )
                },
            ),
        ],
    },
)

MODEL = Dashboard(
    title="Exemplar: model",
    description="Time and memory of the model: stages, lane, caches, weights, GPU.",
    rows={
        "Stages": [
            Panel(
                title="Stage duration, p95",
                description="Time of each stage of a segmentation, as in timings_ms; one in twenty takes longer.",
                unit="s",
                width=12,
                queries={
                    quantile(
                        0.95, "exemplar_inference_duration_seconds", by="backbone, stage"
                    ): "{{backbone}} {{stage}}"
                },
            ),
            Panel(
                title="Seconds per second, by stage",
                description="Seconds that each stage takes per second, without the wait for the model.",
                unit="short",
                width=12,
                stacked=True,
                queries={
                    rate(
                        "exemplar_inference_duration_seconds_sum", by="backbone, stage", more=', stage!="queue"'
                    ): "{{backbone}} {{stage}}"
                },
            ),
        ],
        "Lane": [
            Panel(
                title="Queue wait, p95",
                description="Time a call waits for a model; one call in twenty waits longer.",
                unit="s",
                queries={quantile(0.95, "exemplar_queue_wait_seconds", by="backbone, kind"): "{{backbone}} {{kind}}"},
            ),
            Panel(
                title="Calls side by side",
                description="Mean number of calls that a model runs at once. Above one, requests wait for each other.",
                unit="short",
                queries={
                    f"{rate('exemplar_lane_batch_size_sum', by='backbone')} / "
                    f"{rate('exemplar_lane_batch_size_count', by='backbone')}": "{{backbone}}"
                },
            ),
            Panel(
                title="Lane busy, by kind",
                description="Work of the models by kind, over all selected instances; 100 % is one busy model.",
                unit="percentunit",
                stacked=True,
                queries={rate("exemplar_lane_busy_seconds_total", by="backbone, kind"): "{{backbone}} {{kind}}"},
            ),
        ],
        "Photos": [
            Panel(
                title="Photos found encoded",
                description="Share of the requested photos whose encoding was in memory.",
                unit="percentunit",
                width=12,
                queries={f"{_PHOTO_HITS} / ({_PHOTO_HITS} + {_PHOTO_MISSES})": "hits"},
            ),
            Panel(
                title="Photo cache",
                description="Memory of the cached photo encodings; EXEMPLAR_IMAGE_CACHE_BYTES limits it.",
                unit="bytes",
                width=12,
                queries={now("exemplar_image_cache_bytes"): "{{instance}}"},
            ),
        ],
        "Adapters": [
            Panel(
                title="Cache hit ratio",
                description="Share of the requested adapters that were in memory.",
                unit="percentunit",
                queries={f"{_HITS} / ({_HITS} + {_MISSES})": "hits"},
            ),
            Panel(
                title="Evictions",
                description="Adapters evicted from memory per second. If it lasts, raise EXEMPLAR_ADAPTER_CACHE_BYTES.",
                unit="ops",
                queries={rate("exemplar_adapter_cache_evictions_total", by="instance"): "{{instance}}"},
            ),
            Panel(
                title="Load time, p95",
                description="Time to read one adapter from the store; one in twenty takes longer.",
                unit="s",
                queries={quantile(0.95, "exemplar_adapter_load_seconds"): "load"},
            ),
            Panel(
                title="Adapters loaded",
                description="Adapters in memory, by instance.",
                unit="short",
                width=12,
                queries={now("exemplar_adapters_loaded"): "{{instance}}"},
            ),
            Panel(
                title="Adapter memory",
                description="Memory of the cached adapters, by instance.",
                unit="bytes",
                width=12,
                queries={now("exemplar_adapter_cache_bytes"): "{{instance}}"},
            ),
        ],
        "Weights": [
            Panel(
                title="Backbone warm",
                description="Yes if the model has finished its warm-up on every selected instance.",
                unit="bool_yes_no",
                kind="stat",
                width=6,
                queries={f"min by (backbone, revision) ({now('exemplar_backbone_warm')})": "{{backbone}} {{revision}}"},
            ),
            Panel(
                title="Backbone memory",
                description="Memory of the models' weights, over all selected instances.",
                unit="bytes",
                width=6,
                queries={
                    f"sum by (backbone, device) ({now('exemplar_backbone_memory_bytes')})": "{{backbone}} {{device}}"
                },
            ),
            Panel(
                title="Models loaded again, p95",
                description="Time to reload a model that was unloaded for lack of memory; its requests wait for it.",
                unit="s",
                width=6,
                queries={quantile(0.95, "exemplar_backbone_load_seconds", by="backbone"): "{{backbone}}"},
            ),
            Panel(
                title="Models dropped",
                description="Models unloaded to make room. If this is frequent, raise EXEMPLAR_BACKBONE_MEMORY_BYTES.",
                unit="short",
                width=6,
                queries={increase("exemplar_backbone_evictions_total"): "dropped"},
            ),
        ],
        "GPU": [
            Panel(
                title="GPU memory",
                description="GPU memory allocated by the models' tensors; empty on a CPU.",
                unit="bytes",
                width=12,
                queries={now("exemplar_gpu_memory_bytes"): "{{instance}} {{device}}"},
            ),
            Panel(
                title="GPU utilisation",
                description="Share of the time in which the GPU was busy, for any process; empty on a CPU, "
                "and without the extra `gpu`.",
                unit="percentunit",
                width=12,
                queries={now("exemplar_gpu_utilization_ratio"): "{{instance}} {{device}}"},
            ),
        ],
    },
)

DASHBOARDS = {"service": SERVICE, "teaching": TEACHING, "model": MODEL}


def rendered(name: str) -> dict[str, Any]:
    """A dashboard as JSON for Grafana."""
    dashboard = DASHBOARDS[name]
    return {
        "uid": f"exemplar-{name}",
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["exemplar"],
        "links": [_TO_THE_OTHERS],
        "editable": False,
        "graphTooltip": 1,  # shared crosshair over all panels
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"},
                _variable("job", values="label_values(exemplar_ready, job)"),
                _variable("instance", values='label_values(exemplar_ready{job=~"$job"}, instance)'),
            ]
        },
        "panels": _laid_out(dashboard.rows),
    }


# Grafana shows links to all dashboards with the tag beside the time range, and keeps the time and selected instances.
_TO_THE_OTHERS = {
    "type": "dashboards",
    "title": "Exemplar",
    "tags": ["exemplar"],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
    "url": "",
}


def _variable(name: str, *, values: str) -> dict[str, Any]:
    return {
        "type": "query",
        "name": name,
        "label": name.title(),
        "datasource": _DATASOURCE,
        "query": values,
        "refresh": 2,  # when the time range changes: instances come and go
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def _laid_out(rows: dict[str, list[Panel]]) -> list[dict[str, Any]]:
    """Place rows below one another and their panels from left to right, wrapped at the grid's width."""
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in rows.items():
        placed.append({"id": len(placed) + 1, "type": "row", "title": title, "collapsed": False, "panels": []})
        placed[-1]["gridPos"] = {"x": 0, "y": y, "w": _ROW_WIDTH, "h": 1}
        x, y, height = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _ROW_WIDTH:
                x, y, height = 0, y + height, 0
            placed.append({"id": len(placed) + 1, **_panel(panel)})
            placed[-1]["gridPos"] = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


_TYPES = {"timeseries": "timeseries", "stat": "stat", "bars": "bargauge", "buckets": "bargauge"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {"tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {"textMode": "value_and_name"},
    "bargauge": {"orientation": "horizontal", "displayMode": "basic", "reduceOptions": {"calcs": ["lastNotNull"]}},
}


def _panel(panel: Panel) -> dict[str, Any]:
    kind = _TYPES[panel.kind]
    return {
        "type": kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[kind],
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _DATASOURCE,
                "expr": expr,
                "legendFormat": legend,
                "instant": kind != "timeseries",
                # As "heatmap" Grafana converts cumulative buckets to counts per bucket.
                "format": "heatmap" if panel.kind == "buckets" else "time_series",
            }
            for i, (expr, legend) in enumerate(panel.queries.items())
        ],
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit}
    if not panel.signed:
        field["min"] = 0
    if panel.unit == "bool_yes_no":
        field["thresholds"] = _thresholds({None: "red", 1: "green"})
    elif _TYPES[panel.kind] == "bargauge":
        field["thresholds"] = _thresholds({None: "red", 0: "green"} if panel.signed else {None: "blue"})
    if panel.stacked:
        field["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    return field


def _thresholds(colours: dict[int | None, str]) -> dict[str, Any]:
    steps = [{"color": colour, "value": value} for value, colour in colours.items()]
    return {"mode": "absolute", "steps": steps}


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(json.dumps(rendered(name), indent=2) + "\n", encoding="utf-8")
