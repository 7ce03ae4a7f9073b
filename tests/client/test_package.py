"""The package alone: it works without torch and without the service's code, and says what it needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

import exemplar_client
from tests.images.cases import heic_of

from .conftest import noise

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "client" / "exemplar_client"

ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        refused = {"app", "torch", "transformers", "pycocotools", "pillow_heif", "rich", "tqdm", "matplotlib"}
        if name.partition(".")[0] in refused:
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
for name in ("app", "torch"):
    try:
        __import__(name)
    except ImportError:
        pass
    else:
        raise SystemExit(f"{name} is not refused")

from exemplar_client import Client

url, photo, heic, mask = sys.argv[1:]
with Client(url) as client:
    client.teach("alone", photo, mask).wait()
    masks = client.segment(photo, ["alone"], min_presence=0)
    assert masks["alone"].array.shape == (31, 47)
    assert masks.to_png().startswith(b"\\x89PNG")
    assert [each.position for each in client.segment_many([photo], ["alone"], progress=False)] == [0]
    assert client.segment(heic, ["alone"]).size_hw == (31, 47)
    client.delete("alone")
print(masks["alone"].adapter_version)
"""


def test_it_works_without_torch_and_the_service(url: str, photo: Path, marked: np.ndarray, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(marked).save(mask)
    heic = tmp_path / "photo.heic"
    heic.write_bytes(heic_of(noise()))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, url, str(photo), str(heic), str(mask)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "client"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
    assert done.stderr == "teaching alone: succeeded 3/3\n"


def described() -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
    return project


def names(requirements: object) -> set[str]:
    assert isinstance(requirements, list)
    return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}


def test_it_imports_what_it_declares() -> None:
    imported = set()
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(str(node.module).split(".")[0])
    project = described()
    optional = project["optional-dependencies"]
    assert isinstance(optional, dict)
    declared = names(project["dependencies"]) | set().union(*map(names, optional.values()))
    others = imported - set(sys.stdlib_module_names) - {"exemplar_client", "__future__"}
    distributions = {"PIL": "pillow", "cvat_sdk": "cvat-sdk"}
    assert {distributions.get(name, name) for name in others} == declared | {"tqdm", "pillow_heif"}


def test_the_service_does_not_import_it() -> None:
    """The package is on no index: a service that needed it could not be installed with pip alone."""
    assert [
        path for path in (ROOT / "app").rglob("*.py") if "exemplar_client" in path.read_text(encoding="utf-8")
    ] == []


def test_versions_agree() -> None:
    assert described()["version"] == exemplar_client.__version__


def test_all_names_exist() -> None:
    assert all(hasattr(exemplar_client, name) for name in exemplar_client.__all__)
    assert (PACKAGE / "py.typed").exists()


def test_the_licence_is_that_of_the_service() -> None:
    assert (ROOT / "client" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
