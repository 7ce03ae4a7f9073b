"""The worker process: the service without HTTP. Any number may run, on any machine that reaches the store."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prometheus_client import CollectorRegistry, start_http_server

from app.errors import UnavailableError
from app.settings import Settings
from app.wiring import service

_log = logging.getLogger(__name__)


async def run_worker(settings: Settings) -> None:
    """Run jobs until SIGINT or SIGTERM; a running job is returned to the queue at its next step.

    Raises:
        UnavailableError: If the metrics port is taken.
        Exception: The error that ended the work, so that the process ends too and can be restarted.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # The job loop runs here, not in the service, so that its end is noticed.
    async with service(settings.model_copy(update={"worker": False})) as live:
        with _metrics_at(settings, live.metrics.registry):
            work = asyncio.create_task(live.engine.work(), name="worker")
            stopping = asyncio.create_task(stop.wait())
            _log.info("waiting for jobs")
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
    _log.info("stopped")


@contextmanager
def _metrics_at(settings: Settings, registry: CollectorRegistry) -> Iterator[None]:
    """Serve the metrics while the body runs, if a port is set."""
    if not settings.metrics_port:
        yield
        return
    try:
        server, thread = start_http_server(settings.metrics_port, addr=settings.host, registry=registry)
    except OSError as error:
        raise UnavailableError(
            f"Nothing can listen at {settings.host}:{settings.metrics_port}: is EXEMPLAR_METRICS_PORT taken?"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
