"""The wired parts of the service, without HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.method.backbone import Backbone
from app.settings import Settings
from app.wiring import Service, service

Wire = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def wire(database: str, tmp_path: Path, tiny: Backbone) -> Wire:
    """Starts the parts on this test's database: `async with wire(worker=False) as live`. Jobs have three steps."""

    @asynccontextmanager
    async def wired(loaded: list[Backbone] | None = None, **settings: Any) -> AsyncIterator[Service]:
        # One thread: where tests run beside other work, the barriers of several cost seconds.
        few_steps = {"tune_steps": 3, "threads": 1} | settings
        async with service(
            Settings(redis_url=database, data_dir=tmp_path, **few_steps), loaded=loaded or [tiny]
        ) as live:
            yield live

    return wired
