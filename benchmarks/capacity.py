"""How many replicas a load needs: the lane simulated with measured times, and the simulation held to the service.

`python -m benchmarks.capacity` measures the service on this machine, compares its answer times under random arrivals
with simulated ones, and prints the tables of docs/scaling.md.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from redis.asyncio import Redis
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.client import Client
from app.demo import EXAMPLES, running_service
from app.method.adapter import adapter_from_bytes
from app.storage.categories import CategoryStore
from app.storage.keys import category_id
from app.storage.server import EmbeddedServer

from .measure import percentile
from .service import adapter_of, import_copies, peak_bytes, photos_of_a_camera, words

SIDE_BY_SIDE = 2  # requests that the lane takes at once on two cores

_WANTED_P95_S = 1.0
_RATES = (10, 1_000, 100_000)
_CATEGORIES = 10
_ALONE = 40
_SATURATED = 48
_OPEN_LOOP = 80
_SHARES_OF_SATURATION = (0.3, 0.6, 0.8)
_SIMULATED = 40_000
_STORED = 400


@dataclass(frozen=True)
class ServiceTimes:
    """What one replica was measured to take.

    Attributes:
        alone_s: Seconds of requests that had the replica to themselves.
        together: How many times as long one takes beside `SIDE_BY_SIDE` − 1 others.
    """

    alone_s: tuple[float, ...]
    together: float

    @property
    def most_per_s(self) -> float:
        """Requests per second of a replica whose queue is never empty."""
        return SIDE_BY_SIDE / (self.together * statistics.fmean(self.alone_s))


def latencies(times: ServiceTimes, *, per_s: float, requests: int, seed: int = 0) -> np.ndarray:
    """Seconds from a request's arrival to its answer, at a replica that random callers ask `per_s` times a second.

    The lane as it is: it waits for a request and takes those that wait behind it along, at most `SIDE_BY_SIDE`; each is
    answered when it is done, the next ones begin when all of them are.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / per_s, requests))
    spent = rng.choice(times.alone_s, requests)
    ended = np.empty(requests)
    free, first = 0.0, 0
    while first < requests:
        start = max(free, arrivals[first])
        waiting = int(np.searchsorted(arrivals, start, side="right")) - first
        end = first + min(max(waiting, 1), SIDE_BY_SIDE)
        ended[first:end] = start + spent[first:end] * (times.together if end - first > 1 else 1)
        free, first = ended[first:end].max(), end
    return ended - arrivals


def highest_rate(times: ServiceTimes, *, p95_s: float) -> float:
    """Requests per second that a replica may be asked for so that 19 of 20 are answered in time; 0 if none are."""
    low, high = 0.0, times.most_per_s
    for _ in range(12):
        middle = (low + high) / 2
        answered = latencies(times, per_s=middle, requests=_SIMULATED)
        low, high = (middle, high) if np.quantile(answered, 0.95) <= p95_s else (low, middle)
    return low


def measured_times(client: Client, photos: Iterator[Path], names: Sequence[str]) -> ServiceTimes:
    """Times of requests one after the other, and how much longer they take where the lane always has two."""
    alone = [_timed(client, next(photos), names) for _ in track(range(_ALONE), description="alone", transient=True)]
    started = time.perf_counter()
    with ThreadPoolExecutor(2 * SIDE_BY_SIDE) as pool:
        list(pool.map(lambda photo: client.segment(photo, names), [next(photos) for _ in range(_SATURATED)]))
    per_request = (time.perf_counter() - started) / _SATURATED
    return ServiceTimes(tuple(alone), together=SIDE_BY_SIDE * per_request / statistics.fmean(alone))


def open_loop(client: Client, photos: Iterator[Path], names: Sequence[str], *, per_s: float) -> list[float]:
    """Answer times of requests that come at random moments, whatever has become of those before them."""
    arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / per_s, _OPEN_LOOP))
    started = time.perf_counter()

    def answered(at: float, photo: Path) -> float:
        client.segment(photo, names)
        return time.perf_counter() - started - at

    with ThreadPoolExecutor(_OPEN_LOOP) as pool:
        waiting = []
        for at in track(arrivals, description=f"{per_s:.1f} / s", transient=True):
            time.sleep(max(0.0, started + at - time.perf_counter()))
            waiting.append(pool.submit(answered, at, next(photos)))
        return [future.result() for future in waiting]


