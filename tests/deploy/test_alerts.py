"""The alert rules use existing metrics, say what to do, and fire when they should."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

NOT_OURS = frozenset({"up"})  # made by Prometheus for every target

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.fixture(scope="session")
def rules(root):
    (group,) = yaml.safe_load((root / "deploy/prometheus/alerts.yml").read_text())["groups"]
    return group["rules"]


def test_the_first_alerts_are_there(rules):
    assert [rule["alert"] for rule in rules] == [
        "ExemplarDown",
        "ExemplarNotReady",
        "ExemplarStoreDown",
        "ExemplarErrorRatioHigh",
        "ExemplarQueueWaitHigh",
        "ExemplarJobsFailing",
    ]


def test_every_alert_says_how_bad_it_is_and_what_to_do(rules):
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["for"]
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


def test_every_metric_and_label_exists(root, rules, mistakes):
    (recording,) = yaml.safe_load((root / "deploy/prometheus/recording.yml").read_text())["groups"]
    recorded = {rule["record"] for rule in recording["rules"]}

    assert [wrong for rule in rules for wrong in mistakes(rule["expr"], NOT_OURS | recorded)] == []


def test_prometheus_reads_the_rules_and_scrapes_the_service(root):
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())

    assert config["rule_files"] == ["recording.yml", "alerts.yml"]
    (scrape,) = config["scrape_configs"]
    assert scrape["job_name"] == "exemplar"  # the job that ExemplarDown asks for


def test_every_alert_has_a_case_that_fires_and_one_that_does_not(root, rules):
    tests = yaml.safe_load((root / "tests/deploy/alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]

    for rule in rules:
        fires = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule["alert"]}
        assert fires == {True, False}, rule["alert"]


def test_the_document_tells_every_alert(root, rules):
    documentation = (root / "docs/dashboards.md").read_text(encoding="utf-8")

    assert re.findall(r"^\| `(Exemplar\w+)` \|", documentation, re.MULTILINE) == [rule["alert"] for rule in rules]


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "deploy/prometheus/prometheus.yml"],
        ["check", "rules", "deploy/prometheus/alerts.yml"],
        ["test", "rules", "tests/deploy/alerts_test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_agrees(root, arguments):
    checked = subprocess.run(["promtool", *arguments], cwd=root, capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr
