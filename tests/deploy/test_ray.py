"""deploy/ray agrees with Ray and the application; without a cluster, and mostly without Ray."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import import_module
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from starlette.middleware import Middleware

from app import __version__
from app.ray_serve import NAME, Arguments
from app.settings import Settings

KUBERNETES = "1.37"
TEXT = {"type": "string"}


def fields(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": list(properties)}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


# No package has KubeRay's schema as it is. These are the fields of its v1 API that we use; one that is not among them
# is a typing error until added. What is in a pod's template is held to Kubernetes' own schema.
POD = {"type": "object"}
COUNT = {"type": "integer"}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
RAY_SERVICE = fields(
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=fields(name=TEXT, namespace=TEXT),
    spec=fields(
        serveConfigV2=TEXT,
        rayClusterConfig=fields(
            rayVersion=TEXT,
            authOptions=fields(mode={"enum": ["token", "disabled"]}),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=fields(securityContext={"type": "object"}),
            headGroupSpec=fields(rayStartParams=PARAMETERS, template=POD),
            workerGroupSpecs=listed(
                fields(
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=PARAMETERS,
                    template=POD,
                )
            ),
        ),
    ),
)


@pytest.fixture
def serve(root):
    return yaml.safe_load((root / "deploy/ray/serve.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def service(root):
    return yaml.safe_load((root / "deploy/ray/rayservice.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def config(service):
    """Configuration that KubeRay passes to Ray."""
    return yaml.safe_load(service["spec"]["serveConfigV2"])


@pytest.fixture
def groups(service):
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.fixture
def containers(groups):
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


@pytest.fixture
def dockerfile(root):
    return (root / "deploy/ray/Dockerfile").read_text(encoding="utf-8")


def named(import_path: str) -> Any:
    module, _, name = import_path.partition(":")
    return getattr(import_module(module), name)


def settings_of(environment: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in environment.items() if name.startswith("EXEMPLAR_")}
    assert {name.removeprefix("EXEMPLAR_").lower() for name in own} <= set(Settings.model_fields)
    return {name.removeprefix("EXEMPLAR_").lower(): value for name, value in own.items()}


def test_the_application_and_its_deployment_exist(serve):
    (application,) = serve["applications"]
    (deployment,) = application["deployments"]

    assert callable(named(application["import_path"]))
    assert deployment["name"] == NAME
    Arguments.model_validate(application.get("args", {}))
    Settings(**settings_of(application.get("runtime_env", {}).get("env_vars", {})))


def test_it_answers_this_machine_only_unless_told_otherwise(serve):
    assert serve["http_options"]["host"] == Settings.model_fields["host"].default
    assert serve["http_options"]["port"] == Settings.model_fields["port"].default


def test_ray_understands_the_files(serve, config):
    schema = pytest.importorskip("ray.serve.schema", reason="needs Ray: pip install -c constraints.txt -e '.[ray]'")

    for one in (serve, config):
        read = schema.ServeDeploySchema.model_validate(one)
        assert read.model_dump(exclude_unset=True)["http_options"] == one["http_options"]


def test_the_ray_service_runs_the_same_application_with_a_share_of_a_gpu(serve, config):
    (own,), (shared,) = (one["applications"][0]["deployments"] for one in (serve, config))

    assert own["ray_actor_options"].pop("num_gpus") == 0
    assert 0 < shared["ray_actor_options"].pop("num_gpus") < 1
    assert serve["http_options"].pop("host") == "127.0.0.1"
    assert config["http_options"].pop("host") == "0.0.0.0"
    assert config == serve


def test_the_ray_service_has_known_fields_alone(service):
    jsonschema.validate(service, RAY_SERVICE)


def test_pods_keep_to_the_schema_of_kubernetes(groups):
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
        assert kubernetes_validate.validate(pod, KUBERNETES, strict=True) == KUBERNETES


def test_pods_keep_to_the_restricted_standard_of_their_namespace(root, service, groups, containers):
    """Else none of them starts: the namespace of the document enforces it."""
    namespace = yaml.safe_load((root / "deploy/kubernetes/namespace.yaml").read_text(encoding="utf-8"))
    assert namespace["metadata"]["name"] == service["metadata"]["namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"

    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"} & pod.keys()
    # The operator adds one container, with a context of its own, and one that takes over the context of Ray's.
    added = service["spec"]["rayClusterConfig"]["autoscalerOptions"]
    for container in (*containers, added):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_pods_have_settings_that_exist_and_let_others_in(containers, groups):
    for container in containers:
        environment = {entry["name"]: entry.get("value", "redis://store:6379/0") for entry in container["env"]}
        settings = Settings(**settings_of(environment))
        assert settings.redis_url
        assert settings.allow_anonymous
    assert all(group["template"]["spec"]["enableServiceLinks"] is False for group in groups)


def test_a_worker_pod_has_room_for_its_replicas(groups, config):
    (deployment,) = config["applications"][0]["deployments"]
    (worker,) = groups[1:]
    (container,) = worker["template"]["spec"]["containers"]
    limits, wanted = container["resources"]["limits"], deployment["ray_actor_options"]
    in_a_pod = min(float(limits["nvidia.com/gpu"]) / wanted["num_gpus"], float(limits["cpu"]) / wanted["num_cpus"])

    assert worker["maxReplicas"] * in_a_pod >= deployment["autoscaling_config"]["max_replicas"]
    assert worker["minReplicas"] * in_a_pod >= deployment["autoscaling_config"]["min_replicas"]


def test_one_version_of_ray_everywhere(root, service):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    (pinned,) = project["project"]["optional-dependencies"]["ray"]
    version = pinned.removeprefix("ray[serve]==")

    assert f"\nray=={version}\n" in (root / "constraints.txt").read_text(encoding="utf-8")
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == version
    assert f"Ray {version}" in (root / "docs/ray.md").read_text(encoding="utf-8")


def test_the_image_has_the_callback_and_the_version_that_pods_ask_for(dockerfile, containers):
    (callback,) = re.findall(r"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=(\S+)", dockerfile)

    assert all(isinstance(one, Middleware) for one in named(callback)())
    assert {container["image"] for container in containers} == {f"exemplar-ray:{__version__}-cuda"}
    assert set(re.findall(r"--tag (\S+)", dockerfile)) == {
        f"exemplar-ray:{__version__}",
        f"exemplar-ray:{__version__}-cuda",
    }


def test_the_commands_of_the_document_push_the_image_that_they_write_into_the_file(root, containers):
    document = (root / "docs/ray.md").read_text(encoding="utf-8")
    (pushed,) = re.findall(r"^docker push (\S+)$", document, re.MULTILINE)
    (edit,) = re.findall(r"^(sed -i .*? deploy/ray/rayservice\.yaml)", document, re.MULTILINE)
    made = subprocess.run(edit.replace("sed -i", "sed"), shell=True, cwd=root, capture_output=True, check=True)

    assert f"docker build --tag {pushed} " in document
    cluster = yaml.safe_load(made.stdout)["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = [one["image"] for group in groups for one in group["template"]["spec"]["containers"]]
    assert images == [pushed] * len(containers)


def test_the_document_names_what_there_is(root):
    document = (root / "docs/ray.md").read_text(encoding="utf-8")

    for path in re.findall(r"deploy/ray/[\w.-]*\w", document):
        assert (root / path).exists(), path
    for setting in re.findall(r"EXEMPLAR_([A-Z_]+)", document):
        assert setting.lower() in Settings.model_fields
    for argument in re.findall(r"\b(\w+)=\d", " ".join(re.findall(r"app\.ray_serve:build([^\n`]*)", document))):
        assert argument in Arguments.model_fields
