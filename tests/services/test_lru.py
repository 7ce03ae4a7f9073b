"""The cache of limited size: which entries it keeps."""

from __future__ import annotations

import torch

from app.services.lru import LruCache


def test_the_least_recently_used_makes_room() -> None:
    cache: LruCache[str, torch.Tensor] = LruCache(max_bytes=5 + 3 + 3)
    assert [cache.put(name, bytes_of(size)) for name, size in (("a", 3), ("b", 3), ("c", 5))] == [0, 0, 0]
    assert cache.get("a") is not None
    assert cache.put("d", bytes_of(7)) == 2  # "b" and "c"
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "d"]
    assert (len(cache), cache.nbytes) == (2, 10)


def test_one_larger_than_the_memory_drives_no_other_out() -> None:
    cache: LruCache[str, torch.Tensor] = LruCache(max_bytes=5)
    cache.put("small", bytes_of(5))
    assert cache.put("large", bytes_of(7)) == 0
    assert (cache.get("large"), len(cache), cache.nbytes) == (None, 1, 5)


def test_one_that_two_have_made_at_once_counts_once() -> None:
    cache: LruCache[str, torch.Tensor] = LruCache(max_bytes=11)
    first = bytes_of(7)
    cache.put("a", first)
    cache.put("a", bytes_of(7))
    assert cache.get("a") is first
    assert cache.nbytes == 7


def bytes_of(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def test_a_value_can_be_dropped() -> None:
    cache: LruCache[str, torch.Tensor] = LruCache(max_bytes=11)
    cache.put("a", bytes_of(3))
    cache.put("b", bytes_of(5))
    cache.discard("a")
    cache.discard("a")
    assert (list(cache), cache.nbytes) == (["b"], 5)
