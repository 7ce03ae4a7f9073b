"""Timer of the stages of a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from app.metrics import Metrics
from app.services.lane import Lane
from app.telemetry import tracer

Result = TypeVar("Result")


class Clock:
    """Milliseconds per stage, in the order of the stages."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body and trace it as a span; a stage that is entered again adds up."""
        started = time.perf_counter()
        try:
            with tracer.start_as_current_span(name):
                yield
        finally:
            self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - started) * 1000

    async def on_lane(self, lane: Lane, call: Callable[[Clock], Result]) -> Result:
        """Run a request's call on the lane, and add its stages and, as `queue`, the time that it waited.

        Args:
            lane: Of the model that it uses.
            call: Called with a clock for its stages.

        Raises:
            OverloadedError: If too many requests wait for the model.
        """
        inner, asked_at = Clock(), time.perf_counter()
        result = await lane.run(partial(call, inner), kind="segment")
        self.ms["queue"] = max(0.0, (time.perf_counter() - asked_at) * 1000 - sum(inner.ms.values()))
        self.ms.update(inner.ms)
        return result

    def record(self, metrics: Metrics, backbone: str) -> None:
        """Record the stages in the metrics."""
        for stage, ms in self.ms.items():
            metrics.stage_duration.labels(backbone, stage).observe(ms / 1000)

    def rounded(self) -> dict[str, float]:
        """Milliseconds to two decimal places, for the answer."""
        return {name: round(ms, 2) for name, ms in self.ms.items()}
