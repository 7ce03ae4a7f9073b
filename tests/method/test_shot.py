"""An example on the loss grid: its cells, the weights of the loss, and the IoU, with hand-computed numbers."""

from __future__ import annotations

import pytest
import torch

from app.backbones.blip import Blip
from app.method.backbone import EncodedImage
from app.method.shot import IGNORE, Shot

IMAGE = EncodedImage(torch.zeros(50, 22))


def example(target: list[list[float]], inside: list[list[float]]) -> Shot:
    return Shot(IMAGE, torch.zeros(4, 3), torch.tensor(target), torch.tensor(inside))


# 2 × 2 cells: the object fills one and half of another; one of the rest is half padding.
EXAMPLE = example([[1, 0.5], [0, 0]], [[1, 1], [1, 0.5]])


def test_cells_hold_the_share_of_the_category_in_what_the_photo_covers(blip: Blip) -> None:
    labels = torch.zeros(112, 112, dtype=torch.long)
    labels[:2, :4] = 1  # half of the first cell of 4 × 4 pixels
    labels[:4, 4:6] = IGNORE  # the left half of the second, whose other half …
    labels[:1, 6:8] = 1  # … is the category by a quarter
    labels[104:] = IGNORE
    shot = Shot.of(blip, IMAGE, labels)
    assert shot.size_hw == (28, 28)
    assert shot.target[0, :3].tolist() == pytest.approx([0.5, 0.25, 0])
    assert shot.inside[0, :3].tolist() == [1, 0.5, 1]
    assert shot.inside[26:].sum() == shot.target[26:].sum() == 0


def test_a_pixel_partly_covered_counts_by_its_share(blip: Blip) -> None:
    labels = torch.zeros(112, 112)
    labels[0, 0] = 0.5
    assert Shot.of(blip, IMAGE, labels).target[0, 0].item() == pytest.approx(0.5 / 16)


def test_sides_of_a_patch_are_means_of_its_cells_without_the_padding() -> None:
    inside, outside = EXAMPLE.sides((1, 1))
    assert inside.tolist() == pytest.approx([1.5 / 4])
    assert outside.tolist() == pytest.approx([2 / 4])


class TestLossWeight:
    def test_balanced_each_side_has_half(self) -> None:
        weight = EXAMPLE.loss_weight(balanced=True)
        assert weight[0].flatten().tolist() == pytest.approx([0.5 / 1.5, 0.25 / 1.5, 0, 0])
        assert weight[1].flatten().tolist() == pytest.approx([0, 0.125, 0.25, 0.125])

    def test_unbalanced_every_pixel_counts_and_background_half(self) -> None:
        weight = EXAMPLE.loss_weight(balanced=False)
        assert weight[0].flatten().tolist() == pytest.approx([0.4, 0.2, 0, 0])
        assert weight[1].flatten().tolist() == pytest.approx([0, 0.1, 0.2, 0.1])

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_a_side_that_is_missing_weighs_nothing(self, share: float) -> None:
        weight = example([[share] * 3] * 2, [[1.0] * 3] * 2).loss_weight(balanced=True).sum(dim=(1, 2))
        assert weight.tolist() == pytest.approx([0.5 * share, 0.5 * (1 - share)])


@pytest.mark.parametrize(
    ("predicted", "iou"),
    [
        ([[True, True], [False, False]], 1.5 / 2),
        ([[True, False], [False, False]], 1 / 1.5),
        ([[False, False], [True, True]], 0),
        ([[True, True], [True, True]], 1.5 / 3.5),
        ([[False, False], [False, False]], 0),
    ],
)
def test_iou_counts_cells_by_what_they_hold(predicted: list[list[bool]], iou: float) -> None:
    assert EXAMPLE.iou(torch.tensor(predicted)) == pytest.approx(iou)
