"""Allowed imports between the packages, and imports without side effects."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APP = ROOT / "app"
EVERYTHING = ("app",)

# Module or package → what it may import of the others. The longest entry that fits a module counts.
ARROWS: dict[str, tuple[str, ...]] = {
    "app": (),
    "app.errors": (),
    "app.metrics": (),
    "app.logs": (),
    "app.telemetry": (),
    "app.settings": (),
    "app.method": (),
    "app.masks": (),
    "app.images": ("app.masks", "app.errors"),
    "app.backbones": ("app.method", "app.errors"),
    # Of the method, the store knows the values that it keeps: adapters with their parameters, and layer statistics.
    "app.storage": ("app.method.adapter", "app.method.parameters", "app.method.infoscore", "app.errors"),
    "app.services": (
        "app.method",
        "app.masks",
        "app.images",
        "app.storage",
        "app.metrics",
        "app.errors",
        "app.logs",
        "app.telemetry",
    ),
    # Measures the method without the service.
    "app.research": (
        "app.method",
        "app.masks",
        "app.images",
        "app.coco",
        "app.errors",
        "app.backbones.shared.family",
    ),
    # Golden cases are of BLIP, whatever else is loaded.
    "app.research.parity": ("app.research", "app.method", "app.errors", "app.backbones.blip"),
    # Of the store, HTTP knows the records that it shows, its errors and the names of categories; of the wiring, the
    # type of the service.
    "app.api": (
        "app.services",
        "app.errors",
        "app.storage.category_records",
        "app.storage.connection.StoreError",
        "app.storage.connection.refuses_writes",
        "app.storage.jobs",
        "app.storage.names",
        "app.storage.records.wrong_type",
        "app.masks",
        "app.images",
        "app.wiring.Service",
    ),
    "app.api.middleware": ("app.api", "app.errors", "app.metrics", "app.logs"),
    "app.api.access": ("app.api", "app.errors", "app.settings.SCOPES", "app.settings.Scope"),
    "app.wiring": (
        "app.__version__",
        "app.settings",
        "app.errors",
        "app.metrics",
        "app.method",
        "app.backbones",
        "app.storage",
        "app.services",
    ),
    # Ways in, each thin.
    "app.main": ("app.__version__", "app.api", "app.wiring", "app.settings", "app.method.backbone"),
    "app.worker": ("app.wiring", "app.settings", "app.errors"),
    "app.ray_serve": ("app.main", "app.wiring", "app.settings", "app.telemetry"),
    "app.cli": EVERYTHING,
    "app.__main__": ("app.cli",),
    # What the command line is made of.
    "app.client": ("app.errors",),
    "app.coco": ("app.masks", "app.errors"),
    "app.demo": ("app.client", "app.errors", "app.masks"),
}

# The method is plain torch: no model library, no store, no HTTP.
OUTSIDE_OF_METHOD = {"jaxtyping", "numpy", "PIL", "safetensors", "torch"}
OUTSIDE_OF_MASKS = {"jaxtyping", "numpy", "PIL", "pycocotools"}
OUTSIDE_OF_IMAGES = {"PIL", "jaxtyping", "numpy", "pillow_heif"}
OUTSIDE_OF_API = {
    "fastapi",
    "numpy",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "starlette",
}

MODULES = sorted(APP.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> set[str]:
    """Full names of all that a file imports, inside functions too: `app.wiring.Service`, `torch.Tensor`."""
    package = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            # `import app` is for the version alone.
            found |= {"app.__version__" if alias.name == "app" else alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def lies_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def own_arrows(module: str) -> tuple[str, tuple[str, ...]]:
    entry = max((entry for entry in ARROWS if lies_in(module, entry)), key=len)
    return entry, ARROWS[entry]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_arrows_point_inward(file: Path) -> None:
    module = name_of(file)
    entry, allowed = own_arrows(module)
    assert entry != "app" or module == "app", f"write down in ARROWS what {module} may import"
    own = () if entry == "app" else (entry,)
    wrong = {
        name
        for name in imports_of(file)
        if lies_in(name, "app") and not any(lies_in(name, target) for target in (*own, *allowed))
    }
    assert wrong == set()


@pytest.mark.parametrize(
    ("package", "known"),
    [
        ("method", OUTSIDE_OF_METHOD),
        ("masks", OUTSIDE_OF_MASKS),
        ("images", OUTSIDE_OF_IMAGES),
        ("api", OUTSIDE_OF_API),
    ],
)
def test_a_package_stays_what_it_is(package: str, known: set[str]) -> None:
    roots = {name.split(".")[0] for file in (APP / package).rglob("*.py") for name in imports_of(file)}
    assert roots - set(sys.stdlib_module_names) - {"app"} <= known


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_the_store_imports_redis(file: Path) -> None:
    talks_to_redis = any(lies_in(name, "redis") for name in imports_of(file))
    assert not talks_to_redis or lies_in(name_of(file), "app.storage")


def test_an_arrow_that_points_outward_is_seen() -> None:
    """The test of the test: HTTP's imports would be wrong in the store."""
    imported = imports_of(APP / "api" / "segment.py")
    assert any(lies_in(name, "app.services") for name in imported)
    assert not any(lies_in("app.services", target) for target in ARROWS["app.storage"])
    assert "app.method.frame.Frame" in imports_of(APP / "method" / "backbone.py")  # `from .frame import Frame`


WATCHED_IMPORT = """
import importlib, os, pkgutil, sys, threading

events = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        read_own = str(path).startswith(sys.argv[1]) and not str(path).endswith((".py", ".pyc"))
        if writes or read_own:
            events.append(f"opened {path}")
    elif event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "signal.signal"):
        events.append(f"{event} {arguments}")

import app

names = [module.name for module in pkgutil.walk_packages(app.__path__, "app.")]
names.remove("app.__main__")
# Libraries first and unwatched: what they do when they are imported is theirs.
import fastapi, numpy, PIL.Image, redis, torch, transformers
from transformers import BertTokenizer, BlipForImageTextRetrieval
sys.addaudithook(watch)
for name in names:
    importlib.import_module(name)
events += [f"started {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
events += [f"left {name}" for name in os.listdir()]
print(*events, sep="\\n", end="")
"""


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    """No thread, no process, no socket, no file opened; and settings aren't read, or the nonsense would be refused."""
    nonsense = {"EXEMPLAR_PORT": "nonsense", "EXEMPLAR_BACKBONE": "nonsense", "EXEMPLAR_DATA_DIR": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED_IMPORT, str(APP)],
        cwd=tmp_path,
        env={**os.environ, **nonsense, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
