"""Masked averages of patch features, with hand-computed numbers."""

from __future__ import annotations

import math

import torch

from app.method.backbone import EncodedImage
from app.method.shot import Shot
from app.research.prototype import prototype_map, prototypes

# Patches that point East, North and half-way on a grid of 1 × 3.
PATCHES = torch.tensor([[2.0, 0], [0, 5], [1, 1]])
IMAGE = EncodedImage(PATCHES)


def test_a_prototype_is_the_mean_direction_inside_and_outside() -> None:
    shot = Shot(
        IMAGE, PATCHES, target=torch.tensor([[1.0, 0, 0.5]]), inside=torch.tensor([[1.0, 1, 0]])
    )  # the third: padding
    assert torch.allclose(prototypes([shot], (1, 3)), torch.tensor([[0.0, 1], [1, 0]]), atol=1e-6)


def test_cells_are_averaged_to_patches_and_partly_covered_ones_count_in_part() -> None:
    # 2 × 2 cells per patch; of the third, the category covers a quarter.
    target = torch.tensor([[1.0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0]])
    inside, outside = torch.tensor([1, 0.0, 0.25]), torch.tensor([0, 1.0, 0.75])
    directions = torch.tensor([[1.0, 0], [0, 1], [math.sqrt(0.5), math.sqrt(0.5)]])
    means = torch.stack([outside @ directions, inside @ directions])
    expected = means / means.norm(dim=1, keepdim=True)
    assert torch.allclose(prototypes([Shot(IMAGE, PATCHES, target, torch.ones(2, 6))], (1, 3)), expected, atol=1e-6)


def test_examples_count_the_same() -> None:
    east = Shot(IMAGE, PATCHES, torch.tensor([[1.0, 0, 0]]), torch.ones(1, 3))
    north = Shot(IMAGE, PATCHES, torch.tensor([[0.0, 1, 0]]), torch.ones(1, 3))
    inside = prototypes([east, north], (1, 3))[1]
    assert torch.allclose(inside, torch.tensor([math.sqrt(0.5)] * 2), atol=1e-6)


def test_each_patch_goes_to_the_nearest_prototype() -> None:
    east, north = torch.tensor([[0.0, -1], [1, 0]]), torch.tensor([[-1.0, 0], [0, 1]])
    maps = prototype_map(PATCHES, [east, north], grid_hw=(1, 3), size_hw=(5, 7))
    assert maps.shape == (3, 5, 7)
    assert torch.allclose(maps.sum(dim=0), torch.ones(5, 7))
    # First patch: similarity 0 to the nearest outside, 1 to East, 0 to North, each over 0.05.
    assert torch.allclose(maps[:, 0, 0], torch.tensor([0.0, 20, 0]).softmax(dim=0), rtol=1e-4, atol=0)
    assert maps[:, 2].argmax(dim=0).tolist()[:4] == [1, 1, 2, 2]
    assert torch.allclose(maps[1, 0, 6], maps[2, 0, 6])  # half-way
