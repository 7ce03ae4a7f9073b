"""The simulated lane against queueing theory."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.capacity import SIDE_BY_SIDE, ServiceTimes, highest_rate, latencies, random_arrivals


def test_a_request_in_a_thousand_years_takes_its_own_time() -> None:
    times = ServiceTimes(alone_s=(0.7,), together=1.3)
    assert np.allclose(latencies(times, random_arrivals(1e-9, 17)), 0.7)


def test_where_two_take_twice_as_long_the_wait_is_that_of_one_server() -> None:
    """Half loaded, constant times: the mean wait of M/D/1 is ρ / 2(1 − ρ) = half a service time (Pollaczek–Khinchine).

    A pair ends late, and what came meanwhile begins beside its second: longer, and less than a service time longer.
    """
    times = ServiceTimes(alone_s=(1.0,), together=2.0)
    mean = latencies(times, random_arrivals(0.5, 200_000)).mean()
    assert 1.5 < mean < 2.0


def test_the_last_of_three_at_once_runs_alone() -> None:
    times = ServiceTimes(alone_s=(1.0,), together=1.5)
    assert latencies(times, np.array([0.0, 0.0, 0.0])).tolist() == [1.5, 1.5, 2.5]


def test_a_request_begins_beside_one_that_still_runs() -> None:
    times = ServiceTimes(alone_s=(1.0,), together=1.5)
    # Two begin at 0 and end at 1.5; of the three that came meanwhile two begin then, and the last alone at 3.
    assert latencies(times, np.array([0.0, 0.0, 0.5, 1.0, 1.25])).tolist() == [1.5, 1.5, 2.5, 2.0, 2.75]


def test_a_loaded_lane_answers_two_at_a_time() -> None:
    times = ServiceTimes(alone_s=(1.0,), together=1.25)
    assert times.most_per_s == pytest.approx(SIDE_BY_SIDE / 1.25)
    # Of requests that all come at once the first begins alone, the others follow in 50 pairs.
    assert latencies(times, random_arrivals(1e9, 101)).max() == pytest.approx(1 + 50 * 1.25, rel=1e-6)


def test_the_highest_rate_keeps_its_promise_and_is_below_what_saturates() -> None:
    times = ServiceTimes(alone_s=(0.2, 0.3, 0.4), together=1.4)
    rate = highest_rate(times, p95_s=1.0)
    assert 0.3 * times.most_per_s < rate < times.most_per_s
    assert np.quantile(latencies(times, random_arrivals(rate, 40_000, seed=7)), 0.95) == pytest.approx(1.0, rel=0.15)
    assert highest_rate(times, p95_s=0.1) == 0.0
