"""Growth of what a service holds, by samples made by hand."""

from __future__ import annotations

import pytest

from tests.soak.gauges import Sample, growth, growth_over_teachings


def held(seconds: float, resident: int, teachings: int = 0, store: int = 100, answers: int = 0) -> Sample:
    return Sample(
        seconds=seconds, requests=0, teachings=teachings, resident=resident, files=3, keys=5, store=store, answers=1,
        answers_bytes=answers, append_only_file=0,
    )  # fmt: skip


# A sample each 10 s. Windows are a sixth of the time, 20 s: they have three samples each.
RISING = [held(10 * n, 1000 + 50 * n, teachings=70 * n, store=200 + 7 * n, answers=7 * n) for n in range(1, 13)]


def test_growth_is_that_of_the_medians_after_the_warm_up_and_at_the_end() -> None:
    # Medians of the samples 3, 4, 5 (30 to 50 s) and 10, 11, 12 (100 to 120 s).
    assert growth(RISING, warm_up_s=30) == pytest.approx(1550 / 1200 - 1)
    # A third of the time is 40 s: samples 4, 5, 6.
    assert growth(RISING, warm_up_s=None) == pytest.approx(1550 / 1250 - 1)


def test_answers_that_are_kept_for_a_day_are_no_growth_of_the_store() -> None:
    assert growth(RISING, lambda one: one.lasting, warm_up_s=30) == 0


def test_one_high_sample_is_no_growth() -> None:
    flat = [held(10 * n, 1000 if n != 11 else 9000) for n in range(1, 13)]
    assert growth(flat, warm_up_s=30) == 0


def test_growth_with_teachings_is_that_of_so_many() -> None:
    # 350 bytes more with 490 teachings.
    assert growth_over_teachings(RISING, 100, warm_up_s=30) == round(100 * 350 / 490)
    assert growth_over_teachings(RISING, 491, warm_up_s=30) is None
