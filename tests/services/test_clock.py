"""The timer of a request's stages."""

from __future__ import annotations

import itertools

import pytest

from app.services import clock as module
from app.services.clock import Clock


def test_a_stage_that_is_entered_again_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of a long photo are encoded one by one: three of them, a second each."""
    seconds = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(seconds))
    clock = Clock()
    for _ in range(3):
        with clock.stage("encode_image"):
            pass
    assert clock.rounded() == {"encode_image": 3000.0}
