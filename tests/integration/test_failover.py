"""Failover of the store: the address leads to another server, and the old one keeps its connections, as a replica."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ReadOnlyError

from app.storage import keys
from app.storage.connection import connect
from app.storage.server import EmbeddedServer

Failover = Callable[[], Redis]


@pytest.fixture
def address(tmp_path: Path) -> Path:
    """The socket that clients connect to: a link to that of the primary."""
    return tmp_path / "store.sock"


@pytest.fixture
def failover(tmp_path: Path, address: Path) -> Iterator[Failover]:
    """Demotes the primary and leads the address to another server, whose client it returns."""
    folders = [tmp_path / "old", tmp_path / "new"]
    with (
        EmbeddedServer.start(folders[0]) as old,
        EmbeddedServer.start(folders[1]) as new,
        Redis.from_url(old.url) as demoted,
        Redis.from_url(new.url) as primary,
    ):
        address.symlink_to(folders[0] / "valkey.sock")

        def fail_over() -> Redis:
            demoted.replicaof("127.0.0.1", 1)
            address.unlink()
            address.symlink_to(folders[1] / "valkey.sock")
            return primary

        yield fail_over


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_client_leaves_the_demoted_server(address: Path, failover: Failover, transaction: bool) -> None:
    async with connect(f"unix://{address}") as client:

        async def write(key: str) -> None:
            await client.set(key, "1")
            async with client.pipeline(transaction=transaction) as pipe:
                await pipe.set(f"{key} in a pipeline", "1").execute()

        await write("before")
        primary = failover()
        await write("after")
    assert set(primary.scan_iter()) == {b"after", b"after in a pipeline"}


async def test_what_other_connections_read_is_of_the_new_server_too(address: Path, failover: Failover) -> None:
    async with connect(f"unix://{address}") as client:
        await client.set("key", "old")
        await asyncio.gather(*(client.blpop(["nothing"], timeout=0.2) for _ in range(5)))  # five connections
        failover()
        await client.set("key", "new")
        assert await asyncio.gather(*(client.get("key") for _ in range(5))) == [b"new"] * 5


async def test_a_store_that_stays_read_only_refuses_at_once(address: Path, failover: Failover) -> None:
    async with connect(f"unix://{address}") as client, AsyncRedis.from_url(f"unix://{address}") as old:
        await old.replicaof("127.0.0.1", 1)
        with pytest.raises(ReadOnlyError):
            async with asyncio.timeout(2):
                await client.set("key", "1")


def test_a_service_teaches_on_and_keeps_its_rate_limit(address: Path, failover: Failover, start_on) -> None:
    with start_on(f"unix://{address}", rate_limit="1000000/minute") as api:
        api.taught("cat")
        primary = failover()
        api.taught("dog")
        assert [category["name"] for category in api.http.get("/categories").json()] == ["dog"]
        assert primary.keys(f"{keys.RATE_LIMIT}*")
