"""The circuit breaker, on a clock that the tests turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest
from redis.exceptions import ConnectionError

from app.storage.breaker import CHECK_S, GRACE_S, PATIENCE_S, PAUSE_S, PROBE_S, Breaker, StoreAwayError

SILENT = "no answer to a probe"


class FakeClock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self._now = 0.0
        self._alarms: list[tuple[float, asyncio.Event]] = []

    async def sleep(self, seconds: float) -> None:
        rings = asyncio.Event()
        self._alarms.append((self._now + seconds, rings))
        await rings.wait()

    async def advance(self, seconds: float) -> None:
        """Let time pass, and all that then happens."""
        await settle()
        self._now += seconds + 1e-9
        for at, rings in self._alarms:
            if at <= self._now:
                rings.set()
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Server:
    """A server that answers, hangs or is gone, and counts its probes and commands."""

    def __init__(self) -> None:
        self.state = "up"
        self.probes = 0
        self.commands = 0
        self.cut_off = 0
        self._continues = asyncio.Event()

    async def probe(self) -> None:
        self.probes += 1
        await self._reply()

    async def command(self) -> str:
        self.commands += 1
        await self._reply()
        return "reply"

    async def slow(self) -> str:
        """A command that takes until `resume`, while the server answers others."""
        self.commands += 1
        await self._wait()
        return "slow reply"

    def resume(self) -> None:
        self.state = "up"
        self._continues.set()

    async def _reply(self) -> None:
        if self.state == "gone":
            raise ConnectionError("refused")
        if self.state == "hangs":
            await self._wait()

    async def _wait(self) -> None:
        try:
            await self._continues.wait()
        except asyncio.CancelledError:
            self.cut_off += 1
            raise


class Bench:
    """A breaker in front of a server."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.server = Server()
        self.changes: list[str | None] = []
        self.breaker = Breaker(self.server.probe, sleep=self.clock.sleep, on_change=self.changes.append)

    def ask(self) -> asyncio.Task[str]:
        return asyncio.create_task(self.breaker.run(self.server.command))

    async def open(self) -> None:
        """Have the server hang, and the breaker find out."""
        self.server.state = "hangs"
        await self.fails_after(self.ask(), PATIENCE_S, CHECK_S, GRACE_S)

    async def fails_after(self, asked: Awaitable[str], *times_s: float) -> None:
        for time_s in times_s:
            await self.clock.advance(time_s)
        with pytest.raises(StoreAwayError):
            await asyncio.wait_for(asked, 1)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    async with bench.breaker:
        yield bench


def test_the_first_command_of_an_outage_fails_within_a_second() -> None:
    assert PATIENCE_S + CHECK_S + GRACE_S < 1
    assert PROBE_S + GRACE_S + PAUSE_S < 5


async def test_a_server_that_answers_is_not_probed(bench: Bench) -> None:
    assert await bench.ask() == "reply"
    assert (bench.server.probes, bench.changes) == (0, [])


async def test_an_error_of_the_command_is_the_callers(bench: Bench) -> None:
    async def wrong() -> str:
        raise ValueError("wrong type")

    with pytest.raises(ValueError, match="wrong type"):
        await bench.breaker.run(wrong)
    assert not bench.breaker.is_open


async def test_a_server_that_hangs_opens_it_and_then_commands_fail_at_once(bench: Bench) -> None:
    await bench.open()
    assert (bench.breaker.is_open, bench.changes) == (True, [SILENT])
    assert bench.server.cut_off == 2  # the command and the probe: neither keeps its connection
    await bench.fails_after(bench.ask())
    assert bench.server.commands == 1


async def test_a_command_that_takes_long_goes_on_while_the_server_answers_probes(bench: Bench) -> None:
    asked = asyncio.create_task(bench.breaker.run(bench.server.slow))
    for _ in range(7):
        await bench.clock.advance(PATIENCE_S)
    assert (asked.done(), bench.server.probes, bench.changes) == (False, 7, [])
    bench.server.resume()
    assert await asked == "slow reply"


async def test_one_probe_answers_all_who_wait(bench: Bench) -> None:
    bench.server.state = "hangs"
    asked = [bench.ask() for _ in range(5)]
    await bench.clock.advance(PATIENCE_S)
    assert bench.server.probes == 1
    await bench.clock.advance(CHECK_S)
    await bench.clock.advance(GRACE_S)
    for one in asked:
        await bench.fails_after(one)
    assert bench.changes == [SILENT]


async def test_an_answer_that_could_not_be_read_in_time_counts(bench: Bench) -> None:
    bench.server.state = "hangs"
    asked = bench.ask()
    await bench.clock.advance(PATIENCE_S)
    await bench.clock.advance(CHECK_S)
    bench.server.resume()
    assert await asked == "reply"
    assert bench.changes == []


async def test_the_first_answer_closes_it(bench: Bench) -> None:
    await bench.open()
    for time_s in (PROBE_S, GRACE_S, PAUSE_S):
        await bench.clock.advance(time_s)
    assert (bench.breaker.is_open, bench.server.probes) == (True, 3)
    bench.server.resume()
    await settle()
    assert (bench.breaker.is_open, bench.changes) == (False, [SILENT, None])
    assert await bench.ask() == "reply"


async def test_a_server_that_refuses_opens_it_and_says_why(bench: Bench) -> None:
    """As one that refuses the password, which its client does not try again."""
    bench.server.state = "gone"
    with pytest.raises(ConnectionError, match="refused"):
        await bench.ask()
    assert bench.changes == ["refused"]
    with pytest.raises(StoreAwayError, match="refused"):
        await bench.ask()
    assert bench.server.commands == 1


async def test_a_connection_that_fails_while_the_server_answers_is_no_outage(bench: Bench) -> None:
    async def cut() -> str:
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError, match="cut"):
        await bench.breaker.run(cut)
    assert (bench.server.probes, bench.changes) == (1, [])


async def test_a_server_that_refuses_is_probed_again_after_each_pause(bench: Bench) -> None:
    await bench.open()
    bench.server.state = "gone"
    for time_s in (PROBE_S, GRACE_S):
        await bench.clock.advance(time_s)
    probes = bench.server.probes
    for _ in range(3):
        await bench.clock.advance(PAUSE_S)
    assert bench.server.probes == probes + 3
    bench.server.state = "up"
    await bench.clock.advance(PAUSE_S)
    assert not bench.breaker.is_open


async def test_an_answer_to_somebody_else_closes_it(bench: Bench) -> None:
    await bench.open()
    bench.breaker.answered()
    bench.breaker.answered()
    assert (bench.breaker.is_open, bench.changes) == (False, [SILENT, None])


async def test_it_opens_again_in_the_next_outage(bench: Bench) -> None:
    await bench.open()
    bench.breaker.answered()
    await bench.open()
    assert bench.changes == [SILENT, None, SILENT]


async def test_a_caller_who_leaves_takes_the_command_along(bench: Bench) -> None:
    asked = asyncio.create_task(bench.breaker.run(bench.server.slow))
    await settle()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert bench.server.cut_off == 1


async def test_its_end_stops_the_probes() -> None:
    bench = Bench()
    async with bench.breaker:
        await bench.open()
        await settle()
    assert bench.server.cut_off == 3
    await bench.clock.advance(PROBE_S + PAUSE_S)
    assert bench.server.probes == 2
