"""Short forms of the corpus of `python -m tests.fuzz`: hostile uploads and damaged records."""

from __future__ import annotations

import logging
from random import Random, SystemRandom

import pytest

from tests.chaos.calls import Calls, Watch
from tests.fuzz.rounds import records, uploads


@pytest.fixture
def seed() -> int:
    """A new seed every time, which a test that fails prints."""
    chosen = SystemRandom().randrange(10_000)
    print(f"seed {chosen}")
    return chosen


def test_hostile_uploads_are_refused_by_the_documented_answers(api, seed: int, caplog) -> None:
    watch = Watch(api.http.get("/openapi.json").json())
    uploads(Calls(api.http, watch), Random(seed), range(60))
    assert watch.violations == []
    # Pillow's own, which the service does not write, say what is wrong with a file.
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not [record for record in errors if not record.name.startswith("PIL.")]


def test_damaged_records_cost_themselves_alone(api, seed: int) -> None:
    watch = Watch(api.http.get("/openapi.json").json())
    records(Calls(api.http, watch), watch, api.redis, Random(seed), range(5))
    assert watch.violations == []
