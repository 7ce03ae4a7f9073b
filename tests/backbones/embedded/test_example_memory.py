"""The example memory, and the similarity of a photo's patches to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.backbones.embedded.example_memory import directions, empty_memory, example_facts, remember, resemblance
from app.method.parameters import ExampleMemory


def weights(features: int = 2, *, sharpness: float = 0.0) -> dict[str, Tensor]:
    """Patches compared as they are."""
    return {
        "example.weight": torch.eye(features),
        "example.bias": torch.zeros(features),
        "example.sharpness": torch.tensor(sharpness),
    }


# Two patches of a thing, and one of what is around it.
PHOTO = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
INSIDE_OF = torch.tensor([1.0, 1.0, 0.0])
OUTSIDE_OF = torch.tensor([0.0, 0.0, 1.0])
LOG_ODDS = torch.tensor([1.0, 3.0, -6.0])


def memory(some: dict[str, Tensor]) -> ExampleMemory:
    return remember(some, [PHOTO], [INSIDE_OF], [OUTSIDE_OF], [LOG_ODDS])


def test_likeness_by_hand() -> None:
    kept = ExampleMemory.stack([memory(weights(sharpness=math.log(3)))])
    # A patch half-way between the thing and its surroundings, one of the thing, one of the surroundings.
    patches = torch.tensor([[1.0, 1.0], [7.0, 0.0], [0.0, 1.0]])
    cosine, density = resemblance(weights(sharpness=math.log(3)), patches, kept)[0]
    assert cosine.tolist() == pytest.approx([0, 1, -1], abs=1e-6)
    # Kernels e^(3 cos): e³ against e⁰. Directions without a share count next to nothing.
    assert density.tolist() == pytest.approx([0, 3 / 8, -3 / 8], abs=1e-6)


def test_facts_by_hand() -> None:
    facts = example_facts(torch.tensor([1.0, 3.0, -16.0]), INSIDE_OF, OUTSIDE_OF)
    assert facts.tolist() == pytest.approx([2 / 4, -10 / 4, math.log(2 / 3 + 1e-4) / 4])


def test_many_patches_are_kept_as_a_few_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = F.normalize(torch.randn(5, 7, generator=generator), dim=1)
    which = torch.arange(101) % 5
    places = F.normalize(corners[which] + 0.01 * torch.randn(101, 7, generator=generator), dim=1)
    found, share = directions(places, torch.ones(101), 5)
    nearest = (corners @ found.T).max(dim=1)
    assert nearest.values.min() > 0.999
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3, 4]
    assert sorted((101 * share).round().tolist()) == [20, 20, 20, 20, 21]


def test_fewer_patches_than_directions_are_kept_as_they_are() -> None:
    kept = memory(weights())
    assert kept.inside.shape == (32, 2)
    assert kept.inside[:2].tolist() == [[1, 0], [1, 0]]
    assert kept.inside_share.tolist() == [0.5, 0.5, *[0] * 30]
    assert not kept.inside[2:].any()


def test_an_example_of_a_few_patches_counts_as_much_as_one_of_many() -> None:
    one_way, other_way = torch.tensor([1.0, 0.0]).repeat(13, 1), torch.tensor([0.0, 1.0]).repeat(13, 1)
    small, large, none = (torch.arange(13) < 1).float(), (torch.arange(13) < 11).float(), torch.zeros(13)
    kept = remember(weights(), [one_way, other_way], [small, large], [none, none], [none, none])
    torch.testing.assert_close(kept.inside_share @ kept.inside, torch.tensor([0.5, 0.5]))


def test_several_categories_are_compared_at_once() -> None:
    one, other = memory(weights()), remember(weights(), [PHOTO], [OUTSIDE_OF], [INSIDE_OF], [LOG_ODDS])
    found = resemblance(weights(), PHOTO, ExampleMemory.stack([one, other]))
    for row, alone in enumerate((one, other)):
        torch.testing.assert_close(found[row], resemblance(weights(), PHOTO, ExampleMemory.stack([alone]))[0])
    torch.testing.assert_close(found[0], -found[1])


def test_hundreds_of_categories_are_as_one_each() -> None:
    found = resemblance(weights(), PHOTO, ExampleMemory.stack([memory(weights())] * 307))
    torch.testing.assert_close(found, found[:1].expand(307, -1, -1))


def test_every_memory_has_the_shapes_of_an_empty_one() -> None:
    shapes = [
        {name: tensor.shape for name, tensor in vars(each).items()}
        for each in (memory(weights()), empty_memory(weights()))
    ]
    assert shapes[0] == shapes[1]


def test_a_mask_of_everything_makes_finite_numbers() -> None:
    kept = remember(weights(), [PHOTO], [torch.ones(3)], [torch.zeros(3)], [LOG_ODDS])
    assert all(torch.isfinite(tensor).all() for tensor in vars(kept).values())
    assert torch.isfinite(resemblance(weights(), PHOTO, ExampleMemory.stack([kept]))).all()
    assert kept.facts[2] == pytest.approx(math.log(1 + 1e-4) / 4, rel=0.01)
    assert not kept.outside.any()


class TestPhotosWithoutIt:
    NOWHERE, EVERYWHERE = torch.zeros(3), torch.ones(3)

    def kept(self) -> ExampleMemory:
        return remember(
            weights(),
            [PHOTO, -PHOTO],
            [INSIDE_OF, self.NOWHERE],
            [OUTSIDE_OF, self.EVERYWHERE],
            [LOG_ODDS, torch.full((3,), 5.0)],
        )

    def test_their_patches_are_outside_and_kept_apart(self) -> None:
        kept = self.kept()
        # The example's patch around the thing counts as much as all three of the photo without it.
        torch.testing.assert_close(kept.outside_share @ kept.outside, torch.tensor([[-1 / 3, 0.5 - 1 / 6]])[0])
        torch.testing.assert_close(kept.absent_share @ kept.absent, torch.tensor([-2 / 3, -1 / 3]))
        torch.testing.assert_close(kept.inside_share @ kept.inside, torch.tensor([1.0, 0.0]))

    def test_they_say_nothing_about_how_the_words_see_the_thing(self) -> None:
        torch.testing.assert_close(self.kept().facts, memory(weights()).facts)

    def test_one_example_must_show_it(self) -> None:
        with pytest.raises(ValueError, match="shows the category"):
            remember(weights(), [PHOTO], [self.NOWHERE], [self.EVERYWHERE], [LOG_ODDS])
