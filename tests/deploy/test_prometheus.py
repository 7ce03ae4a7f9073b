"""A real Prometheus scrapes the running service, and every panel's query returns data."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx2 as httpx
import pytest
import yaml
from rich.console import Console

from app.client import Client
from app.demo import EXAMPLES, running_service

pytestmark = [
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None, reason="prometheus is not installed"
    ),
    pytest.mark.timeout(300),  # the first waits for a service, for Prometheus and for its scrapes
]

# Panels of what doesn't happen in a short load on a CPU with one model that fits into memory.
EMPTY = {
    "GPU memory": "there is no GPU",
    "GPU utilisation": "there is no GPU",
    "Models loaded again, p95": "no model had to sleep",
    "Rejected requests": "none was",
}


@pytest.fixture(scope="module")
def service_url() -> Iterator[str]:
    with running_service(Console(quiet=True)) as service:
        yield service.url


def load(url: str) -> None:
    """A minute of somebody's day: teach, segment, look."""
    with Client(url) as client:
        job = client.teach("cat", EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png")
        for _ in client.follow(job["id"]):
            pass
        for _ in range(3):
            client.segment(EXAMPLES / "chelsea.jpg", ["cat", "sofa"])
            httpx.get(f"{url}/readyz")
            httpx.get(f"{url}/nowhere")


@pytest.fixture(scope="module")
def prometheus(service_url: str, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(root / "deploy/prometheus" / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [service_url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={address}"], stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until_ready(f"http://{address}")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, "Prometheus is not ready"
        time.sleep(0.2)


def ask(url: str, expr: str) -> list[dict]:
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expr}).json()
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def scraped(url: str, times: int) -> None:
    """Wait until the service has been read so often."""
    deadline = time.monotonic() + 60
    while True:
        found = ask(url, 'count_over_time(exemplar_ready{job="exemplar"}[5m])')
        if found and float(found[0]["value"][1]) >= times:
            return
        assert time.monotonic() < deadline, "Prometheus has not read the service"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def shown(prometheus: str, service_url: str, dashboards: dict[str, dict]) -> dict[str, list[dict]]:
    """Series of each panel of every dashboard after a short load."""
    scraped(prometheus, 3)  # a rate needs a value from before
    load(service_url)
    scraped(prometheus, int(float(ask(prometheus, "count_over_time(exemplar_ready[5m])")[0]["value"][1])) + 3)
    filled = {"$__rate_interval": "1m", "$__range": "5m", "$job": "exemplar", "$instance": ".*"}
    results: dict[str, list[dict]] = {}
    for panel in (panel for dashboard in dashboards.values() for panel in dashboard["panels"]):
        for target in panel.get("targets", []):
            expr = target["expr"]
            for variable, value in filled.items():
                expr = expr.replace(variable, value)
            results.setdefault(panel["title"], []).extend(ask(prometheus, expr))
    return results


def test_every_panel_has_something_to_show(shown: dict[str, list[dict]]) -> None:
    empty = {title for title, found in shown.items() if not found}
    assert empty <= EMPTY.keys()


def test_what_they_show_is_what_happened(shown: dict[str, list[dict]]) -> None:
    def largest(title: str) -> float:
        values = (float(found["value"][1]) for found in shown[title])
        return max(value for value in values if not math.isnan(value))

    assert largest("Ready") == 1
    assert largest("Adapters loaded") == 1
    assert 0 < largest("Lane busy") < 2
    assert largest("Gains by size") == 1  # one category was taught
    assert largest("Most asked categories") > 0
    assert 0 < largest("Latency by route, p95") < 60


def test_it_can_be_drawn(prometheus: str, shown: dict[str, list[dict]], drawing: ModuleType, tmp_path: Path) -> None:
    now = time.time()
    span = drawing.Span(start=now - 60, end=now, scrape_interval_s=1.0)

    files = drawing.draw(prometheus, span, tmp_path)

    assert [file.stem for file in files] == ["model", "service", "teaching"]
    assert all(file.stat().st_size > 20_000 for file in files)  # bare ones are a third of it


def test_every_recording_rule_has_a_value(prometheus: str, shown: dict[str, list[dict]], root: Path) -> None:
    (group,) = yaml.safe_load((root / "deploy/prometheus/recording.yml").read_text())["groups"]
    assert [rule["record"] for rule in group["rules"] if not ask(prometheus, rule["record"])] == []


def test_no_alert_fires_for_a_service_that_is_well(prometheus: str) -> None:
    alerts = httpx.get(f"{prometheus}/api/v1/alerts").json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"] == []


def test_promtool_finds_nothing_wrong_with_the_metrics(service_url: str) -> None:
    text = httpx.get(f"{service_url}/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
