"""Troubles: each breaks the running processes in one way for a while and mends them again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx2
from redis.exceptions import RedisError

from .journal import Journal
from .processes import Process, Store, application, free_port, ready, wait_until
from .proxy import Proxy

# With fsync every second the store may answer before it has passed a write to the kernel: up to two seconds.
EVERYSEC_S = 2.5
FIRST_TROUBLE_S = 1.0

Trouble = Callable[["Plant", float], None]


class Plant:
    """The running processes: a store, a proxy in front of it, and a service and a worker behind the proxy.

    Args:
        folder: Of the store's file and all logs.
        model: What `EXEMPLAR_BACKBONE` says.
        fsync: The store's policy, `always` or `everysec`.
        journal: Told of times whose writes the store may have lost.
        settings: Further settings of the service and the worker.
    """

    def __init__(self, folder: Path, *, model: str, fsync: str, journal: Journal, **settings: str) -> None:
        self.store = Store(folder, fsync=fsync)
        self.proxy = Proxy(self.store.port)
        self.doubted = 0  # acknowledged operations that the store may have lost
        self._fsync = fsync
        self._folder = folder
        self._journal = journal
        self._settings = {
            "backbone": model, "tune_steps": "3", "threads": "1", "worker": "false",
            "max_examples": "24",
        } | settings  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start everything; in the end kill what runs."""
        with ExitStack() as stack:
            self.store.start()
            stack.callback(self.store.kill)
            wait_until(self.store.answers, "the store answers")
            stack.enter_context(self.proxy)
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            settings = self._settings | {"redis_url": f"redis://127.0.0.1:{self.proxy.port}", "port": str(port)}
            self.service = application("service", ["serve"], folder=self._folder, settings=settings)
            self.worker = application("worker", ["worker"], folder=self._folder, settings=settings)
            for process in (self.service, self.worker):
                process.start()
                stack.callback(process.kill)
            wait_until(lambda: ready(self.url), "the service is ready")
            yield

    @property
    def processes(self) -> tuple[Process, Process, Process]:
        """All that may be killed."""
        return self.store, self.service, self.worker

    def supervise(self) -> None:
        """Start what ended of its own accord."""
        for process in self.processes:
            process.supervise()

    def pause(self, seconds: float) -> None:
        """Wait, and supervise meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.supervise()
            time.sleep(min(0.1, left))

    def mended(self) -> bool:
        """True once the service is ready again."""
        self.supervise()
        return ready(self.url)

    def documented(self) -> Any:
        """The OpenAPI document of the service."""
        return httpx2.get(f"{self.url}/openapi.json").json()

    def kill_store(self) -> None:
        """Kill the store, and doubt what it may have lost."""
        self.store.kill()
        if self._fsync != "always":
            now = time.monotonic()
            self.doubted += self._journal.doubt(now - EVERYSEC_S, now)

    def configure(self, name: str, value: object) -> None:
        """Change a setting of the store."""
        with self.store.client() as client:
            client.config_set(name, value)


def _kill_store(plant: Plant, seconds: float) -> None:
    plant.kill_store()
    time.sleep(seconds)
    plant.store.start()
    wait_until(plant.store.answers, "the store answers")


def _kill_service(plant: Plant, seconds: float) -> None:
    plant.service.kill()
    time.sleep(seconds / 4)
    plant.service.start()


def _kill_worker(plant: Plant, seconds: float) -> None:
    plant.worker.kill()
    time.sleep(seconds / 4)
    plant.worker.start()


def _stopping(process: Callable[[Plant], Process]) -> Trouble:
    def stop(plant: Plant, seconds: float) -> None:
        stopped = process(plant)
        stopped.stop()
        time.sleep(seconds)
        stopped.go_on()

    return stop


def _cut(plant: Plant, seconds: float) -> None:
    plant.proxy.cut()
    plant.pause(seconds)
    plant.proxy.mend()


def _slow(plant: Plant, seconds: float) -> None:
    plant.proxy.delay_s = seconds / 10
    plant.pause(2 * seconds)
    plant.proxy.mend()


def _full(plant: Plant, seconds: float) -> None:
    plant.configure("maxmemory", 1)  # its policy is noeviction
    plant.pause(seconds)
    plant.configure("maxmemory", 0)


def _read_only(plant: Plant, seconds: float) -> None:
    """As a replica of a server that does not answer: it serves what it has and takes no writes."""
    with plant.store.client() as client:
        client.replicaof("127.0.0.1", 1)
        plant.pause(seconds)
        client.replicaof("NO", "ONE")


TROUBLES: dict[str, Trouble] = {
    "kill store": _kill_store,
    "kill service": _kill_service,
    "kill worker": _kill_worker,
    "stop store": _stopping(lambda plant: plant.store),
    "stop service": _stopping(lambda plant: plant.service),
    "stop worker": _stopping(lambda plant: plant.worker),
    "cut": _cut,
    "slow": _slow,
    "store full": _full,
    "store read-only": _read_only,
}


def mend(plant: Plant) -> None:
    """Undo whatever a trouble that was interrupted may have left."""
    plant.proxy.mend()
    for process in plant.processes:
        with suppress(AssertionError):
            process.go_on()
        process.start()
    wait_until(plant.store.answers, "the store answers")
    with suppress(RedisError), plant.store.client() as client:
        client.config_set("maxmemory", 0)
        client.replicaof("NO", "ONE")


def schedule(random: Random, *, kinds: list[str], times: int) -> list[tuple[str, float, float]]:
    """Every kind so many times in random order: its name, how long it lasts, and the calm after it, in seconds."""
    names = [name for name in kinds for _ in range(times)]
    random.shuffle(names)
    # Most are short, so that they meet requests in all states; some outlast every patience of the service.
    return [(name, random.choice([0.2, 0.5, 1.0, 2.0, 2.0, 6.0]), random.uniform(0.2, 2.0)) for name in names]
