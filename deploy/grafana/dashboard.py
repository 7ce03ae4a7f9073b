"""Writes dashboards/exemplar.json. Edit the panels here, then run `python deploy/grafana/dashboard.py`.

The result keeps the rules of grafana/dashboard-linter; tests/deploy/test_dashboard.py holds it to them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DASHBOARD = Path(__file__).parent / "dashboards" / "exemplar.json"

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SELECTED = 'job=~"$job", instance=~"$instance"'
_ROW_WIDTH = 24  # Grafana's grid


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `queries` maps a PromQL expression to its legend; a `stat` shows the latest value, large."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    stacked: bool = False


def now(metric: str, *, more: str = "") -> str:
    return f"{metric}{{{_SELECTED}{more}}}"


def rate(metric: str, *, by: str = "", more: str = "") -> str:
    return _sum(f"rate({now(metric, more=more)}[$__rate_interval])", by=by)


def increase(metric: str, *, by: str = "") -> str:
    return _sum(f"increase({now(metric)}[$__rate_interval])", by=by)


def quantile(share: float, histogram: str, *, by: str = "") -> str:
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', by=f'le, {by}' if by else 'le')})"


def _sum(vector: str, *, by: str) -> str:
    return f"sum by ({by}) ({vector})" if by else f"sum({vector})"


# `or vector(0)`: a counter with labels has no series before its first event, and no errors is 0, not "no data".
_ERRORS = "(" + rate("exemplar_requests_total", more=', status=~"5.."') + " or vector(0))"
_HITS, _MISSES = rate("exemplar_adapter_cache_hits_total"), rate("exemplar_adapter_cache_misses_total")
_PHOTO_HITS, _PHOTO_MISSES = rate("exemplar_image_cache_hits_total"), rate("exemplar_image_cache_misses_total")

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel(
            title="Ready",
            description="Whether every selected instance answered its last readiness probe with 200.",
            unit="bool_yes_no",
            kind="stat",
            width=4,
            queries={f"min({now('exemplar_ready')})": "ready"},
        ),
        Panel(
            title="Version",
            description="Instances by version; two versions at once are a rollout under way.",
            unit="short",
            kind="stat",
            width=4,
            queries={f"sum by (version) ({now('exemplar_build_info')})": "{{version}}"},
        ),
        Panel(
            title="Request rate by route",
            description="Requests per second, by route template.",
            unit="reqps",
            queries={rate("exemplar_requests_total", by="route"): "{{route}}"},
        ),
        Panel(
            title="Error ratio",
            description="Share of the requests answered with a 5xx, the 503 of a full queue among them.",
            unit="percentunit",
            queries={f"{_ERRORS} / {rate('exemplar_requests_total')}": "5xx"},
        ),
        Panel(
            title="Latency by route, median",
            description="Half of the requests are answered faster. An event stream lasts as long as its job.",
            unit="s",
            queries={quantile(0.5, "exemplar_request_duration_seconds", by="route"): "{{route}}"},
        ),
        Panel(
            title="Latency by route, p95",
            description="One request in twenty is answered slower. An event stream lasts as long as its job.",
            unit="s",
            queries={quantile(0.95, "exemplar_request_duration_seconds", by="route"): "{{route}}"},
        ),
        Panel(
            title="Requests under way",
            description="HTTP requests being answered.",
            unit="short",
            width=4,
            queries={f"sum({now('exemplar_inflight_requests')})": "requests"},
        ),
        Panel(
            title="Rejected requests",
            description="Requests per second refused before any work, by reason.",
            unit="reqps",
            width=4,
            queries={rate("exemplar_rejected_total", by="reason"): "{{reason}}"},
        ),
    ],
    "Model": [
        Panel(
            title="Queue depth",
            description="Calls waiting for a model. At EXEMPLAR_QUEUE_LIMIT the next one is answered 503.",
            unit="short",
            queries={f"sum by (backbone) ({now('exemplar_queue_depth')})": "{{backbone}}"},
        ),
        Panel(
            title="Queue wait, p95",
            description="Time from asking for a model to having it; one call in twenty waits longer.",
            unit="s",
            queries={quantile(0.95, "exemplar_queue_wait_seconds", by="backbone, kind"): "{{backbone}} {{kind}}"},
        ),
        Panel(
            title="Calls side by side",
            description="Calls that a model answers at once, in the mean. Above one, requests wait for each other.",
            unit="short",
            queries={
                f"{rate('exemplar_lane_batch_size_sum', by='backbone')} / "
                f"{rate('exemplar_lane_batch_size_count', by='backbone')}": "{{backbone}}"
            },
        ),
        Panel(
            title="Lane busy",
            description="Share of the time in which a model works, by kind of work; near 100 % requests queue up.",
            unit="percentunit",
            stacked=True,
            queries={rate("exemplar_lane_busy_seconds_total", by="backbone, kind"): "{{backbone}} {{kind}}"},
        ),
        Panel(
            title="GPU memory",
            description="Memory of a GPU that the models' tensors take; empty on a CPU.",
            unit="bytes",
            queries={f"sum by (device) ({now('exemplar_gpu_memory_bytes')})": "{{device}}"},
        ),
        Panel(
            title="Stage duration, p95",
            description="Time of each stage of a segmentation, as in timings_ms; one in twenty takes longer.",
            unit="s",
            queries={
                quantile(0.95, "exemplar_inference_duration_seconds", by="backbone, stage"): "{{backbone}} {{stage}}"
            },
        ),
        Panel(
            title="Model seconds per second, by stage",
            description="How many seconds each stage takes out of every second: where the time of the model goes.",
            unit="short",
            stacked=True,
            queries={rate("exemplar_inference_duration_seconds_sum", by="backbone, stage"): "{{backbone}} {{stage}}"},
        ),
        Panel(
            title="Backbone warm",
            description="Whether a model has answered its warm-up on every selected instance.",
            unit="bool_yes_no",
            kind="stat",
            queries={f"min by (backbone, revision) ({now('exemplar_backbone_warm')})": "{{backbone}} {{revision}}"},
        ),
        Panel(
            title="Backbone memory",
            description="Memory of the models' weights, over all selected instances.",
            unit="bytes",
            queries={f"sum by (backbone, device) ({now('exemplar_backbone_memory_bytes')})": "{{backbone}} {{device}}"},
        ),
        Panel(
            title="Models loaded again, p95",
            description="Time to read a model that slept for want of memory; its requests wait for it.",
            unit="s",
            queries={quantile(0.95, "exemplar_backbone_load_seconds", by="backbone"): "{{backbone}}"},
        ),
        Panel(
            title="Models dropped",
            description="Models whose weights made room for another's. Often: raise EXEMPLAR_BACKBONE_MEMORY_BYTES.",
            unit="short",
            queries={increase("exemplar_backbone_evictions_total"): "dropped"},
        ),
    ],
    "Jobs": [
        Panel(
            title="Jobs running",
            description="Jobs that the selected instances work on, by kind.",
            unit="short",
            width=6,
            queries={f"sum by (kind) ({now('exemplar_jobs_running')})": "{{kind}}"},
        ),
        Panel(
            title="Gain of one example, median",
            description="IoU on a category's own examples by its adapter, less that by the words alone.",
            unit="percentunit",
            width=6,
            queries={quantile(0.5, "exemplar_example_gain"): "gain"},
        ),
        Panel(
            title="Jobs ended, by outcome",
            description="Jobs that ended in the rate window before each point.",
            unit="short",
            width=6,
            stacked=True,
            queries={increase("exemplar_jobs_total", by="kind, outcome"): "{{kind}} {{outcome}}"},
        ),
        Panel(
            title="Job duration, p95",
            description="Time from a job's start to its end; one in twenty takes longer.",
            unit="s",
            width=6,
            queries={quantile(0.95, "exemplar_job_duration_seconds", by="kind"): "{{kind}}"},
        ),
        Panel(
            title="Redeliveries",
            description="Jobs taken over from a worker that died or stopped, in the rate window before each point.",
            unit="short",
            width=6,
            queries={increase("exemplar_job_redeliveries_total"): "redeliveries"},
        ),
    ],
    "Photos": [
        Panel(
            title="Photos found encoded",
            description="Share of the photos asked for that were encoded before and still in memory.",
            unit="percentunit",
            queries={f"{_PHOTO_HITS} / ({_PHOTO_HITS} + {_PHOTO_MISSES})": "hits"},
        ),
        Panel(
            title="Photo cache",
            description="Memory held by encoded photos; EXEMPLAR_IMAGE_CACHE_BYTES bounds it.",
            unit="bytes",
            queries={now("exemplar_image_cache_bytes"): "{{instance}}"},
        ),
    ],
    "Adapters": [
        Panel(
            title="Cache hit ratio",
            description="Share of the adapters asked for that were in memory.",
            unit="percentunit",
            queries={f"{_HITS} / ({_HITS} + {_MISSES})": "hits"},
        ),
        Panel(
            title="Evictions",
            description="Adapters dropped from memory per second. If it lasts, raise EXEMPLAR_ADAPTER_CACHE_BYTES.",
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
            description="Memory held by loaded adapters, by instance.",
            unit="bytes",
            width=12,
            queries={now("exemplar_adapter_cache_bytes"): "{{instance}}"},
        ),
    ],
    "Store": [
        Panel(
            title="Store probe, p95",
            description="Time of one write to the store, by /readyz.",
            unit="s",
            queries={quantile(0.95, "exemplar_redis_probe_seconds"): "p95"},
        ),
        Panel(
            title="Store up",
            description="Whether the store answered each instance's last probe.",
            unit="bool_yes_no",
            kind="stat",
            width=24,
            queries={now("exemplar_redis_up"): "{{instance}}"},
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "exemplar",
        "title": "Exemplar",
        "description": "One Exemplar deployment: requests, model, jobs, adapters, store.",
        "tags": ["exemplar"],
        "editable": False,
        "graphTooltip": 1,  # one crosshair over all panels
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
        "panels": _laid_out(),
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


def _laid_out() -> list[dict[str, Any]]:
    """Rows below one another, their panels from left to right, wrapped at the grid's width."""
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS.items():
        placed.append({"id": len(placed) + 1, "type": "row", "title": title, "collapsed": False, "panels": []})
        placed[-1]["gridPos"] = {"x": 0, "y": y, "w": _ROW_WIDTH, "h": 1}
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > _ROW_WIDTH:
                x, y = 0, y + 8
            placed.append({"id": len(placed) + 1, **_rendered(panel)})
            placed[-1]["gridPos"] = {"x": x, "y": y, "w": panel.width, "h": 8}
            x += panel.width
        y += 8
    return placed


def _rendered(panel: Panel) -> dict[str, Any]:
    stat = panel.kind == "stat"
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.unit == "bool_yes_no":
        steps = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}}
    if panel.stacked:
        defaults |= {"custom": {"stacking": {"mode": "normal"}, "fillOpacity": 30}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"textMode": "value_and_name"} if stat else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _DATASOURCE,
                "expr": expr,
                "legendFormat": legend,
                "instant": stat,
            }
            for i, (expr, legend) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    DASHBOARD.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
