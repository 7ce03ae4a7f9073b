"""Short forms of `python -m tests.chaos` and `python -m tests.soak`, with the same choices every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import run as chaos_run
from tests.soak import run as soak_run

SEED = 1

pytestmark = pytest.mark.timeout(300)  # each starts processes, which import torch


def test_nothing_acknowledged_is_lost_while_everything_breaks(tmp_path: Path) -> None:
    # Without kills of the service, which takes seconds to come back; and each trouble is short.
    kinds = ("cut", "kill store", "kill worker", "stop store", "stop worker", "store full", "store read-only")
    options = chaos_run.Options(
        seed=SEED, seconds=120, kills=1, clients=2, kinds=kinds, longest_s=0.5, redelivery_s=1.0
    )
    report = chaos_run.run(options, tmp_path)
    assert report.violations == []
    assert set(report.troubles) == set(kinds)
    assert report.answers["202"] >= 1


def test_memory_stays_and_nothing_fails_under_load(tmp_path: Path) -> None:
    model = chaos_run.write_model(tmp_path / "model")
    options = soak_run.Options(seed=SEED, minutes=0.1, clients=2, backbone=model, samples=12)
    report = soak_run.run(options, tmp_path)
    assert report.errors == []
    # Six seconds are all warm-up: this only notices what grows with every request.
    assert report.growth < 0.5
    assert report.requests > 20
