"""Short forms of `python -m tests.chaos` and `python -m tests.soak`; the seed is in the output of a test that fails."""

from __future__ import annotations

from pathlib import Path
from random import SystemRandom

import pytest

from tests.chaos import run as chaos_run
from tests.soak import run as soak_run

pytestmark = pytest.mark.timeout(300)  # each starts processes, which import torch


def test_nothing_acknowledged_is_lost_while_everything_breaks(tmp_path: Path) -> None:
    # Without kills of the service, which takes seconds to come back; and troubles are short, so that more of them come.
    kinds = ("cut", "kill store", "kill worker", "stop store", "stop worker", "store full", "store read-only")
    options = chaos_run.Options(
        seed=SystemRandom().randrange(10_000), seconds=3, kills=1, clients=2, kinds=kinds, longest_s=0.5,
        redelivery_s=1.0,
    )  # fmt: skip
    report = chaos_run.run(options, tmp_path)
    assert report.violations == []
    assert report.troubles.total() >= 1
    assert report.answers["202"] >= 1


def test_memory_stays_and_nothing_fails_under_load(tmp_path: Path) -> None:
    model = chaos_run.write_model(tmp_path / "model")
    options = soak_run.Options(
        seed=SystemRandom().randrange(10_000), minutes=0.1, clients=2, backbone=f"blip:{model}", samples=12
    )
    report = soak_run.run(options, tmp_path)
    assert report.errors == []
    # Six seconds are all warm-up: this only notices what grows with every request.
    assert report.growth < 0.5
    assert report.requests > 20
