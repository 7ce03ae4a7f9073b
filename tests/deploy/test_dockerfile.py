"""hadolint accepts the Dockerfiles, and their parts agree with the project."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from app import __version__
from app.settings import Settings


@dataclass(frozen=True)
class Instruction:
    """One instruction of a stage, its continuation lines joined."""

    stage: int
    name: str
    text: str


def read(dockerfile: str) -> list[Instruction]:
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    instructions, stage = [], -1
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        name, text = line.split(maxsplit=1)
        stage += name == "FROM"
        instructions.append(Instruction(stage, name, text))
    return instructions


@pytest.fixture(scope="session")
def instructions(root):
    return read((root / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def named(instructions):
    """The texts of an instruction by its name; `final` = of the last stage only."""

    def texts(name, *, final=False):
        last = instructions[-1].stage
        return [at.text for at in instructions if at.name == name and (not final or at.stage == last)]

    return texts


@pytest.fixture(scope="session")
def environment(named):
    return dict(item.split("=", 1) for text in named("ENV") for item in shlex.split(text))


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "deploy/ray/Dockerfile"])
def test_hadolint_finds_nothing_to_warn_of(root, dockerfile):
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold", "warning", dockerfile],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_runs_as_a_numbered_user_that_is_not_root(instructions, named):
    assert named("USER") == ["10001:10001"]
    after = [at.name for at in instructions[[at.name for at in instructions].index("USER") :]]
    assert after == ["USER", "ENTRYPOINT", "CMD"]
    assert any("useradd" in run and "--uid 10001" in run and "--gid 10001" in run for run in named("RUN", final=True))


def test_signals_ports_and_volumes(named, environment):
    assert named("STOPSIGNAL") == ["SIGTERM"]
    assert named("EXPOSE") == [str(Settings.model_fields["port"].default)]
    assert named("VOLUME") == [environment["EXEMPLAR_DATA_DIR"]] == ["/data"]
    assert environment["HF_HOME"].startswith("/models/")


def test_the_builder_gets_what_is_copied_and_nothing_else(root, named):
    ignored = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {source for text in named("COPY") if "--from" not in text for source in text.split()[:-1]}

    assert "*" in ignored
    assert let_in == copied
    assert all((root / source).exists() for source in copied)
    for secret in (".env", ".git", ".venv", "var", "shared"):
        assert not any(fnmatch.fnmatch(secret, pattern) for pattern in let_in)


def test_settings_of_the_image_exist_and_leave_access_closed(environment):
    ours = {name for name in environment if name.startswith("EXEMPLAR_")}

    assert ours == {"EXEMPLAR_HOST", "EXEMPLAR_DATA_DIR"}
    assert all(name.removeprefix("EXEMPLAR_").lower() in Settings.model_fields for name in ours)
    assert environment["EXEMPLAR_HOST"] == "0.0.0.0"


def test_labels_agree_with_the_project(root, named):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = dict(item.split("=", 1) for item in shlex.split(named("LABEL")[0]))

    assert labels["org.opencontainers.image.version"] == __version__ == project["version"]
    assert labels["org.opencontainers.image.description"] == project["description"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]


def test_the_requirements_step_lists_the_dependencies(root, named):
    """Runs the step's own Python line through a shell, as the builder would."""
    (step,) = [run for run in named("RUN") if "tomllib" in run]
    line = step.split(" > ")[0].strip().replace("python", shlex.quote(sys.executable), 1)

    listed = subprocess.run(["sh", "-c", line], cwd=root, capture_output=True, text=True, check=True).stdout

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert listed.splitlines() == project["dependencies"] + extras["otel"] + extras["gpu"]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_liveness_probe_tells_200_from_503(named, probe, status, healthy):
    command = json.loads(named("HEALTHCHECK")[0].split(" CMD ")[1])

    assert probe(command, path="/healthz", status=status) is healthy
