"""Run deploy/ray/serve.yaml on one node and print the results that its callers get as JSON.

Usage: `python deploy/ray/measure.py`.

At most two replicas run, with a store and a port of their own. Measured are: teaching through one replica and
segmenting through the other, scaling from one replica to two and back, killing a replica, more requests than the queue
takes, and requests per second. The EXEMPLAR_* settings apply, except that of the store; EXEMPLAR_QUEUE_LIMIT is 8, so
that few clients fill the queue.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import httpx2
import ray
import yaml
from ray import serve
from ray.serve.scripts import cli

from app.storage.server import EmbeddedServer

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
QUEUE_LIMIT = 8
CLIENTS = 6
PATIENCE_S = 120.0
SECONDS = 30.0

Json = dict[str, Any]


class Service:
    """A running service, under Ray or not."""

    def __init__(self, url: str) -> None:
        # No limit of connections: otherwise httpx2 would queue requests itself.
        self.http = httpx2.Client(base_url=url, timeout=PATIENCE_S, limits=httpx2.Limits(max_connections=None))
        self._photo = (EXAMPLES / "teacup.jpg").read_bytes()
        self._numbers = itertools.count()

    def segment(self, **form: str) -> httpx2.Response:
        """Segment a photo that is new to every replica: its file ends with a number, which decoders ignore."""
        photo = self._photo + next(self._numbers).to_bytes(8)
        return self.http.post("/segment", files={"image": photo}, data={"categories": "cup"} | form)

    def teach(self) -> httpx2.Response:
        """Teach the category `cup`."""
        files = {"image": self._photo, "mask": (EXAMPLES / "teacup_mask.png").read_bytes()}
        return self.http.post("/categories/cup/example", files=files, data={"mode": "replace"})

    @contextmanager
    def load(self) -> Iterator[Counter[str]]:
        """Segment with several clients while the body runs; yields a counter of their results."""
        seen: Counter[str] = Counter()
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                seen[outcome(self.segment)] += 1

        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(client) for _ in range(CLIENTS)]
            try:
                yield seen
            finally:
                stop.set()
            for one in clients:
                one.result()

    def requests_per_second(self, seconds: float) -> float:
        """Measure throughput with several clients."""
        with self.load() as seen:
            time.sleep(2)
            before, started = seen["200"], time.monotonic()
            time.sleep(seconds)
            return round((seen["200"] - before) / (time.monotonic() - started), 2)


class Site(Service):
    """The service under Ray, called through its proxy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = yaml.safe_load((REPOSITORY / "deploy/ray/serve.yaml").read_text())
        self._config["http_options"]["port"] = port = free_port()
        super().__init__(f"http://127.0.0.1:{port}")

    def apply(self, **scaling: Any) -> None:
        """Apply the config file with this scaling, as after an edit of the file."""
        (deployment,) = self._config["applications"][0]["deployments"]
        for name in ("autoscaling_config", "num_replicas"):
            deployment.pop(name, None)
        deployment.update(scaling)
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self._config))
        cli.main(["run", "--non-blocking", str(file)], standalone_mode=False)

    def replicas(self) -> set[str]:
        """Names of the replicas that answer now."""
        answers = [self.http.get("/healthz") for _ in range(12)]
        return {answer.headers["x-replica"] for answer in answers if answer.status_code == 200}

    def wait_for(self, count: int) -> float:
        """Wait until this many replicas answer, three times in a row; return the seconds."""
        started, right = time.monotonic(), 0
        while right < 3:
            right = right + 1 if len(self.replicas()) == count else 0
            assert time.monotonic() - started < PATIENCE_S, self.replicas()
            time.sleep(0.1)
        return time.monotonic() - started


