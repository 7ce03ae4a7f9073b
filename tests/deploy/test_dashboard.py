"""The dashboards follow the rules of grafana/dashboard-linter, and together show every metric of the service.

The rules: https://github.com/grafana/dashboard-linter/tree/main/docs/rules (the linter itself needs Go).
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess

import promql_parser as promql
import pytest
import yaml

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"s", "bytes", "reqps", "ops", "percentunit", "short", "bool_yes_no"}  # those of Grafana that we use
NOT_SHOWN: set[str] = set()  # metric families that no panel shows, each with its reason


SINCE_THE_START = {"exemplar_example_gain_bucket"}  # rare, so read as it is: gain_quantile() in dashboard.py says why
OVER_THE_RANGE = {"Most asked categories"}  # a ranking is one of the whole time range, not of its last minute
NAMES = ["service", "teaching", "model"]


@pytest.fixture(scope="session", params=NAMES)
def dashboard(request, dashboards):
    return dashboards[request.param]


@pytest.fixture(scope="session")
def panels(dashboard):
    return panels_of(dashboard)


@pytest.fixture(scope="session")
def expressions(panels):
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.fixture(scope="session")
def variables(dashboard):
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


def panels_of(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_files_are_what_the_script_makes(root, dashboards):
    script = runpy.run_path(str(root / "deploy/grafana/dashboard.py"))

    assert sorted(dashboards) == sorted(NAMES) == sorted(script["DASHBOARDS"])
    for name, dashboard in dashboards.items():
        made = json.loads(json.dumps(script["rendered"](name)))
        assert dashboard == made, "run `python deploy/grafana/dashboard.py`"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("service", ["Now", "Rate and errors", "Duration", "Saturation"]),
        ("teaching", ["Jobs", "Gain of one example", "Demand"]),
        ("model", ["Stages", "Lane", "Photos", "Adapters", "Weights", "GPU"]),
    ],
)
def test_rows_tell_what_each_dashboard_is_about(dashboards, name, told):
    assert [panel["title"] for panel in dashboards[name]["panels"] if panel["type"] == "row"] == told


def test_the_dashboards_are_told_apart_and_link_to_each_other(dashboards):
    for key in ("uid", "title", "description"):
        assert len({dashboard[key] for dashboard in dashboards.values()}) == len(dashboards)
    for name, dashboard in dashboards.items():
        assert dashboard["uid"] == f"exemplar-{name}"
        (link,) = dashboard["links"]
        assert (link["type"], link["tags"]) == ("dashboards", dashboard["tags"]) == ("dashboards", ["exemplar"])
        assert link["includeVars"] is link["keepTime"] is True


def test_panels_neither_overlap_nor_leave_the_grid(dashboard):
    taken = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]


def test_ids_and_titles_are_unique(dashboard):
    for key in ("id", "title"):
        values = [panel[key] for panel in dashboard["panels"]]
        assert len(values) == len(set(values))


def test_data_source_is_a_variable(variables):
    datasource = variables["datasource"]

    assert (datasource["type"], datasource["query"], datasource["label"]) == ("datasource", "prometheus", "Data source")


@pytest.mark.parametrize("name", ["job", "instance"])
def test_job_and_instance_are_variables(variables, parse, name):
    variable = variables[name]

    assert variable["type"] == "query"
    assert variable["label"] == name.title()
    assert variable["datasource"] == DATASOURCE
    assert variable["multi"] is True
    assert variable["allValue"] == ".+"
    vector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()
    assert label == name
    assert parse(vector).names() == {"exemplar_ready"}  # has no labels of its own: there from the first scrape


def test_variables_are_read_again_when_the_time_range_changes(variables):
    assert [variable["refresh"] for variable in variables.values() if variable["type"] == "query"] == [2, 2]


def test_every_panel_is_complete(panels):
    for panel in panels:
        assert panel["title"], panel["id"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == DATASOURCE, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == DATASOURCE, panel["title"]
            assert target["legendFormat"], panel["title"]


def test_legends_name_labels_that_their_expression_keeps(panels, parse, exposed):
    for panel in panels:
        for target in panel["targets"]:
            root = parse(target["expr"]).root
            if isinstance(root, promql.AggregateExpr) and not root.modifier and root.param:
                root = root.expr  # topk() and bottomk() keep every label
            if isinstance(root, promql.Call):  # histogram_quantile() keeps what the sum inside it keeps
                root = root.args[-1]
            if isinstance(root, promql.BinaryExpr):  # one vector by another of the same labels
                root = root.lhs
            if isinstance(root, promql.VectorSelector):
                kept = exposed[root.name].labels
            else:
                kept = set(root.modifier.labels) if getattr(root, "modifier", None) else set()
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, panel["title"]


def test_every_expression_selects_job_and_instance(expressions, parse):
    for expr in expressions:
        for selector in parse(expr).selectors():
            by_regex = {(m.name, m.value) for m in selector.matchers.matchers if m.op == promql.MatchOp.Re}
            assert {("job", "$job"), ("instance", "$instance")} <= by_regex, expr


def test_every_range_is_the_rate_interval(panels):
    for panel in panels:
        allowed = {"$__range"} if panel["title"] in OVER_THE_RANGE else {"$__rate_interval"}
        for target in panel["targets"]:
            assert set(re.findall(r"\[([^\]]*)\]", target["expr"])) <= allowed, panel["title"]


def test_counters_are_read_as_rates_and_buckets_as_quantiles(panels, parse):
    for panel in panels:
        for target in panel["targets"]:
            for node, above in parse(target["expr"]).nodes():
                if not isinstance(node, promql.VectorSelector):
                    continue
                calls = {parent.func.name for parent in above if isinstance(parent, promql.Call)}
                if node.name.endswith(("_total", "_bucket", "_sum", "_count")) and node.name not in SINCE_THE_START:
                    assert calls & {"rate", "increase"}, panel["title"]
                else:
                    assert not calls & {"rate", "increase"}, f"a gauge has no rate: {panel['title']}"
                if node.name.endswith("_bucket") and target["format"] != "heatmap":
                    assert "histogram_quantile" in calls, panel["title"]


def test_what_can_be_negative_is_not_cut_off_at_zero(panels, parse):
    for panel in panels:
        (gains,) = {
            any(name.startswith("exemplar_example_gain") for name in parse(target["expr"]).names())
            and "histogram_quantile" in target["expr"]
            for target in panel["targets"]
        }
        assert panel["fieldConfig"]["defaults"].get("min") == (None if gains else 0), panel["title"]


def test_every_metric_and_label_exists(expressions, mistakes):
    assert [wrong for expr in expressions for wrong in mistakes(expr)] == []


def test_every_metric_is_shown(dashboards, parse, exposed):
    targets = [
        target for dashboard in dashboards.values() for panel in panels_of(dashboard) for target in panel["targets"]
    ]
    shown = {exposed[name].family for target in targets for name in parse(target["expr"]).names()}

    assert {series.family for series in exposed.values()} == shown | NOT_SHOWN


def test_the_check_of_names_finds_what_is_wrong(mistakes):
    assert mistakes("sum by (reason) (rate(exemplar_rejected_total[1m]))") == []
    assert mistakes("rate(exemplar_rejected[1m])") == ["no metric exemplar_rejected"]
    assert mistakes('exemplar_ready{route="/"}') == ["exemplar_ready has no label route"]
    assert len(mistakes("sum by (le) (rate(exemplar_rejected_total[1m]))")) == 1


def test_the_data_source_knows_the_scrape_interval(root):
    """Grafana derives $__rate_interval from it; too short a one leaves gaps in every graph."""
    source = yaml.safe_load((root / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    prometheus = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())

    (datasource,) = source["datasources"]
    assert datasource["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    assert datasource["uid"] == "exemplar-prometheus"
    assert datasource["editable"] is False


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_every_expression(expressions, tmp_path):
    rules = [{"record": f"panel:{i}", "expr": re.sub(r"\$__\w+", "1m", expr)} for i, expr in enumerate(expressions)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    checked = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr
