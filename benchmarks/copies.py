"""Stores with many categories: copies of one that was taught."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from redis.asyncio import Redis
from rich.progress import track
from torch.nn import functional as F

from app.client import Client
from app.demo import EXAMPLES
from app.method.adapter import Adapter
from app.storage import keys
from app.storage.adapter_file import adapter_from_bytes, adapter_to_bytes
from app.storage.names import CategoryName
from app.storage.server import EmbeddedServer

_PER_PIPELINE = 100
_TAUGHT = CategoryName("taught")


@contextmanager
def empty_store() -> Iterator[str]:
    """Address of an embedded server that holds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer.start(Path(folder))
        try:
            yield server.url
        finally:
            server.stop()


def teach_one(url: str) -> None:
    """Teach the category that is copied, in a running service."""
    with Client(url) as client:
        job = client.teach(_TAUGHT.text, EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png")
        for _ in client.follow(job["id"]):
            pass


async def store_copies(source: str, target: str, count: int, *, adapters: bool = False) -> None:
    """Write copies of the taught category's records under other names; photos are not copied.

    Args:
        source: Address of the store that has the category.
        target: Address of the store to write to.
        count: Number of copies.
        adapters: True to write an adapter for each, too: its words are the name, its memory is noise around the
            category's.
    """
    async with Redis.from_url(source) as redis:
        record = await redis.hgetall(keys.category(_TAUGHT.id))
        examples = await redis.lrange(keys.example_ids(_TAUGHT.id), 0, -1)
        versions = await redis.hgetall(keys.versions(_TAUGHT.id))
        version = int(record[b"adapter_version"])
        adapter = adapter_from_bytes(await redis.get(keys.adapter(_TAUGHT.id, version)))
    async with Redis.from_url(target) as redis:
        starts = range(0, count, _PER_PIPELINE)
        for start in track(starts, description=f"storing {count:,} categories", transient=True):
            async with redis.pipeline(transaction=False) as pipe:
                for number in range(start, min(start + _PER_PIPELINE, count)):
                    name, fields = CategoryName(f"category {number}"), dict(record)
                    if adapters:
                        raw = adapter_to_bytes(varied(adapter, name.text, number))
                        pipe.set(keys.adapter(name.id, version), raw)
                        fields[f"sha256_{version}".encode()] = sha256(raw).hexdigest().encode()
                    pipe.hset(keys.category(name.id), mapping=fields | {b"name": name.text.encode()})
                    pipe.rpush(keys.example_ids(name.id), *examples)
                    pipe.hset(keys.versions(name.id), mapping=versions)
                    pipe.zadd(keys.CATEGORIES, {name.id: float(number)})
                await pipe.execute()


def varied(adapter: Adapter, name: str, seed: int) -> Adapter:
    """The adapter under another name, with noise of this seed around its memory."""
    assert adapter.memory
    inside = adapter.memory.inside
    noise = torch.randn(inside.shape, generator=torch.Generator().manual_seed(seed))
    other = F.normalize(inside.float() + 0.1 * noise, dim=1).to(inside)
    return replace(adapter, category=name, prompts=(name,), memory=replace(adapter.memory, inside=other))
