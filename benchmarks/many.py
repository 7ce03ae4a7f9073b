"""Benchmark of a request for 10,000 taught categories.

`python -m benchmarks.many` prints the row alone.
"""

from __future__ import annotations

import asyncio

from rich.console import Console

from app.client import Client
from app.demo import running_service

from .copies import empty_store, store_copies, teach_one
from .measure import Row, table, text_ms
from .service import peak_bytes, photos_of_a_camera, requests

_FEW, _MANY = 10, 10_000


def many_rows(console: Console) -> list[Row]:
    """Time of POST /segment without names where 10,000 categories are taught, against ten of them by name."""
    with empty_store() as few, empty_store() as many:
        with running_service(console, redis_url=few) as service:
            teach_one(service.url)
        asyncio.run(store_copies(few, many, _MANY, adapters=True))
        ten = [f"category {number}" for number in range(_FEW)]
        room = {"max_categories": str(_MANY), "adapter_cache_bytes": str(4 * 2**30)}
        with (
            running_service(console, redis_url=many, **room) as service,
            Client(service.url) as client,
            photos_of_a_camera() as photos,
        ):
            few_s = requests(client, photos, ten, f"{_FEW} taught")["p50_ms"] / 1000
            before = peak_bytes(service.pid)
            every = requests(client, photos, [], f"{_MANY:,} taught", repeats=3)
            after = peak_bytes(service.pid)
    many_s = every["p50_ms"] / 1000
    slowest = sorted(every["stages_ms"].items(), key=lambda item: -item[1])[:4]
    note = "; ".join(
        [
            ", ".join(f"{name} {text_ms(ms / 1000)}" for name, ms in slowest),
            f"peak memory {before / 2**30:.1f} and {after / 2**30:.1f} GiB, adapters of {_MANY:,} included",
        ]
    )
    what = f"{_MANY:,} taught categories over {_FEW}: time"
    return [Row(what, text_ms(few_s), text_ms(many_s), many_s / few_s, "≤ 40", note)]


def main() -> None:
    """Print the rows alone."""
    console = Console(width=180)
    console.print(table("Many taught categories", many_rows(console)))


if __name__ == "__main__":
    main()
