"""Benchmarks of the running service with the embedded backbone, over HTTP."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
from PIL import Image, ImageChops
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.backbones.embedded import VOCABULARY
from app.client import Client
from app.demo import EXAMPLES, RunningService, running_service
from app.storage.adapter_file import adapter_from_bytes, adapter_to_bytes

from .measure import Row, percentile, text_ms

_MANY = 1000
_REQUESTS = 9


def service_rows(console: Console) -> tuple[list[dict[str, Any]], list[Row]]:
    """Median time of POST /segment with the time of each stage, and other response times."""
    with photos_of_a_camera() as photos, running_service(console) as service, Client(service.url) as client:
        rows = [_teach(client)]
        names, others = words(2 * _MANY)[::2], words(2 * _MANY)[1::2]
        import_copies(service, names, adapter_of(service, "taught"))
        stages = [
            {"kind": kind, "categories": count, **requests(client, photos, chosen[:count], f"{count} {kind}")}
            for kind, chosen in (("named", others), ("taught", names))
            for count in (1, 10, 100)
        ]
        console.print(_stage_table(stages))
        ten = next(row for row in stages if (row["kind"], row["categories"]) == ("taught", 10))
        rows.append(_floor_row(ten))
        rows += _many(service, client, photos, names, ten["p50_ms"] / 1000)
        rows.append(_first_use(service, client, photos))
        rows.append(_while_tuning(client, photos, names[:10]))
        rows.append(_beside_another_process(client, photos, names[:10], ten["p50_ms"]))
        rows.append(_at_once(client, photos, names[:10]))
    return stages, [*rows, rounds_row(console)]


def rounds_row(console: Console) -> Row:
    """Time of POST /segment with EXEMPLAR_METHOD=paper relative to the default, in the same run."""
    names = words(10)
    with (
        photos_of_a_camera() as photos,
        running_service(console) as usual,
        running_service(console, method="paper") as paper,
    ):
        p50 = []
        for rounds, service in ((20, paper), (3, usual)):
            with Client(service.url) as client:
                p50.append(requests(client, photos, names, f"10 named, {rounds} rounds")["p50_ms"])
    before, after = (text_ms(ms / 1000) for ms in p50)
    return Row(
        "POST /segment, p50, 10 named: EXEMPLAR_METHOD=paper (20 rounds of the CRF, no mask decoder) over the default",
        before,
        after,
        p50[0] / p50[1],
        "≥ 1",
    )


@contextmanager
def photos_of_a_camera(count: int = 160) -> Iterator[Iterator[Path]]:
    """Cycle through photos of 640 × 480, more than the image cache holds, so that each request encodes its photo."""
    with tempfile.TemporaryDirectory() as folder, Image.open(EXAMPLES / "dog.jpg") as dog:
        files = []
        for shift in range(count):
            files.append(Path(folder) / f"{shift}.jpg")
            ImageChops.offset(dog, 10 * shift).save(files[-1], quality=95)
        yield itertools.cycle(files)


def _teach(client: Client) -> Row:
    """Time from the upload of an example to the end of its job; the first job of a process is a warm-up."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        job = client.teach("taught", EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png", replace=True)
        *_, end = client.follow(job["id"])
        times.append(time.perf_counter() - started)
        assert end["status"] == "succeeded", end
    after = statistics.median(times[1:])
    return Row(
        "teach one category", "", text_ms(after), after, "≤ 2", f"seconds; first of the process {text_ms(times[0])}"
    )


def adapter_of(service: RunningService, category: str) -> bytes:
    """The adapter of a category as a file."""
    return httpx.get(f"{service.url}/categories/{category}/adapter").raise_for_status().content


def import_copies(service: RunningService, names: list[str], raw: bytes) -> None:
    """Import an adapter under other names and with other words, as different categories."""
    adapter = adapter_from_bytes(raw)
    with httpx.Client(base_url=service.url, timeout=60) as http:
        for name in track(names, description="importing adapters", transient=True):
            copy = adapter_to_bytes(replace(adapter, prompts=(name,)))
            http.put(f"/categories/{name}/adapter", content=copy).raise_for_status()


