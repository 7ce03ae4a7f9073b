"""Shared fixtures: the series that /metrics can have, a PromQL parser, and a service to probe."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import promql_parser as promql
import pytest
from prometheus_client.metrics import MetricWrapperBase

from app.metrics import Metrics

ROOT = Path(__file__).parents[2]
TARGET_LABELS = frozenset({"job", "instance"})  # put on every series by Prometheus

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True)
class Series:
    """A name of the exposition, the metric family it belongs to and the labels it has when scraped."""

    family: str
    labels: frozenset[str]


@dataclass(frozen=True)
class Query:
    """A PromQL expression that parses."""

    root: promql.Expr

    def nodes(self) -> list[tuple[promql.Expr, list[promql.Expr]]]:
        """Every node with its ancestors, the nearest last."""
        found: list[tuple[promql.Expr, list[promql.Expr]]] = []
        above: list[promql.Expr] = []

        def enter(node: promql.Expr) -> bool:
            found.append((node, list(above)))
            above.append(node)
            return True

        def leave(node: promql.Expr) -> bool:
            above.pop()
            return True

        promql.walk(self.root, enter, leave)
        return found

    def selectors(self) -> list[promql.VectorSelector]:
        return [node for node, _ in self.nodes() if isinstance(node, promql.VectorSelector)]

    def names(self) -> set[str]:
        return {selector.name for selector in self.selectors()}


def _parse(expr: str) -> Query:
    return Query(promql.parse(re.sub(r"\[\$__(rate_interval|range)\]", "[1m]", expr)))


def _series(metrics: Metrics) -> Iterator[tuple[str, Series]]:
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            family = next(iter(metric.describe()))
            # No public way to a metric's label names before its first sample.
            labels = TARGET_LABELS | set(metric._labelnames)
            for suffix in SUFFIXES[family.type]:
                if suffix == "_sum" and metric._upper_bounds[0] < 0:
                    continue  # a sum that can fall is no counter, and is not exposed
                name = family.name + suffix
                yield name, Series(family.name, labels | ({"le"} if suffix == "_bucket" else set()))


def _known_labels(expr: promql.Expr, exposed: dict[str, Series]) -> frozenset[str]:
    return frozenset().union(*(exposed[name].labels for name in Query(expr).names() if name in exposed))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def exposed() -> dict[str, Series]:
    """Every series name of /metrics."""
    return dict(_series(Metrics(categories=1)))


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Query]:
    """PromQL to a Query, Grafana's variables allowed; an expression that does not parse raises."""
    return _parse


@pytest.fixture(scope="session")
def mistakes(exposed: dict[str, Series]) -> Callable[..., list[str]]:
    """Names in an expression that do not exist: series and labels that neither the service nor `also` has."""

    def check(expr: str, also: frozenset[str] = frozenset()) -> list[str]:
        query, wrong = _parse(expr), []
        for selector in query.selectors():
            if selector.name in also:
                continue
            if selector.name not in exposed:
                wrong.append(f"no metric {selector.name}")
                continue
            labels = {matcher.name for matcher in selector.matchers.matchers}
            wrong += [f"{selector.name} has no label {name}" for name in labels - exposed[selector.name].labels]
        for node, _ in query.nodes():
            if isinstance(node, promql.AggregateExpr) and node.modifier:
                unknown = set(node.modifier.labels) - _known_labels(node.expr, exposed)
                wrong += [f"nothing in {node} has the label {name}" for name in unknown]
        return wrong

    return check


@pytest.fixture(scope="session")
def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard of the folder, by the name of its file."""
    files = sorted((ROOT / "deploy/grafana/dashboards").iterdir())
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


@pytest.fixture(scope="session")
def drawing() -> ModuleType:
    """deploy/grafana/draw.py, a script."""
    spec = importlib.util.spec_from_file_location("draw", ROOT / "deploy/grafana/draw.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def probe() -> Callable[..., bool]:
    """Runs a healthcheck's command against a service that answers `status` at `path` and 404 elsewhere.

    The service listens on a free port: the command is told by EXEMPLAR_PORT, or `port` in it is replaced.
    """

    def run(command: list[str], *, path: str, status: int, port: int | None = None) -> bool:
        class Service(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == path else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Service) as server:
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            assert command[0] == "python"
            words = [sys.executable, *command[1:]]
            if port:
                words = [word.replace(f":{port}/", f":{server.server_port}/") for word in words]
            # A proxy that nobody listens at: the probe must not take it.
            environment = {"EXEMPLAR_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}
            answered = subprocess.run(words, env=environment, capture_output=True, timeout=10)
            server.shutdown()
        return answered.returncode == 0

    return run
