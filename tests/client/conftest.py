"""The application with the tiny model behind a real HTTP server, and clients of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.main import create_app
from app.method.backbone import Backbone
from app.settings import Settings
from exemplar_client import Client, photos
from tests.served import served

DEADLINE_S = 30.0
HW = (31, 47)
EXAMPLES = Path(__file__).parents[2] / "examples"

Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def serve(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: Backbone,
    new_database: Callable[[], AbstractContextManager[str]],
) -> Serve:
    """Starts a service: `with serve(queue_limit=1) as url`. Jobs have three steps."""

    @contextmanager
    def serving(**settings: Any) -> Iterator[str]:
        with new_database() as database:
            folder = tmp_path_factory.mktemp("data")
            few_steps = {"tune_steps": 3, "threads": 1} | settings
            app = create_app(Settings(redis_url=database, data_dir=folder, **few_steps), loaded=[tiny])
            with served(app) as address:
                yield address

    return serving


@pytest.fixture(scope="session")
def url(serve: Serve) -> Iterator[str]:
    """A service that the tests of a process share; each uses categories of its own."""
    with serve() as running:
        with Client(running) as client:
            deadline = time.monotonic() + DEADLINE_S
            while not client.health().ready:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield running


@pytest.fixture(scope="session")
def cat_url(
    tmp_path_factory: pytest.TempPathFactory,
    embedded: Backbone,
    new_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[str]:
    """A service with the embedded model, which was taught "cat" from the kitten among the examples."""
    with new_database() as database:
        settings = Settings(redis_url=database, data_dir=tmp_path_factory.mktemp("data"), threads=1)
        with served(create_app(settings, loaded=[embedded])) as address:
            with Client(address) as client:
                client.teach("cat", EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png").wait(progress=False)
            yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened


def noise(height: int = HW[0], width: int = HW[1], *, seed: int = 3) -> np.ndarray:
    """A photo of nothing."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def only_the_service_reads_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client finds neither pillow-heif nor Pillow's reader of AVIF; the service, in the same process, does."""

    def missing(content: object) -> None:
        raise ImportError("pillow_heif")

    Image.init()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    monkeypatch.setattr(photos, "_open_heic", missing)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo of 47 × 31 pixels."""
    path = tmp_path / "photo.png"
    Image.fromarray(noise()).save(path)
    return path


@pytest.fixture
def marked() -> np.ndarray:
    """A mask of columns 10 to 30 of rows 5 to 20."""
    bits = np.zeros(HW, dtype=bool)
    bits[5:20, 10:30] = True
    return bits
