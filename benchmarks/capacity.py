"""Number of replicas that a load needs, from a simulation of the lane that is validated against the service.

`python -m benchmarks.capacity` measures the service on this machine, compares its response times under random arrivals
with simulated ones, and prints the tables of docs/scaling.md.
"""

from __future__ import annotations

import asyncio
import heapq
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
from app.storage.adapter_file import adapter_from_bytes
from app.storage.categories import CategoryStore
from app.storage.names import CategoryName
from app.storage.server import EmbeddedServer

from .measure import percentile
from .service import adapter_of, import_copies, peak_bytes, photos_of_a_camera, words

SIDE_BY_SIDE = 2  # requests that the lane runs at once on two cores

_WANTED_P95_S = 2.0
# Assumed for a GPU: not measured.
_FASTER = 20
_RATES = (10, 1_000, 100_000)
_CATEGORIES = 10
_ALONE = 40
_SATURATED = 48
_OPEN_LOOP = 80
_SHARES_OF_SATURATION = (0.3, 0.6, 0.8)
_DRAWS = 50  # simulations with the same arrivals as measured
_SIMULATED = 40_000
_STORED = 400
_READS = 2_000


@dataclass(frozen=True)
class ServiceTimes:
    """Measured times of one replica.

    Attributes:
        alone_s: Seconds of requests that ran alone on the replica.
        together: Slowdown of a request that runs beside `SIDE_BY_SIDE` − 1 others.
    """

    alone_s: tuple[float, ...]
    together: float

    @property
    def most_per_s(self) -> float:
        """Requests per second of a replica whose queue is never empty."""
        return SIDE_BY_SIDE / (self.together * statistics.fmean(self.alone_s))


def random_arrivals(per_s: float, requests: int, *, seed: int = 0) -> np.ndarray:
    """Arrival times in seconds of independent requests (a Poisson process)."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / per_s, requests))


def latencies(times: ServiceTimes, arrivals: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Seconds from each request's arrival to its answer, at one replica.

    Model of the lane: a request that waits alone runs alone. If more wait, up to `SIDE_BY_SIDE` run together, the next
    as soon as one is done, until nobody else runs or waits.
    """
    requests = len(arrivals)
    spent = np.random.default_rng(seed).choice(times.alone_s, requests)
    ended = np.empty(requests)

    def pair_waits(moment: float, first: int) -> bool:
        return first + 1 < requests and arrivals[first + 1] <= moment

    free, first = 0.0, 0
    while first < requests:
        start = max(free, arrivals[first])
        if not pair_waits(start, first):
            free = ended[first] = start + spent[first]
            first += 1
            continue
        ends = [start] * SIDE_BY_SIDE  # when each of those that run together is done, the next one first
        while first < requests:
            start = max(ends[0], arrivals[first])
            if max(ends) <= start and not pair_waits(start, first):
                break
            ended[first] = start + spent[first] * times.together
            heapq.heapreplace(ends, ended[first])
            first += 1
        free = max(ends)
    return ended - arrivals


def highest_rate(times: ServiceTimes, *, p95_s: float) -> float:
    """Highest rate per second at which a replica answers 95 % of the requests within `p95_s`; 0 if there is none."""
    low, high = 0.0, times.most_per_s
    for _ in range(12):
        middle = (low + high) / 2
        answered = latencies(times, random_arrivals(middle, _SIMULATED), seed=1)
        low, high = (middle, high) if np.quantile(answered, 0.95) <= p95_s else (low, middle)
    return low


def measured_times(client: Client, photos: Iterator[Path], names: Sequence[str]) -> ServiceTimes:
    """Measure requests one after the other, and their slowdown when two always run together."""
    alone = [_timed(client, next(photos), names) for _ in track(range(_ALONE), description="alone", transient=True)]
    started = time.perf_counter()
    with ThreadPoolExecutor(2 * SIDE_BY_SIDE) as pool:
        list(pool.map(lambda photo: client.segment(photo, names), [next(photos) for _ in range(_SATURATED)]))
    per_request = (time.perf_counter() - started) / _SATURATED
    return ServiceTimes(tuple(alone), together=SIDE_BY_SIDE * per_request / statistics.fmean(alone))


def _timed(client: Client, photo: Path, names: Sequence[str]) -> float:
    started = time.perf_counter()
    client.segment(photo, names)
    return time.perf_counter() - started


