"""A start that fails ends the benchmark with the service's own words."""

from __future__ import annotations

import pytest

from benchmarks import start


def test_a_service_that_ends_at_its_start_is_no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "free_port", lambda: "no port")
    monkeypatch.setattr(start, "_ready", lambda port: False)
    with pytest.raises(RuntimeError, match=r"The service did not start(.|\n)*PORT"):
        start._start()