def outcome(call: Callable[[], httpx2.Response]) -> str:
    """The result of a call as text."""
    try:
        answer = call()
    except httpx2.TransportError as error:
        return type(error).__name__
    if answer.status_code == 200:
        return "200"
    words = [str(answer.status_code), answer.headers["content-type"]]
    if "json" in words[1]:
        words.append(answer.json()["title"])
    words.append("from a replica" if "x-replica" in answer.headers else "from the proxy")
    if "retry-after" in answer.headers:
        words.append(f"Retry-After {answer.headers['retry-after']}")
    return ", ".join(words)


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def site() -> Iterator[Site]:
    """Start a Ray for this process, with two CPUs and a store."""
    # A short path outside the user's folder: socket paths are limited to about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ray") as folder, EmbeddedServer.start(Path(folder, "store")) as store:
        os.environ |= {
            "EXEMPLAR_REDIS_URL": store.url,
            "EXEMPLAR_QUEUE_LIMIT": str(QUEUE_LIMIT),
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.ray_serve:proxy_middlewares",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray's processes have their own module search path.
            "PYTHONPATH": str(REPOSITORY),
            # Otherwise Ray writes a token to the user's home folder.
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        try:
            ray.init(
                address="local",
                num_cpus=2,
                num_gpus=0,
                object_store_memory=100_000_000,
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=folder,
            )
            running = Site(Path(folder))
            with running.http:
                yield running
        finally:
            serve.shutdown()
            ray.shutdown()


def one_learns_another_knows(running: Site) -> Json:
    """Teach through one replica; segment through the other as soon as the job has ended."""
    taught = running.teach()
    job = taught.json()["job"]
    while job["status"] in ("queued", "running"):
        time.sleep(0.02)
        job = running.http.get(f"/jobs/{job['id']}").json()
    assert job["status"] == "succeeded", job
    ended = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        while True:
            # Two at once: Ray gives each replica one.
            answers = [call.result() for call in [pool.submit(running.segment, refine="none") for _ in range(2)]]
            waited_s = time.monotonic() - ended
            others = [answer for answer in answers if answer.headers["x-replica"] != taught.headers["x-replica"]]
            if others:
                (found,) = others[0].json()["categories"]
                return {
                    "taught_by": taught.headers["x-replica"],
                    "segmented_by": others[0].headers["x-replica"],
                    "adapter_version": found["adapter_version"],
                    "after_s": round(waited_s, 2),
                }


def a_replica_is_killed(running: Site) -> Json:
    """kill -9 one of two replicas under load, and count the results of callers in the seconds after."""
    before = running.replicas()
    with running.load() as seen:
        time.sleep(2)
        os.kill(replica_processes()[0], signal.SIGKILL)
        time.sleep(4)
    return {"answers": dict(seen), "kept": len(before & running.replicas())}


def replica_processes() -> list[int]:
    """Process ids of the replicas: Ray processes with this process among their ancestors."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.joinpath("cmdline").read_bytes().startswith(b"ray::ServeReplica:exemplar:exemplar"):
                pid = int(folder.name)
                if parent(parent(pid)) == os.getpid():  # the raylet's parent
                    found.append(pid)
        except FileNotFoundError:  # just gone
            continue
    return found


def scaled(running: Site, count: int) -> Json:
    """Change the number of replicas under load."""
    before = running.replicas()
    with running.load() as seen:
        running.apply(num_replicas=count)
        after_s = running.wait_for(count)
        time.sleep(2)
    return {"answers": dict(seen), "after_s": round(after_s, 1), "kept": len(before & running.replicas())}


def scaled_by_load(running: Site) -> Json:
    """Autoscale from one replica to two under load, and back afterwards, with short delays."""
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2}
    running.apply(autoscaling_config=scaling | {"upscale_delay_s": 2, "downscale_delay_s": 5})
    running.wait_for(1)
    with running.load() as seen:
        up_s = running.wait_for(2)
    return {"answers": dict(seen), "up_s": round(up_s, 1), "down_s": round(running.wait_for(1), 1)}


def too_many_at_once(running: Site, clients: int) -> Json:
    """Send one request per client at the same time, and count the results."""
    with ThreadPoolExecutor(clients) as pool:
        return dict(Counter(pool.map(lambda _: outcome(running.segment), range(clients))))


def everything() -> Iterator[tuple[str, Any]]:
    """Run all measurements, in an order that needs few changes of the deployment."""
    with site() as running:
        started = time.monotonic()
        running.apply(num_replicas=1)
        running.wait_for(1)
        yield "first_answer_s", round(time.monotonic() - started, 1)
        yield "requests_per_s_with_1", running.requests_per_second(SECONDS)
        yield "from_1_to_2", scaled(running, 2)
        yield "requests_per_s_with_2", running.requests_per_second(SECONDS)
        yield "one_learns_another_knows", one_learns_another_knows(running)
        yield "killed", a_replica_is_killed(running)
        yield "replaced_after_s", round(running.wait_for(2), 1)
        yield "from_2_to_1", scaled(running, 1)
        yield "40_at_once", too_many_at_once(running, 40)
        yield "160_at_once", too_many_at_once(running, 160)
        yield "by_load", scaled_by_load(running)


def what_matters() -> Iterator[tuple[str, Any]]:
    """Run the measurements that tests check."""
    with site() as running:
        running.apply(num_replicas=2)
        running.wait_for(2)
        yield "one_learns_another_knows", one_learns_another_knows(running)
        yield "at_once", too_many_at_once(running, 160)
        yield "killed", a_replica_is_killed(running)


def main() -> None:
    """Run with no argument, with `--short`, or with the address of another service to measure its throughput."""
    (word,) = sys.argv[1:] or [""]
    if word.startswith("http"):
        found: Json = {"requests_per_s": Service(word).requests_per_second(SECONDS)}
    else:
        found = {}
        with redirect_stdout(sys.stderr):  # Ray's own lines
            for name, value in what_matters() if word == "--short" else everything():
                found[name] = value
                print(name, value, flush=True)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
