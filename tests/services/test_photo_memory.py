"""The memory for photos: requests together stay within it, and give back what they took."""

from __future__ import annotations

import contextlib

import pytest

from app.errors import OverloadedError
from app.metrics import Metrics
from app.services.photo_memory import PhotoMemory


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def memory(metrics: Metrics) -> PhotoMemory:
    return PhotoMemory(max_bytes=100, metrics=metrics)


def test_requests_share_it(memory: PhotoMemory, metrics: Metrics) -> None:
    with memory.request() as first, memory.request() as second:
        first(60)
        second(40)
        with memory.request() as third, pytest.raises(OverloadedError, match="EXEMPLAR_PHOTO_MEMORY_BYTES") as refusal:
            third(1)
        assert refusal.value.retry_after_s == 1
        labels = {"reason": "photo_memory_full"}
        assert metrics.registry.get_sample_value("exemplar_rejected_total", labels) == 1
        with pytest.raises(OverloadedError):
            second(1)


def test_it_is_given_back_also_after_an_error(memory: PhotoMemory) -> None:
    for _ in range(3):
        with contextlib.suppress(KeyError), memory.request() as take:
            take(70)
            raise KeyError
    with memory.request() as first, memory.request() as second:
        first(70)
        with pytest.raises(OverloadedError):
            second(70)
        second(30)


def test_who_is_alone_may_take_more(memory: PhotoMemory) -> None:
    with memory.request() as alone, memory.request() as other:
        alone(70)
        alone(70)  # its mask
        with pytest.raises(OverloadedError):
            other(1)


def test_what_is_taken_after_the_end_is_refused(memory: PhotoMemory) -> None:
    """A client that went away leaves a thread behind, which decodes its photo to the end."""
    with memory.request() as take:
        take(10)
    with pytest.raises(RuntimeError, match="ended"):
        take(60)
    with memory.request() as first, memory.request() as second:
        first(60)
        second(40)


def test_a_part_may_be_given_back_before_the_end(memory: PhotoMemory) -> None:
    with memory.request() as first, memory.request() as second:
        first(140)
        first(-110)
        second(70)
        first(-10)
        second(10)
