"""Shared fixtures: a real store, a tiny model, and a running application. No mocks, no network."""

from __future__ import annotations

import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from redis import Redis
from starlette.testclient import TestClient
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

from app.backbones import load
from app.backbones.blip import Blip
from app.backbones.embedded import VOCABULARY
from app.main import create_app
from app.method.backbone import Backbone
from app.settings import Settings
from app.storage import keys
from app.storage.server import EmbeddedServer
from tests.chaos.proxy import Proxy

DEADLINE_S = 30.0
ENDED = {"succeeded", "failed", "cancelled", "superseded"}

# Folders whose tests have the shapes of arrays checked at each call. Behind the API the same calls, checked too, take
# a third of the time of all tests.
CHECKED_SHAPES = {"backbones", "golden", "images", "masks", "method", "research"}

Json = dict[str, Any]
NewDatabase = Callable[[], AbstractContextManager[str]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    jaxtyping.config.update("jaxtyping_disable", folder not in CHECKED_SHAPES)


@pytest.hookimpl(optionalhook=True)  # of a plugin that may be switched off
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, for tests often wait: for processes, jobs, time to pass."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Small tensors gain nothing from a second thread, and where tests run beside other work its barriers cost seconds.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """This session's own server."""
    with EmbeddedServer.start(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def new_database(valkey: EmbeddedServer) -> NewDatabase:
    """Gives the URL of an empty database; what is left there at the end of the `with` is deleted."""
    free = deque(range(16))

    @contextmanager
    def database() -> Iterator[str]:
        number = free.popleft()  # that which was given back first, so that a straggler of one test meets no other
        url = f"{valkey.url}?db={number}"
        with Redis.from_url(url) as redis:
            assert not redis.dbsize()
            yield url
            if left := list(redis.scan_iter()):
                redis.delete(*left)
        free.append(number)

    return database


@pytest.fixture
def database(new_database: NewDatabase) -> Iterator[str]:
    """URL of a database of this test's own."""
    with new_database() as url:
        yield url


@pytest.fixture
def proxy(valkey: EmbeddedServer) -> Iterator[Proxy]:
    """A proxy in front of this session's server."""
    with Proxy(Path(unquote(urlsplit(valkey.url).path))) as proxy:
        yield proxy


@pytest.fixture
def proxied_database(proxy: Proxy, database: str) -> str:
    """URL of this test's database behind the proxy."""
    return f"redis://127.0.0.1:{proxy.port}/?{urlsplit(database).query}"


def random_blip(*, patch_px: int, image_px: int) -> tuple[BlipForImageTextRetrieval, BertTokenizer]:
    """A BLIP that has learnt nothing and answers in milliseconds."""
    size = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2, "projection_dim": 8}
    config = BlipConfig(
        text_config=size
        | {
            "num_hidden_layers": 4,
            "vocab_size": 30522,
            "encoder_hidden_size": 24,
            "bos_token_id": 0,
            "initializer_range": 0.3,
        },
        vision_config=size
        | {"num_hidden_layers": 1, "patch_size": patch_px, "image_size": image_px, "initializer_range": 0.3},
        projection_dim=8,
        image_text_hidden_size=8,
        initializer_range=0.3,
    )
    torch.manual_seed(7)
    return BlipForImageTextRetrieval(config), BertTokenizer(vocab=str(VOCABULARY))


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """The random model on 40 × 40 pixels."""
    model, tokenizer = random_blip(patch_px=8, image_px=40)
    return Blip(model, tokenizer, name="tiny", input_size=40)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model as a folder that `EXEMPLAR_BACKBONE=blip:folder` can name."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    for part in random_blip(patch_px=64, image_px=512):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded() -> Backbone:
    """The model that ships with the service."""
    return load("embedded", device="cpu", dtype="float32")


def png(pixels: np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    """An image file of these pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def noise(height: int, width: int, *, seed: int = 3) -> np.ndarray:
    """A photo of nothing."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Api:
    """A running application with its store, and what tests do with them again and again.

    `photo` is 47 wide and 31 high; `mask` marks columns 10 to 30 of its rows 5 to 20.
    """

    hw = (31, 47)
    photo = png(noise(*hw))
    other_photo = png(noise(*hw, seed=11))
    marked = np.zeros(hw, dtype=bool)
    marked[5:20, 10:30] = True
    mask = png(marked.astype(np.uint8) * 255)

    def __init__(self, http: TestClient, redis: Redis) -> None:
        self.http = http
        self.redis = redis

    @classmethod
    def photo_number(cls, number: int) -> bytes:
        """A photo unlike that of every other number: the same photo and mask again are no further example."""
        return png(noise(*cls.hw, seed=1000 + number))

    def teach(
        self,
        name: str = "cat",
        *,
        photo: bytes | None = None,
        files: Mapping[str, bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: str | Sequence[str],
    ) -> httpx2.Response:
        """Post an example; with the mask above unless another form of it is among the arguments."""
        if files is None:
            files = {} if {"segmentation", "box"} & set(fields) else {"mask": self.mask}
        return self.http.post(
            f"/categories/{name}/example",
            files={"image": photo or self.photo, **files},
            data=fields,
            headers=headers,
        )

    def taught(self, name: str = "cat", **options: Any) -> Json:
        """Post an example and wait for its job, which must succeed."""
        answer = self.teach(name, **options)
        assert answer.status_code == 202, answer.text
        job = self.wait(answer.json()["job"]["id"])
        assert job["status"] == "succeeded", job
        return job

    def segment(
        self,
        *categories: str,
        photo: bytes | None = None,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> httpx2.Response:
        """Segment a photo."""
        return self.http.post(
            f"/segment{query}",
            files={"image": photo or self.photo},
            data={"categories": categories, **fields},
            headers=headers,
        )

    def category(self, name: str = "cat") -> Json:
        """The category as the API describes it."""
        return self.http.get(f"/categories/{name}").json()

    def job(self, job_id: str) -> Json:
        """The job as the API describes it."""
        return self.http.get(f"/jobs/{job_id}").json()

    def wait(self, job_id: str, until: Callable[[Json], bool] = lambda job: job["status"] in ENDED) -> Json:
        """The job when it has ended, or when the condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not until(job := self.job(job_id)):
            assert time.monotonic() < deadline, job
            time.sleep(0.01)
        return job

    def wait_running(self, job_id: str) -> Json:
        """The job when it has done its first step."""
        return self.wait(job_id, lambda job: job["step"] > 0)

    def follow(self, job_id: str) -> list[Json]:
        """All events of a job, to the last."""
        answer = self.http.get(f"/jobs/{job_id}/events")
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Asserts that all that is stored is in the end as it was."""
        before = self.stored()
        yield
        assert self.stored() == before

    def stored(self) -> dict[bytes, object]:
        """All that the store holds, but for the readiness probe, receipts, and the job engine's own keys."""
        foreign = (keys.PROBE.encode(), keys.receipt("").encode(), b"exemplar:docket")
        return {key: self._read(key) for key in self.redis.scan_iter() if not key.startswith(foreign)}

    def _read(self, key: bytes) -> object:
        # Not DUMP: it tells a hash in the order of its table, which the server may change at any time.
        readers = {
            b"string": self.redis.get,
            b"hash": self.redis.hgetall,
            b"list": lambda key: self.redis.lrange(key, 0, -1),
            b"zset": lambda key: self.redis.zrange(key, 0, -1, withscores=True),
        }
        return readers[self.redis.type(key)](key)


Start = Callable[..., AbstractContextManager[Api]]


@pytest.fixture(scope="session")
def start_on(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Start:
    """Starts the application on a database: `with start_on(url, queue_limit=1) as api`. Jobs have three steps."""

    @contextmanager
    def started(
        database: str | None,
        loaded: Sequence[Backbone] = (tiny,),
        client: tuple[str, int] = ("127.0.0.1", 50007),
        **settings: Any,
    ) -> Iterator[Api]:
        folder = tmp_path_factory.mktemp("data")
        # One thread: where tests run beside other work, the barriers of several cost seconds.
        few_steps = {"tune_steps": 3, "threads": 1} | settings
        app = create_app(Settings(redis_url=database, data_dir=folder, **few_steps), loaded=loaded)
        store = database or f"unix://{folder}/valkey.sock"
        with TestClient(app, base_url="http://localhost", client=client) as http, Redis.from_url(store) as redis:
            deadline = time.monotonic() + DEADLINE_S
            while http.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield Api(http, redis)

    return started


@pytest.fixture
def start(database: str, start_on: Start) -> Start:
    """Starts the application on this test's database: `with start(queue_limit=1) as api`."""
    return partial(start_on, database)


@pytest.fixture
def api(start: Start) -> Iterator[Api]:
    """The application with default settings and the tiny model."""
    with start() as running:
        yield running


@pytest.fixture(scope="module")
def shared(new_database: NewDatabase, start_on: Start) -> Iterator[Api]:
    """The same without a worker, for all tests of a file that mind nothing but what they do themselves."""
    with new_database() as database, start_on(database, worker=False) as running:
        yield running