@dataclass(frozen=True)
class StoreCosts:
    """What the store was measured to take.

    Attributes:
        adapter_bytes: One version of an adapter, as it is sent.
        record_bytes: Memory of a category with one adapter, beyond the adapter itself.
        reads_per_s: Requests whose categories are read in a second, one request after the other.
        listing_s: Time of reading all categories, per category.
    """

    adapter_bytes: int
    record_bytes: float
    reads_per_s: float
    listing_s: float


async def store_costs(adapter: bytes) -> StoreCosts:
    """Fill a server with copies of an adapter and read them."""
    parsed = adapter_from_bytes(adapter)
    names = words(_STORED)
    ids = [category_id(name) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        server = await asyncio.to_thread(EmbeddedServer.start, Path(folder))
        try:
            async with Redis.from_url(server.url) as redis:
                store = CategoryStore(redis, versions_kept=5, max_examples=64)
                before = (await redis.info("memory"))["used_memory"]
                for name in names:
                    await store.adopt(name, replace(parsed, category=name), prompts=(name,))
                each = ((await redis.info("memory"))["used_memory"] - before) / _STORED
                started = time.perf_counter()
                for turn in range(_STORED):
                    await store.get_many([ids[(turn + k) % _STORED] for k in range(_CATEGORIES)])
                reads_per_s = _STORED / (time.perf_counter() - started)
                started = time.perf_counter()
                await store.all()
                listing_s = (time.perf_counter() - started) / _STORED
        finally:
            await asyncio.to_thread(server.stop)
    return StoreCosts(len(adapter), each - len(adapter), reads_per_s, listing_s)


def main() -> None:
    """Measure, simulate, compare, and print the tables."""
    console = Console(width=120)
    with photos_of_a_camera(200) as photos, running_service(console) as service, Client(service.url) as client:
        job = client.teach("taught", EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png")
        for _ in client.follow(job["id"]):
            pass
        adapter = adapter_of(service, "taught")
        names = words(_CATEGORIES)
        import_copies(service, names, adapter)
        for _ in range(5):
            client.segment(next(photos), names)
        times = measured_times(client, photos, names)
        console.print(
            f"alone {statistics.fmean(times.alone_s):.3f} s in the mean; two side by side take {times.together:.2f} "
            f"times as long; at most {times.most_per_s:.2f} / s"
        )
        check = Table("requests per second", "measured p50", "p95", "simulated p50", "p95", title="random arrivals")
        for share in _SHARES_OF_SATURATION:
            rate = share * times.most_per_s
            seen = open_loop(client, photos, names, per_s=rate)
            expected = latencies(times, per_s=rate, requests=_SIMULATED)
            quantiles = (percentile(seen, 0.5), percentile(seen, 0.95), *np.quantile(expected, [0.5, 0.95]))
            check.add_row(f"{rate:.2f} ({share:.0%})", *(f"{value:.2f} s" for value in quantiles))
        console.print(check)
        replica_bytes = peak_bytes(service.pid)
    store = asyncio.run(store_costs(adapter))
    console.print(
        f"the store: adapter {store.adapter_bytes:,} bytes, record {store.record_bytes:,.0f} bytes, "
        f"{store.reads_per_s:,.0f} reads of {_CATEGORIES} categories / s by one client, "
        f"{1e6 * store.listing_s:.0f} µs per category listed"
    )
    console.print(_capacity_table(times, replica_bytes, store))


def _capacity_table(times: ServiceTimes, replica_bytes: int, store: StoreCosts) -> Table:
    rate = highest_rate(times, p95_s=_WANTED_P95_S)
    photo_bytes = (EXAMPLES / "dog.jpg").stat().st_size
    title = f"{_CATEGORIES} categories, p95 ≤ {_WANTED_P95_S:.0f} s: {rate:.2f} / s and replica of two cores"
    made = Table("requests per second", "replicas", "memory", "photos in", "store reads", "stores", title=title)
    for wanted in _RATES:
        replicas = math.ceil(wanted / rate)
        made.add_row(
            f"{wanted:,}",
            f"{replicas:,}",
            f"{replicas * replica_bytes / 1e9:,.0f} GB",
            f"{wanted * photo_bytes / 1e6:,.1f} MB / s",
            f"{wanted * _CATEGORIES:,} records / s",
            f"{wanted / store.reads_per_s:.2f}",
        )
    return made


if __name__ == "__main__":
    main()
