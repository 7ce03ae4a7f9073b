"""Connections: one sentence for an address that can't be used; many commands share few connections."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.errors import InvalidInputError, UnavailableError
from app.storage import connection, keys
from app.storage.connection import connect, write_problem


async def test_a_malformed_address() -> None:
    with pytest.raises(InvalidInputError, match="EXEMPLAR_REDIS_URL"):
        async with connect("nonsense"):
            pass


async def test_nothing_answers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(connection, "_RESTART_S", 0.1)
    with pytest.raises(UnavailableError, match="EXEMPLAR_REDIS_URL"):
        async with connect(f"unix://{tmp_path}/nothing.sock"):
            pass


async def test_more_commands_at_once_than_connections_wait_their_turn(database: str) -> None:
    async with connect(database, connections=3) as client:
        counts = await asyncio.gather(*(client.incr("calls") for _ in range(31)))
    assert sorted(counts) == [*range(1, 32)]


async def test_the_probe_writes_for_a_second(database: str) -> None:
    async with connect(database) as client:
        assert await write_problem(client) is None
        assert 0 < await client.pttl(keys.PROBE) <= 1000


async def test_the_probe_does_not_wait_for_a_server_that_hangs(database: str, monkeypatch) -> None:
    async with connect(database) as client:

        async def hangs(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(client, "set", hangs)
        monkeypatch.setattr(connection, "_PROBE_TIMEOUT_S", 0.05)
        assert await write_problem(client) == "The store does not take writes."
