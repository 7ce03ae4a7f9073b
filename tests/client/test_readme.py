"""The Python of the client's README, run as one session against a service with the embedded model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from app.demo import running_service

ROOT = Path(__file__).parents[2]
README = (ROOT / "client" / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
MAX_WORDS = 900  # one page

pytestmark = pytest.mark.timeout(300)  # starts a service


def test_code(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with running_service(Console(quiet=True), threads="1", tune_steps="3") as service:
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(blocks).replace(ADDRESS, service.url)],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT / "client")},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    pixels, *_, refusal = lines
    assert pixels.endswith("pixels are cat")
    assert int(pixels.split()[0]) > 50_000, "chelsea.jpg is mostly cat"
    assert lines[1].startswith("succeeded")
    assert "<Masks of chelsea.jpg: cat" in done.stdout
    assert "unicorn" in refusal
    with Image.open(tmp_path / "labels.png") as labels, Image.open(tmp_path / "overlay.png") as overlay:
        assert labels.size == overlay.size == (451, 300)
    written = json.loads((tmp_path / "instances.json").read_text())
    assert {"id": 1, "name": "cat", "supercategory": ""} in written["categories"]
    assert len(written["images"]) == 9
    assert written["annotations"]


def test_it_fits_on_a_page() -> None:
    assert len(README.split()) <= MAX_WORDS
