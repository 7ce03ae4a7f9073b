"""docker-compose.yml is valid, closed to other machines, and agrees with the settings and the files it mounts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from app.settings import Settings


def has_compose() -> bool:
    """True if docker is installed with its plugin compose; neither a daemon nor a network is needed to read a file."""
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def compose(root):
    return yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def services(compose):
    return compose["services"]


@pytest.fixture(scope="session")
def mounts(services):
    """Each service's mounts as source, target, options; variables of the shell have their defaults."""
    volumes = [
        (name, re.sub(r"\$\{\w+:-(.*?)\}", r"\1", one)) for name, at in services.items() for one in at["volumes"]
    ]
    return [(name, *(volume + ":rw").split(":")[:3]) for name, volume in volumes]


def test_the_file_follows_the_compose_specification(root):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    found = subprocess.run(check, cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.skipif(not has_compose(), reason="docker compose is not installed")
def test_docker_reads_the_file(root):
    """It also looks up what the specification's schema can't: names of services and volumes."""
    found = subprocess.run(["docker", "compose", "config", "--quiet"], cwd=root, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr


def test_without_a_profile_the_cpu_and_the_monitoring_start(root):
    lines = (root / ".env").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["COMPOSE_PROFILES=cpu,monitoring"]


def test_on_a_gpu_it_is_the_same_service(services):
    cpu, gpu = ({**services[name]} for name in ("exemplar", "exemplar-gpu"))
    differ = {key for key in cpu.keys() | gpu.keys() if cpu.get(key) != gpu.get(key)}
    assert differ == {"profiles", "build", "gpus", "networks"}
    assert gpu["gpus"] == "all"
    assert re.fullmatch(r"https://download\.pytorch\.org/whl/cu\d+", gpu["build"]["args"]["TORCH_INDEX"])
    assert "exemplar" in gpu["networks"]["default"]["aliases"]


def test_every_service_is_hardened(services):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["init"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name


def test_ports_are_open_to_this_machine_only(services):
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}

    assert ports == {
        "exemplar": ["127.0.0.1:8000:8000"],
        "exemplar-gpu": ["127.0.0.1:8000:8000"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_dependencies_wait_for_health(services):
    assert services["exemplar"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services
            assert how == {"condition": "service_healthy"}


def test_mounted_files_are_in_the_repository_and_read_only(root, mounts):
    files = [(source, options) for _, source, _, options in mounts if source.startswith(".")]

    assert files
    for source, options in files:
        assert any((root / source).iterdir()), source
        assert options == "ro", source


def test_settings_of_the_service_exist_and_are_accepted(services, monkeypatch):
    environment = services["exemplar"]["environment"]
    for name in [name for name in os.environ if name.startswith("EXEMPLAR_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        assert isinstance(value, str), f"{name}: YAML would change it"
        if name.startswith("OTEL_"):
            continue
        assert name.removeprefix("EXEMPLAR_").lower() in Settings.model_fields, name
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value))

    settings = Settings()
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.allow_anonymous is True


def test_the_uploads_in_progress_have_room(services):
    (tmp,) = services["exemplar"]["tmpfs"]
    (gibibytes,) = re.fullmatch(r"/tmp:size=(\d+)g", tmp).groups()

    assert Settings.model_fields["upload_space_bytes"].default <= 0.8 * int(gibibytes) * 2**30


def test_settings_named_in_comments_exist(root):
    shells = {"MODELS"}  # read by Compose alone
    for file in ["Dockerfile", "docker-compose.yml", "deploy/grafana/dashboard.py", "deploy/prometheus/alerts.yml"]:
        for name in re.findall(r"EXEMPLAR_([A-Z_]+)", (root / file).read_text(encoding="utf-8")):
            if name in shells:
                continue
            assert name.lower() in Settings.model_fields, f"{file}: EXEMPLAR_{name}"


def test_the_store_loses_at_most_a_second(services, mounts):
    command = services["redis"]["command"]

    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--appendfsync") + 1] == "everysec"
    assert ("redis", "redis-data", "/data", "rw") in mounts


def test_prometheus_and_grafana_look_where_things_are(root, services, mounts):
    prometheus = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    (datasource,) = yaml.safe_load((root / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((root / "deploy/grafana/provisioning/dashboards/exemplar.yaml").read_text())[
        "providers"
    ]
    mounted = {target: root / source for name, source, target, _ in mounts if name == "grafana"}

    assert prometheus["scrape_configs"][0]["static_configs"] == [{"targets": ["exemplar:8000"]}]
    assert datasource["url"] == "http://prometheus:9090"
    assert (mounted[provider["options"]["path"]] / "service.json").is_file()
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == provider["options"]["path"] + "/service.json"


def test_readiness_probe_tells_200_from_503(services, probe):
    command = services["exemplar"]["healthcheck"]["test"][1:]

    assert probe(command, path="/readyz", status=200, port=8000) is True
    assert probe(command, path="/readyz", status=503, port=8000) is False
