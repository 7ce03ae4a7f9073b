"""One class at a time gives what all classes at once give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.method.frame import Frame, to_photo
from app.services.segmentation import PhotoMaps

FRAME = Frame(photo_hw=(31, 47), content_hw=(7, 11), input_size=13)


@pytest.fixture
def maps() -> torch.Tensor:
    """Probabilities of 17 classes; the second is nowhere above the background, the third is everywhere equal to it."""
    scores = torch.rand(17, 13, 13, generator=torch.Generator().manual_seed(5)) ** 3
    scores[1] = scores[0] * 0.9
    scores[2] = scores[0]
    return scores / scores.sum(dim=0)


def test_the_best_class(maps: torch.Tensor) -> None:
    labels, best = PhotoMaps(maps, FRAME, classes=range(17), threshold=None).best()
    all_at_once = to_photo(maps, FRAME)
    wanted, numbers = all_at_once.max(dim=0)
    assert np.allclose(best, wanted.numpy(), atol=1e-6)
    assert (labels == numbers.numpy()).mean() > 0.99  # where two classes are equal, either may win
    assert np.allclose(np.take_along_axis(all_at_once.numpy(), labels[None].astype(int), axis=0)[0], best, atol=1e-6)
    assert PhotoMaps(maps, FRAME, classes=range(17), threshold=None).may_be_found.isdisjoint({0, 1, 2})


@pytest.mark.parametrize("threshold", [0.0, 0.11, 0.4, 1.0])
def test_the_best_class_under_a_threshold(maps: torch.Tensor, threshold: float) -> None:
    labels, _ = PhotoMaps(maps, FRAME, classes=range(17), threshold=threshold).best()
    best, numbers = to_photo(maps, FRAME)[1:].max(dim=0)
    assert (labels == torch.where(best >= threshold, numbers + 1, 0).numpy()).mean() > 0.99


def test_one_class(maps: torch.Tensor) -> None:
    for number in range(17):
        probability = PhotoMaps(maps, FRAME, classes=range(17), threshold=None).probability(number)
        assert np.allclose(probability, to_photo(maps, FRAME)[number].numpy(), atol=1e-6)


def test_nothing_asked_for() -> None:
    labels, best = PhotoMaps(torch.ones(1, 13, 13), FRAME, classes=[0], threshold=None).best()
    assert not labels.any()
    assert np.allclose(best, 1)
    labels, _ = PhotoMaps(torch.ones(1, 13, 13), FRAME, classes=[0], threshold=0.5).best()
    assert not labels.any()


def test_a_class_without_a_map_is_nowhere(maps: torch.Tensor) -> None:
    some = PhotoMaps(maps[[0, 3, 11]], FRAME, classes=(0, 3, 11), threshold=None)
    assert some.may_be_found <= {3, 11}
    assert set(np.unique(some.best()[0])) <= {0, 3, 11}
    assert np.allclose(some.probability(11), to_photo(maps, FRAME)[11].numpy(), atol=1e-6)
    assert not some.probability(7).any()
    assert some.probability(7).shape == FRAME.photo_hw