def words(count: int) -> list[str]:
    """Words of the vocabulary, evenly spaced."""
    words = [
        word for word in VOCABULARY.read_text().splitlines() if word.isascii() and word.isalpha() and len(word) > 4
    ]
    return words[:: len(words) // count][:count]


def requests(
    client: Client, photos: Iterator[Path], names: list[str], what: str, repeats: int = _REQUESTS
) -> dict[str, Any]:
    """Median time of a request for these categories, and of each of its stages; the first one is a warm-up."""
    client.segment(next(photos), names)  # the first use of an adapter reads it from the store
    times, stages = [], []
    for _ in track(range(repeats), description=what, transient=True):
        started = time.perf_counter()
        answer = client.segment(next(photos), names)
        times.append(1000 * (time.perf_counter() - started))
        stages.append(answer["timings_ms"])
    return {
        "p50_ms": statistics.median(times),
        "stages_ms": {name: statistics.median(stage[name] for stage in stages) for name in stages[0]},
    }


def _floor_row(ten: dict[str, Any]) -> Row:
    p50 = ten["p50_ms"]
    slowest = sorted(ten["stages_ms"].items(), key=lambda item: -item[1])[:3]
    note = "milliseconds; " + ", ".join(f"{name} {ms:.0f}" for name, ms in slowest)
    return Row("POST /segment, p50, 10 taught, CRF, 640 × 480", "", f"{p50:.0f} ms", p50, "≤ 150", note)


def _many(service: RunningService, client: Client, photos: Iterator[Path], names: list[str], ten_s: float) -> list[Row]:
    memory_ten = peak_bytes(service.pid)
    many_s = requests(client, photos, names, f"{len(names)} taught", repeats=3)["p50_ms"] / 1000
    memory_many = peak_bytes(service.pid)
    what = f"{len(names)} taught categories over 10"
    memory = [f"{size / 2**30:.2f} GiB" for size in (memory_ten, memory_many)]
    return [
        Row(f"{what}: time", text_ms(ten_s), text_ms(many_s), many_s / ten_s, "≤ 25"),
        Row(f"{what}: peak memory", *memory, memory_many / memory_ten, "≤ 3", "the first after 100 in one request"),
    ]


def peak_bytes(pid: int) -> int:
    """Peak memory of the process; 0 if the system doesn't report it."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _first_use(service: RunningService, client: Client, photos: Iterator[Path]) -> Row:
    """Time to read and parse an adapter on its first use in a replica: the `load` stage of the first request."""
    adapter = adapter_of(service, "taught")
    times = []
    for number in range(5):
        httpx.put(f"{service.url}/categories/new {number}/adapter", content=adapter).raise_for_status()
        times.append(client.segment(next(photos), [f"new {number}"])["timings_ms"]["load"])
    after = statistics.median(times)
    return Row(
        "first use of a new adapter", "", f"{after:.1f} ms", after, "≤ 50", f"milliseconds; {len(adapter)} bytes"
    )


def _while_tuning(client: Client, photos: Iterator[Path], names: list[str], count: int = 100) -> Row:
    def p95() -> float:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            client.segment(next(photos), names)
            times.append(time.perf_counter() - started)
        return percentile(times, 0.95)

    idle = p95()
    with _tuning_all_the_time(client):
        busy = p95()
    return Row("p95 of /segment while a job tunes, over idle", text_ms(idle), text_ms(busy), busy / idle, "≤ 1.3")


def _beside_another_process(client: Client, photos: Iterator[Path], names: list[str], alone_ms: float) -> Row:
    """Time of POST /segment beside a process that keeps one core busy, on a machine with two cores."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside_ms = requests(client, photos, names, "beside a busy process")["p50_ms"]
    finally:
        busy.kill()
        busy.wait()
    return Row(
        "POST /segment, p50, beside a process that keeps a core busy, over alone",
        text_ms(alone_ms / 1000),
        text_ms(beside_ms / 1000),
        beside_ms / alone_ms,
        "≤ 4",
    )


@contextmanager
def _tuning_all_the_time(client: Client) -> Iterator[None]:
    stop = threading.Event()

    def tune() -> None:
        while not stop.is_set():
            job = client.teach("busy", EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png", replace=True)
            *_, end = client.follow(job["id"])
            assert end["status"] == "succeeded", end

    with ThreadPoolExecutor(1) as pool:
        tuning = pool.submit(tune)
        time.sleep(1)
        try:
            yield
        finally:
            stop.set()
        tuning.result()  # raises what ended the tuning early


def _at_once(client: Client, photos: Iterator[Path], names: list[str], clients: int = 16, count: int = 48) -> Row:
    started = time.perf_counter()
    for _ in range(count // 3):
        client.segment(next(photos), names)
    one = (count // 3) / (time.perf_counter() - started)
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda photo: client.segment(photo, names), [next(photos) for _ in range(count)]))
    many = count / (time.perf_counter() - started)
    what = f"requests per second, {clients} clients over one"
    return Row(what, f"{one:.2f} / s", f"{many:.2f} / s", many / one, "≥ 1.5")


def _stage_table(rows: list[dict[str, Any]]) -> Table:
    stages = list(rows[0]["stages_ms"])
    made = Table("categories", "p50 ms", *stages, title="POST /segment, 640 × 480, CRF on; milliseconds")
    for row in rows:
        values = (f"{row['stages_ms'][stage]:.0f}" for stage in stages)
        made.add_row(f"{row['categories']} {row['kind']}", f"{row['p50_ms']:.0f}", *values)
    return made
