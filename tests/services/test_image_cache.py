"""The cache of encoded photos."""

from __future__ import annotations

import torch

from app.metrics import Metrics
from app.services.image_cache import ImageCache


def test_the_least_recently_used_photo_makes_room() -> None:
    cache = ImageCache(max_bytes=2 * 7 * 4, metrics=Metrics())
    made: list[str] = []

    def get(name: str) -> torch.Tensor:
        def encode() -> torch.Tensor:
            made.append(name)
            return torch.full((7,), float(len(made)))

        return cache.get("model", name, encode)

    first = get("a")
    get("b")
    assert get("a") is first
    get("c")  # "b" goes
    assert made == ["a", "b", "c"]
    assert get("a") is first
    get("b")
    assert made == ["a", "b", "c", "b"]


def test_a_photo_larger_than_the_memory_drives_no_other_out() -> None:
    cache = ImageCache(max_bytes=5 * 4, metrics=Metrics())
    small = cache.get("model", "small", lambda: torch.zeros(5))
    cache.get("model", "large", lambda: torch.zeros(7))
    assert cache.get("model", "small", lambda: torch.ones(5)) is small


def test_each_model_has_its_own_tokens() -> None:
    cache = ImageCache(max_bytes=1000, metrics=Metrics())
    one, other = (cache.get(model, "a", lambda value=value: torch.tensor([value])) for value, model in enumerate("xy"))
    assert one.item() != other.item()
