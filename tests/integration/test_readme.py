"""The commands of README.md, api.md, command-line.md and tutorial.md, run against a service with the embedded model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from rich.console import Console

from app.demo import running_service

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service(Console(quiet=True), threads="1", tune_steps="3") as service:
        yield service.url


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a document in a language, without their indentation."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def ended_job(url: str) -> str:
    """The id of the newest job, once no job is queued or running."""
    deadline = time.monotonic() + DEADLINE_S
    jobs = httpx2.get(f"{url}/jobs").json()
    while {job["status"] for job in jobs} & {"queued", "running"}:
        assert time.monotonic() < deadline, jobs
        time.sleep(0.1)
        jobs = httpx2.get(f"{url}/jobs").json()
    assert not [job for job in jobs if job["status"] == "failed"], jobs
    return str(jobs[0]["id"])


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_commands(url: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # what a command writes must not land in the repository
    commands = [
        block for document in ("README.md", "docs/api.md", "docs/tutorial.md") for block in blocks(document, "sh")
    ]
    commands = [block for block in commands if block.startswith("curl ")]
    assert len(commands) > 8
    for command in commands:
        if "JOB_ID" in command:
            command = command.replace("JOB_ID", ended_job(url))
        ran = subprocess.run(
            ["bash", "-ec", command.replace("curl ", "curl --fail-with-body --silent ").replace(ADDRESS, url)],
            cwd=tmp_path,
            capture_output=True,
            timeout=DEADLINE_S,
        )
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
    ended_job(url)
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "build"}
    for picture in ("overlay.png", "labels.png"):
        assert (tmp_path / "build" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.timeout(300)  # each command is a process, and two of them import torch
def test_command_line(url: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ours = f"{sys.executable} -m app"  # `make install` may not have made the script of this very copy
    environment = os.environ | {"EXEMPLAR_URL": url, "PYTHONPATH": str(ROOT)}
    commands = [block for page in ("command-line", "api", "tutorial") for block in blocks(f"docs/{page}.md", "sh")]
    commands = [block for block in commands if ".venv/bin/exemplar " in block]
    assert len(commands) > 5
    for command in commands:
        ran = subprocess.run(
            ["bash", "-ec", command.replace(".venv/bin/exemplar", ours)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
    coco = json.loads((tmp_path / "build/labels/instances.json").read_text())
    assert {category["name"] for category in coco["categories"]} == {"cat", "cup"}
    assert len(coco["images"]) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "build"}
    ended_job(url)


def python_of(document: str, url: str) -> subprocess.CompletedProcess[str]:
    """The only Python of a document, run."""
    (snippet,) = blocks(document, "python")
    ran = subprocess.run(
        [sys.executable, "-c", snippet.replace(ADDRESS, url)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def test_python_of_the_readme(url: str) -> None:
    ran = python_of("README.md", url)
    assert ran.stderr.startswith("teaching cat: succeeded")
    assert [line.split()[0] for line in ran.stdout.splitlines()] == ["cat", "sofa"]


def test_python_of_the_tutorial(url: str) -> None:
    found = dict(line.split(" ", 1) for line in python_of("docs/tutorial.md", url).stdout.splitlines())
    assert found.keys() == {path.name for path in (ROOT / "examples").glob("*.jpg")}
    assert "'dog'" in found["dog.jpg"]
