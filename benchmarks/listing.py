"""Benchmark of a long list of categories: a page of `GET /categories` must not cost more because more are stored.

`python -m benchmarks.listing` prints the rows alone.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import httpx2 as httpx
from rich.console import Console

from app.demo import running_service

from .copies import empty_store, store_copies, teach_one
from .measure import Row, table

_FEW, _MANY = 1_000, 100_000
_ROUNDS = 15


def listing_rows(console: Console) -> list[Row]:
    """Time of the first page, and of one in the middle, of 100,000 categories against 1,000."""
    with empty_store() as few, empty_store() as many, running_service(console, redis_url=few) as usual:
        teach_one(usual.url)
        asyncio.run(store_copies(few, few, _FEW))
        asyncio.run(store_copies(few, many, _MANY))
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
