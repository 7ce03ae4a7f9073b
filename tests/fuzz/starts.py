"""Start of a service on a damaged store, against its start on a sound one: `python -m tests.fuzz.starts`.

Fills a store, copies it, damages the copy, and starts a service on fresh copies of both in turn.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import httpx2
from redis import Redis
from rich.console import Console

from app.storage.server import EmbeddedServer
from tests.chaos.processes import serving, wait_until
from tests.chaos.run import write_model
from tests.command_line import command_line
from tests.soak.load import ENDED

from .uploads import seeds

# Largest median of the damaged store's starts, as a multiple of the sound one's.
MOST = 1.2
_BOX = json.dumps([2, 3, 7, 5])
_JUNK = (b"{{{", b"\xff\xfe", b"", b"[" * 10_000)


def main() -> int:
    """Read the options, measure, and tell the medians. Exit status 1 if damage makes a start slower than allowed."""
    parser = command_line("fuzz.starts", __doc__)
    parser.add_argument("--categories", type=int, default=200, help="categories with an adapter")
    parser.add_argument("--taught", type=int, default=40, help="of these, categories with an example and a job")
    parser.add_argument("--damaged", type=int, default=20, help="damaged records of each kind")
    parser.add_argument("--starts", type=int, default=5, help="starts on each store")
    given = parser.parse_args()
    console = Console()
    console.print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_model(folder / "model")
        _fill(folder / "sound", model, categories=given.categories, taught=given.taught)
        shutil.copytree(folder / "sound", folder / "damaged", ignore=shutil.ignore_patterns("*.sock", "*.lock"))
        _damage(folder / "damaged", Random(given.seed), number=given.damaged)
        times_s: dict[str, list[float]] = {"sound": [], "damaged": []}
        for _ in range(given.starts):
            for name, taken in times_s.items():
                seconds, skipped = _start(folder, name, model)
                taken.append(seconds)
                console.print(f"{name}: ready after {seconds:.2f} s, skips {skipped} records")
    sound, damaged = median(times_s["sound"]), median(times_s["damaged"])
    console.print(f"medians: sound {sound:.2f} s, damaged {damaged:.2f} s, ratio {damaged / sound:.2f}")
    return 1 if damaged > MOST * sound else 0


@contextmanager
def _serving(data_dir: Path, model: str) -> Iterator[str]:
    with serving(data_dir, backbone=model, tune_steps="1", threads="1") as (process, url):
        yield url
        process.end(timeout_s=60)


def _fill(data_dir: Path, model: str, *, categories: int, taught: int) -> None:
    """Teach some categories, and give the adapter of the first to all others."""
    with _serving(data_dir, model) as url, httpx2.Client(base_url=url, timeout=60) as http:
        jobs = []
        for number in range(taught):
            answer = http.post(
                f"/categories/thing {number}/example", files={"image": seeds()[0]}, data={"box": _BOX}
            ).raise_for_status()
            jobs.append(answer.json()["job"]["id"])
        for job in jobs:
            wait_until(lambda job=job: http.get(f"/jobs/{job}").json()["status"] in ENDED, "a job ends")
        raw = http.get("/categories/thing 0/adapter").raise_for_status().content
        for number in range(taught, categories):
            http.put(f"/categories/thing {number}/adapter", content=raw).raise_for_status()


def _damage(data_dir: Path, random: Random, *, number: int) -> None:
    """Damage so many records of each kind: jobs, categories, examples, adapters and rankings."""
    with EmbeddedServer.start(data_dir), Redis(unix_socket_path=str(data_dir / "valkey.sock")) as redis:
        for pattern, field in (("job:*", "status"), ("category:{*}", "prompts"), ("category:{*}:example:*", None),
                               ("category:{*}:adapter:*", None)):  # fmt: skip
            found = sorted(key for key in redis.scan_iter(f"exemplar:{pattern}", count=1000) if _is_one(key, pattern))
            for key in random.sample(found, min(number, len(found))):
                _spoil(redis, random, key, field)
        for one in range(number):
            redis.set(f"exemplar:layers:model {one}", random.choice(_JUNK))
            redis.set(f"exemplar:layers:model {one}:ranking", random.choice(_JUNK))


def _is_one(key: bytes, pattern: str) -> bool:
    """True unless a pattern for records also found their parts."""
    return pattern != "category:{*}" or key.endswith(b"}")


def _spoil(redis: Any, random: Random, key: bytes, field: str | None) -> None:
    if field is None:
        redis.delete(key)
        redis.set(key, random.choice(_JUNK))
    else:
        redis.hset(key, field, random.choice(_JUNK))


def _start(folder: Path, name: str, model: str) -> tuple[float, int]:
    """Seconds from the start of a process until it is ready, and the number of records that it skips."""
    data_dir = folder / "copy"
    shutil.rmtree(data_dir, ignore_errors=True)
    shutil.copytree(folder / name, data_dir, ignore=shutil.ignore_patterns("*.sock", "*.lock", "*.log"))
    began = time.monotonic()
    with _serving(data_dir, model) as url:
        seconds = time.monotonic() - began
        httpx2.get(f"{url}/categories", timeout=60)
        return seconds, len(httpx2.get(f"{url}/readyz", timeout=60).json()["unreadable"])


if __name__ == "__main__":
    sys.exit(main())
