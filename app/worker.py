"""The worker: the same wiring without HTTP. Run as many as there are jobs, on any machine that reaches the store."""

from __future__ import annotations

import asyncio
import logging
import signal

from app.settings import Settings
from app.wiring import service

_log = logging.getLogger(__name__)


async def run_worker(settings: Settings) -> None:
    """Work on jobs until SIGINT or SIGTERM; a job in hand is given back at its next step."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with service(settings.model_copy(update={"worker": True})):
        _log.info("waiting for jobs")
        await stop.wait()
    _log.info("stopped")
