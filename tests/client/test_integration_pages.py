"""The Python in docs/integrations/, run against a service where the package that a page is about is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import EXAMPLES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "integrations"
ADDRESS = "http://127.0.0.1:8000"
# FiftyOne needs a database: `python -m tests.client.fiftyone` runs its page.
ELSEWHERE = {"fiftyone.md"}


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language; "" = no language, which is what the code above it prints."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", (FOLDER / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [code for written_in, code in fences if written_in == language]


def run(page: str, folder: Path, url: str) -> str:
    """What the Python of a page prints."""
    (folder / "examples").symlink_to(EXAMPLES)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks(page, "python")).replace(ADDRESS, url)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_supervision(cat_url: str, tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    printed = run("supervision.md", tmp_path, cat_url)
    # All but the pixels, which may differ by a few between machines.
    assert printed.rpartition("[")[0] == blocks("supervision.md", "")[0].rpartition("[")[0]
    assert (tmp_path / "build/annotated.png").stat().st_size > 10_000
    assert '"cat"' in (tmp_path / "build/instances.json").read_text()


def test_cvat(cat_url: str, tmp_path: Path) -> None:
    pytest.importorskip("cvat_sdk")
    pytest.importorskip("shapely")
    assert run("cvat.md", tmp_path, cat_url) == "['cat', 'dog']\n"


def test_every_page_with_python_is_run() -> None:
    with_python = {page.name for page in FOLDER.glob("*.md") if blocks(page.name, "python")}
    assert with_python == {"supervision.md", "cvat.md"} | ELSEWHERE
