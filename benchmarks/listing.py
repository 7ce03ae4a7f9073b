"""Benchmark of a long list of categories: a page of `GET /categories` must not cost more because more are stored.

`python -m benchmarks.listing` prints the rows alone.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
from redis.asyncio import Redis
from rich.console import Console

from app.client import Client
from app.demo import EXAMPLES, running_service
from app.storage import keys
from app.storage.names import CategoryName
from app.storage.server import EmbeddedServer

from .measure import Row, table

_FEW, _MANY = 1_000, 100_000
_ROUNDS = 15
_PER_PIPELINE = 1_000
_TAUGHT = CategoryName("taught")


def listing_rows(console: Console) -> list[Row]:
    """Time of the first page, and of one in the middle, of 100,000 categories against 1,000."""
    with _store() as few, _store() as many, running_service(console, redis_url=few) as usual:
        with Client(usual.url) as client:
            job = client.teach(_TAUGHT.text, EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png")
            for _ in client.follow(job["id"]):
                pass
        with console.status(f"storing {_MANY:,} categories"):
            asyncio.run(_store_copies(few, few, _FEW))
            asyncio.run(_store_copies(few, many, _MANY))
        with running_service(console, redis_url=many) as large:
            urls = (f"{usual.url}/categories", f"{large.url}/categories", _middle(f"{large.url}/categories"))
            first_of_few, first, middle = _medians_s(urls)
    note = f"milliseconds; page 500: {1000 * middle:.0f} ms"
    return [
        Row(f"GET /categories, first page of {_MANY:,}", "", f"{1000 * first:.0f} ms", 1000 * first, "≤ 50", note),
        Row(
            f"… of {_MANY:,} over {_FEW:,} categories",
            f"{1000 * first_of_few:.0f} ms",
            f"{1000 * first:.0f} ms",
            first / first_of_few,
            "≤ 1.5",
        ),
    ]


@contextmanager
def _store() -> Iterator[str]:
    """Address of an embedded server that holds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer.start(Path(folder))
        try:
            yield server.url
        finally:
            server.stop()


async def _store_copies(source: str, target: str, count: int) -> None:
    """Write copies of the taught category's records under other names; adapters and photos are not copied."""
    async with Redis.from_url(source) as redis:
        record = await redis.hgetall(keys.category(_TAUGHT.id))
        examples = await redis.lrange(keys.example_ids(_TAUGHT.id), 0, -1)
        versions = await redis.hgetall(keys.versions(_TAUGHT.id))
    async with Redis.from_url(target) as redis:
        for start in range(0, count, _PER_PIPELINE):
            async with redis.pipeline(transaction=False) as pipe:
                for number in range(start, start + _PER_PIPELINE):
                    name = CategoryName(f"category {number}")
                    pipe.hset(keys.category(name.id), mapping=record | {b"name": name.text.encode()})
                    pipe.rpush(keys.example_ids(name.id), *examples)
                    pipe.hset(keys.versions(name.id), mapping=versions)
                    pipe.zadd(keys.CATEGORIES, {name.id: float(number)})
                await pipe.execute()


def _middle(url: str, pages: int = 500) -> str:
    """Address of a later page of a hundred."""
    following = f"{url}?limit=1000"
    with httpx.Client(timeout=60) as http:
        for _ in range(pages // 10):
            link = http.get(following).raise_for_status().links["next"]
            following = str(httpx.URL(url).join(link["url"]))
    return following.replace("limit=1000", "limit=100")


def _medians_s(urls: tuple[str, ...]) -> list[float]:
    """Median time of each address in seconds, asked by turns: a change of the machine's pace meets all."""
    times: list[list[float]] = [[] for _ in urls]
    with httpx.Client(timeout=60) as http:
        for _ in range(1 + _ROUNDS):
            for url, spent in zip(urls, times, strict=True):
                started = time.perf_counter()
                http.get(url).raise_for_status()
                spent.append(time.perf_counter() - started)
    return [statistics.median(spent[1:]) for spent in times]


def main() -> None:
    """Print the rows alone."""
    console = Console(width=180)
    console.print(table("A long list of categories", listing_rows(console)))


if __name__ == "__main__":
    main()
