"""A client that openapi-python-client generates from the OpenAPI document teaches a category and segments a photo.

The generator needs another version of typer than the service, so it has an environment of its own, and the test is
skipped where it is not on the PATH:

    python3.11 -m venv /tmp/generator && /tmp/generator/bin/pip install openapi-python-client==0.29.1
    PATH=/tmp/generator/bin:$PATH .venv/bin/python -m pytest tests/client/test_generated_client.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import EXAMPLES

GENERATOR = shutil.which("openapi-python-client")

# Run by the Python of the generator, which has what its clients import: httpx and attrs.
PROGRAM = """
import sys, time
from pathlib import Path

from exemplar_generated import Client
from exemplar_generated.api.categories import list_categories, teach
from exemplar_generated.api.jobs import get_job
from exemplar_generated.api.segment import segment
from exemplar_generated.models import BodySegment, BodyTeach, Problem
from exemplar_generated.types import File

url, examples = sys.argv[1], Path(sys.argv[2])

def file(name):
    return File(payload=(examples / name).open("rb"), file_name=name)

with Client(base_url=url, timeout=60) as client:
    taught = teach.sync("generated", client=client, body=BodyTeach(
        image=file("kitten.jpg"), mask=file("kitten_mask.png"), prompts=["cat", "kitten"]))
    job = taught.job
    while job.status in ("queued", "running"):
        time.sleep(0.1)
        job = get_job.sync(job.id, client=client)
    print(job.status, taught.category.prompts)
    print("generated" in [category.name for category in list_categories.sync(client=client)])
    answer = segment.sync(client=client, body=BodySegment(
        image=file("chelsea.jpg"), categories=["generated", "sofa"], min_presence=0.25))
    print([(found.name, found.adapted, found.found) for found in answer.categories])
    print(answer.categories[0].area, answer.categories[0].segmentation.size)
    refusal = segment.sync(client=client, body=BodySegment(image=file("kitten.jpg"), backbone="nonesuch"))
    print(type(refusal).__name__, refusal.status, refusal.errors[0].field)
"""


@pytest.mark.skipif(GENERATOR is None, reason="openapi-python-client is not on the PATH")
def test_a_generated_client_teaches_and_segments(cat_url: str, tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert GENERATOR is not None
    target = ["--output-path", "exemplar_generated", "--meta", "none"]
    run(GENERATOR, "generate", "--url", f"{cat_url}/openapi.json", *target)
    python = Path(GENERATOR).parent / "python"
    status, listed, found, marked, refusal = run(python, "-c", PROGRAM, cat_url, EXAMPLES).splitlines()
    assert status == "succeeded ['generated', 'cat', 'kitten']"
    assert listed == "True"
    assert found.startswith("[('generated', True, True), ('sofa', False, ")
    area, _, size = marked.partition(" ")
    assert int(area) > 50_000, "chelsea.jpg is mostly cat"
    assert size == "[300, 451]"
    assert refusal == "Problem 422 backbone"
