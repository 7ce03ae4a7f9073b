"""The jobs that tune beside the measured requests."""

from __future__ import annotations

import pytest

from app.client import Client
from benchmarks.service import _tuning_all_the_time


def test_a_job_that_ends_the_tuning_ends_the_measurement() -> None:
    with (
        Client("http://127.0.0.1:1") as client,
        pytest.raises(Exception, match=r"(?i)connect|reach"),
        _tuning_all_the_time(client),
    ):
        pass
