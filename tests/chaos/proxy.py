"""TCP proxy in a thread: passes bytes on until it is told to cut or refuse connections, lose a reply, or be slow."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PIECE_BYTES = 65536


@dataclass
class _Exchange:
    """What a connection waits for.

    Attributes:
        request: What was sent since the last reply.
    """

    request: bytes = b""


class Proxy:
    """Listens on a free port of the loopback and connects every caller to one server.

    Args:
        target: Port of the server, or its socket.
    """

    def __init__(self, target: int | Path) -> None:
        self.port = 0
        self.delay_s = 0.0  # of every piece, in both directions
        self.lost = 0  # replies
        self._refuses = False
        self._loses_reply_to: bytes | None = None
        self._then_refuse = False
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listens.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self._refuses = True
        self._loop.call_soon_threadsafe(self._break_all)

    def lose_reply(self, *, to: bytes, then_refuse: bool = False) -> None:
        """Break the connection in place of the reply to the next request with these bytes, unless that is an error.

        Args:
            to: The bytes.
            then_refuse: True to refuse new connections from then on.
        """
        self._loses_reply_to, self._then_refuse = to, then_refuse

    def mend(self) -> None:
        """Accept connections again, at full speed."""
        self.delay_s = 0.0
        self._refuses = False

    def _break_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        self._loop.run_forever()
        server.close()
        # Not cancelled: their connections are broken, so they end.
        self._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            to_read, to_write = await self._connect()
        except OSError:  # the server is dead
            writer.transport.abort()
            return
        ends, exchange = {writer, to_write}, _Exchange()
        self._open |= ends
        try:
            await asyncio.gather(self._ask(reader, to_write, exchange), self._answer(to_read, writer, exchange))
        finally:
            self._open -= ends

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: _Exchange) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                exchange.request += piece
                await self._pass_on(piece, writer)
        with suppress(OSError):
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: _Exchange) -> None:
        with suppress(OSError):
            while (piece := await reader.read(_PIECE_BYTES)) and not self._is_lost(piece, exchange):
                exchange.request = b""
                await self._pass_on(piece, writer)
        with suppress(OSError):
            writer.close()

    def _is_lost(self, reply: bytes, exchange: _Exchange) -> bool:
        wanted = self._loses_reply_to
        if wanted is None or wanted not in exchange.request or reply.startswith(b"-"):
            return False
        self._loses_reply_to = None
        self._refuses = self._refuses or self._then_refuse
        self.lost += 1
        return True

    async def _pass_on(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        writer.write(piece)
        await writer.drain()