def open_loop(client: Client, photos: Iterator[Path], names: Sequence[str], arrivals: np.ndarray) -> list[float]:
    """Response times of requests sent at these times, whether or not earlier ones have been answered."""
    started = time.perf_counter()

    def answered(at: float, photo: Path) -> float:
        client.segment(photo, names)
        return time.perf_counter() - started - at

    with ThreadPoolExecutor(len(arrivals)) as pool:
        waiting = []
        for at in track(arrivals, description="random arrivals", transient=True):
            time.sleep(max(0.0, started + at - time.perf_counter()))
            waiting.append(pool.submit(answered, at, next(photos)))
        return [future.result() for future in waiting]


@dataclass(frozen=True)
class StoreCosts:
    """Measured costs in the store.

    Attributes:
        adapter_bytes: Size of one adapter version, as it is sent.
        record_bytes: Memory of a category with one adapter, beyond the adapter itself.
        reads_per_s: Number of requests whose categories can be read per second of the store's CPU time.
        listing_s: Time of reading all categories, per category.
    """

    adapter_bytes: int
    record_bytes: float
    reads_per_s: float
    listing_s: float


async def store_costs(adapter: bytes) -> StoreCosts:
    """Fill a server with copies of an adapter and read them."""
    parsed = adapter_from_bytes(adapter)
    names = [CategoryName(word) for word in words(_STORED)]
    with tempfile.TemporaryDirectory() as folder:
        server = await asyncio.to_thread(EmbeddedServer.start, Path(folder))
        try:
            async with Redis.from_url(server.url) as redis:
                store = CategoryStore(redis, versions_kept=5, max_examples=64, job_ttl_s=60)
                before = (await redis.info("memory"))["used_memory"]
                for name in names:
                    await store.adopt(name, replace(parsed, category=name.text), prompts=(name.text,))
                each = ((await redis.info("memory"))["used_memory"] - before) / _STORED
                spent = await _processor_s(redis)
                for turn in range(_READS):
                    await store.get_many([names[(turn + k) % _STORED].id for k in range(_CATEGORIES)])
                reads_per_s = _READS / (await _processor_s(redis) - spent)
                started = time.perf_counter()
                await store.all()
                listing_s = (time.perf_counter() - started) / _STORED
        finally:
            await asyncio.to_thread(server.stop)
    return StoreCosts(len(adapter), each - len(adapter), reads_per_s, listing_s)


async def _processor_s(redis: Redis) -> float:
    """CPU time of the server in seconds, communication with clients included."""
    info = await redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


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
            arrivals = random_arrivals(rate, _OPEN_LOOP)
            seen = open_loop(client, photos, names, arrivals)
            expected = np.concatenate([latencies(times, arrivals, seed=seed) for seed in range(_DRAWS)])
            quantiles = (percentile(seen, 0.5), percentile(seen, 0.95), *np.quantile(expected, [0.5, 0.95]))
            check.add_row(f"{rate:.2f} ({share:.0%})", *(f"{value:.2f} s" for value in quantiles))
        console.print(check)
        replica_bytes = peak_bytes(service.pid)
    store = asyncio.run(store_costs(adapter))
    console.print(
        f"the store: adapter {store.adapter_bytes:,} bytes, record {store.record_bytes:,.0f} bytes, "
        f"{store.reads_per_s:,.0f} reads of {_CATEGORIES} categories per second of its processor, "
        f"{1e6 * store.listing_s:.0f} µs per category listed"
    )
    console.print(_capacity_table("two CPU cores, as measured", times, _WANTED_P95_S, replica_bytes, store))
    faster = replace(times, alone_s=tuple(spent / _FASTER for spent in times.alone_s))
    what = f"assumed: {_FASTER} times as fast"
    console.print(_capacity_table(what, faster, _WANTED_P95_S / _FASTER, replica_bytes, store))


def _capacity_table(what: str, times: ServiceTimes, p95_s: float, replica_bytes: int, store: StoreCosts) -> Table:
    rate = highest_rate(times, p95_s=p95_s)
    photo_bytes = (EXAMPLES / "dog.jpg").stat().st_size
    title = f"{what}; {_CATEGORIES} categories, p95 ≤ {p95_s:g} s: {rate:.2f} / s and replica"
    made = Table(
        "requests per second", "replicas", "their memory", "photos in", "stores, by their processor", title=title
    )
    for wanted in _RATES:
        replicas = math.ceil(wanted / rate)
        made.add_row(
            f"{wanted:,}",
            f"{replicas:,}",
            f"{replicas * replica_bytes / 2**30:,.0f} GiB",
            f"{wanted * photo_bytes / 1e6:,.1f} MB / s",
            f"{wanted / store.reads_per_s:.3f}",
        )
    return made


if __name__ == "__main__":
    main()
