"""The recording rules follow the naming convention, use existing metrics, and give hand-computed values."""

from __future__ import annotations

import re
import shutil
import subprocess

import promql_parser as promql
import pytest
import yaml


@pytest.fixture(scope="session")
def rules(root):
    (group,) = yaml.safe_load((root / "deploy/prometheus/recording.yml").read_text())["groups"]
    return group["rules"]


def test_names_are_level_metric_and_operations(rules):
    """https://prometheus.io/docs/practices/rules"""
    names = [rule["record"] for rule in rules]

    assert len(names) == len(set(names))
    for name in names:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*:exemplar_[a-z_]+:([a-z0-9]+_)?(rate|increase)\d+m", name), name


def test_the_level_is_the_labels_that_are_left(rules, parse):
    for rule in rules:
        level = rule["record"].split(":")[0].split("_")
        used = {name.split(":")[0] for name in parse(rule["expr"]).names() if ":" in name}
        left = [
            [label for label in node.modifier.labels if label != "le"]
            for node, above in parse(rule["expr"]).nodes()
            if isinstance(node, promql.AggregateExpr) and not any(isinstance(a, promql.AggregateExpr) for a in above)
        ]
        assert all(labels == level for labels in left), rule["record"]
        assert used <= {"_".join(level)}, rule["record"]


def test_every_metric_and_label_exists(rules, mistakes):
    above = frozenset()
    for rule in rules:
        assert mistakes(rule["expr"], above) == [], rule["record"]
        above |= {rule["record"]}  # a rule sees those before it, not those after


def test_every_recorded_name_has_a_test(root, rules, parse):
    tests = yaml.safe_load((root / "tests/deploy/recording_test.yml").read_text())["tests"]
    tested = set().union(*(parse(case["expr"]).names() for test in tests for case in test["promql_expr_test"]))

    assert {rule["record"] for rule in rules} == tested


def test_the_document_tells_every_rule(root, rules):
    documentation = (root / "docs/dashboards.md").read_text(encoding="utf-8")

    assert re.findall(r"^\| `([a-z_]+:\S+)` \|", documentation, re.MULTILINE) == [rule["record"] for rule in rules]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", "deploy/prometheus/recording.yml"], ["test", "rules", "tests/deploy/recording_test.yml"]],
    ids=" ".join,
)
def test_promtool_agrees(root, arguments):
    checked = subprocess.run(["promtool", *arguments], cwd=root, capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr
