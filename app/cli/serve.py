"""Commands that run the service, a worker or the demo."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from app import logs, telemetry
from app.cli.terminal import check_writable, console, settings_with
from app.errors import InvalidInputError, UnavailableError
from app.services.memory import bound_heaps
from app.settings import Settings, unknown_variables

_log = logging.getLogger(__name__)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (EXEMPLAR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one (EXEMPLAR_PORT).")] = None,
) -> None:
    """Run the HTTP service."""
    # Process 1 of a container ignores SIGTERM without a handler: a pod would load its model to the end, or be killed.
    signal.signal(signal.SIGTERM, _end)
    bound_heaps()
    settings = settings_with(host=host, port=port)
    _configure_logs(settings)
    telemetry.configure()
    asyncio.run(_serve(settings))


def worker() -> None:
    """Run jobs without HTTP, beside services that share the store."""
    settings = Settings()
    if not settings.redis_url:  # an embedded server would be its own, to which nobody sends jobs
        raise InvalidInputError(
            "EXEMPLAR_REDIS_URL is not set: a worker runs the jobs of services in other processes. Set it to the Redis "
            "or Valkey server that they share."
        )
    bound_heaps()
    with _nothing_to_collect():
        from app.worker import run_worker

    _configure_logs(settings)
    telemetry.configure()
    asyncio.run(run_worker(settings))


def demo(
    out: Annotated[Path, typer.Option(help="File to write the overlay to.")] = Path("build/demo.png"),
) -> None:
    """Start a temporary service, teach three categories, segment other photos, show the result."""
    from app.demo import run_demo

    out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(out)
    run_demo(console, out)


def _configure_logs(settings: Settings) -> None:
    """Configure the logs, and log the variables that look like settings and are none."""
    logs.configure(settings.log)
    for sentence in unknown_variables(os.environ):
        _log.warning(sentence)


def _end(number: int, _: FrameType | None) -> None:
    """End the process at once: nothing is served yet, and an embedded server withstands the death of its owner."""
    os._exit(128 + number)


@contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Pause garbage collection, for imports: they make objects that stay, and looking through them takes 0.3 s.

    Later collections pass over those objects too, which would stop requests for 0.1 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


async def _serve(settings: Settings) -> None:
    """Start the components first, so that an error is printed as one sentence; then listen until SIGINT or SIGTERM."""
    await _check_address(settings.host, settings.port)
    with _nothing_to_collect():
        import uvicorn

        from app.main import create_app
        from app.wiring import service

    async with service(settings) as live:
        config = uvicorn.Config(
            create_app(settings, live=live),
            host=settings.host,
            port=settings.port,
            root_path=settings.root_path,
            log_config=None,
            # Enough for current requests. Event streams still open after it are closed; their clients reconnect.
            timeout_graceful_shutdown=10,
        )
        # After it has stopped, uvicorn raises the signal again; ignoring it leaves time to stop the components.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        await uvicorn.Server(config).serve()


async def _check_address(host: str, port: int) -> None:
    """Check the address before anything is imported or loaded; uvicorn would exit the process only afterwards.

    Raises:
        UnavailableError: If the port is taken, or the address is not this machine's.
    """
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(
            f"Nothing can listen at {host}:{port}: choose another --host or --port ({error})."
        ) from error
    server.close()
