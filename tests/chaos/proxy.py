"""TCP proxy in a thread: passes bytes on until it is told to cut the connections, to refuse new ones, or to be slow."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Self

_PIECE_BYTES = 65536


class Proxy:
    """Listens on a free port of the loopback and connects every caller to one server.

    Args:
        target_port: Port of the server.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.delay_s = 0.0  # of every piece, in both directions
        self._refuses = False
        self._target_port = target_port
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
            to_read, to_write = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:  # the server is dead
            writer.transport.abort()
            return
        ends = {writer, to_write}
        self._open |= ends
        try:
            await asyncio.gather(self._pass_on(reader, to_write), self._pass_on(to_read, writer))
        finally:
            self._open -= ends

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(piece)
                await writer.drain()
        with suppress(OSError):
            writer.close()
