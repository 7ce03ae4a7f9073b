"""Circuit breaker in front of a server: once it does not answer, commands fail at once until it answers again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, Self, TypeVar

from redis.exceptions import ConnectionError, RedisError

Result = TypeVar("Result")
Command = Callable[[], Awaitable[Result]]

# A command that takes longer is not stopped, but the server is probed. Most commands take a millisecond.
PATIENCE_S = 0.3
# The server must answer a probe in this time; a killed server may be back in it. With the times above and below, the
# first command of an outage fails within a second.
CHECK_S = 0.4
# Added to every wait for a probe, as a second wait: if this process was held up, the first ends before an answer that
# is there could be read.
GRACE_S = 0.1
# Probes of a server that is away: one waits this long for its answer, and the next follows after the pause.
PROBE_S = 1.0
PAUSE_S = 0.25


class StoreAwayError(RedisError):
    """The store does not answer."""


class Breaker:
    """Lets commands through while the server answers.

    It is closed at first. A command that takes long has the server probed: if the server answers, the command goes on,
    however long it takes, because a large upload over a slow network is no outage; if not, the breaker opens. While it
    is open, commands fail at once and the server is probed again and again; the first answer closes it. A command whose
    connection fails has the server probed too, since its client does not try again where the password is refused.

    Args:
        probe: Asks the server for a sign of life, over a connection of its own; raises an error if it gets none.
        sleep: Waits for a number of seconds. All times are measured with it.
        on_change: Called with the reason when the breaker opens and with None when it closes.
    """

    def __init__(
        self,
        probe: Command[object],
        *,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
        on_change: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._probe = probe
        self._sleep = sleep
        self._on_change = on_change
        self._reason = ""  # why the last probe failed
        self._check: asyncio.Task[bool] | None = None
        self._prober: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _cancel(*(task for task in (self._check, self._prober) if task))

    @property
    def is_open(self) -> bool:
        """True while commands fail at once."""
        return self._prober is not None

    async def run(self, command: Command[Result]) -> Result:
        """Run a command.

        Raises:
            StoreAwayError: If the server does not answer. The command may still be executed later, by a server that
                hangs and received it.
        """
        if self.is_open:
            raise StoreAwayError(self._reason)
        running = asyncio.ensure_future(command())
        try:
            while not await self._ends(running, within_s=PATIENCE_S):
                if not await self._answers() and not running.done():
                    raise StoreAwayError(self._reason)
            if isinstance(running.exception(), ConnectionError):
                await self._answers()
            return running.result()
        finally:
            await _cancel(running)

    def answered(self) -> None:
        """Close the breaker, because the server answered somebody."""
        if self._prober is not None:
            self._prober.cancel()
            self._prober = None
            self._on_change(None)

    async def _answers(self) -> bool:
        """Probe the server, once for all who ask meanwhile; open the breaker if it does not answer."""
        if self.is_open:
            return False
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._answers_within(CHECK_S))
        answers = await asyncio.shield(self._check)
        if not answers and not self.is_open:
            # In a context of its own: its log lines are not those of the request that found the server away.
            self._prober = asyncio.create_task(self._wait_for_an_answer(), context=Context())
            self._on_change(self._reason)
        return answers

    async def _wait_for_an_answer(self) -> None:
        while not await self._answers_within(PROBE_S):
            await self._sleep(PAUSE_S)
        self._prober = None
        self._on_change(None)

    async def _answers_within(self, seconds: float) -> bool:
        probe = asyncio.ensure_future(self._probe())
        try:
            ended = await self._ends(probe, within_s=seconds) or await self._ends(probe, within_s=GRACE_S)
            error = probe.exception() if ended else "no answer to a probe"
            self._reason = str(error or "")
            return error is None
        finally:
            await _cancel(probe)

    async def _ends(self, task: asyncio.Future[Any], *, within_s: float) -> bool:
        alarm = asyncio.ensure_future(self._sleep(within_s))
        try:
            await asyncio.wait([task, alarm], return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
        return task.done()


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what has not ended, and wait for its end: a connection must be given back."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # else asyncio would log that nobody looked at it
