"""Timer of the stages of a request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.metrics import Metrics
from app.telemetry import tracer


class Clock:
    """Milliseconds per stage, in the order of the stages."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body and trace it as a span."""
        started = time.perf_counter()
        try:
            with tracer.start_as_current_span(name):
                yield
        finally:
            self.ms[name] = (time.perf_counter() - started) * 1000

    def record(self, metrics: Metrics, backbone: str) -> None:
        """Record the stages in the metrics."""
        for stage, ms in self.ms.items():
            metrics.stage_duration.labels(backbone, stage).observe(ms / 1000)

    def rounded(self) -> dict[str, float]:
        """Milliseconds to two decimal places, for the answer."""
        return {name: round(ms, 2) for name, ms in self.ms.items()}
