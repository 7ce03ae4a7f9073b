"""A photo of any shape fits the square input, and maps of the input return to the photo's pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.method.frame import (
    Frame,
    fit_and_pad,
    imagenet_normalise,
    labels_to_input,
    mask_to_input,
    stretch,
    to_photo,
    without_padding,
)


def plain(height: int, width: int) -> np.ndarray:
    """A photo of one colour: 255 red, 51 green, no blue."""
    return np.broadcast_to(np.array([255, 51, 0], np.uint8), (height, width, 3)).copy()


def test_stretching_fills_the_square() -> None:
    rgb, frame = stretch(plain(3, 5), 7)
    assert frame == Frame(photo_hw=(3, 5), input_size=7, content_hw=(7, 7))
    assert torch.equal(rgb, torch.tensor([1, 0.2, 0])[:, None, None].expand(3, 7, 7))


@pytest.mark.parametrize(
    ("photo_hw", "content_hw"),
    [
        ((37, 101), (16, 64)),  # 37 · 64/101 = 23.4, floored to a multiple of 8
        ((101, 37), (64, 16)),
        ((53, 53), (64, 64)),
        ((5, 3), (64, 32)),  # enlarged: 3 · 64/5 = 38.4
        ((1, 1000), (8, 64)),  # never thinner than 8
        ((1000, 1), (64, 8)),
        ((1, 1), (64, 64)),
    ],
)
def test_fitting_keeps_the_proportions_and_pads_right_and_bottom(
    photo_hw: tuple[int, int], content_hw: tuple[int, int]
) -> None:
    rgb, frame = fit_and_pad(plain(*photo_hw), 64)
    assert frame == Frame(photo_hw=photo_hw, input_size=64, content_hw=content_hw)
    height, width = content_hw
    assert torch.equal(rgb[:, :height, :width], torch.tensor([1, 0.2, 0])[:, None, None].expand(3, height, width))
    assert rgb[:, height:].abs().sum() == 0
    assert rgb[:, :, width:].abs().sum() == 0


@pytest.mark.parametrize(
    ("photo_hw", "content_hw"),
    [((53, 53), (364, 364)), ((101, 37), (364, 128)), ((37, 101), (128, 364)), ((100, 101), (360, 364))],
)
def test_the_long_side_fills_a_square_that_is_no_multiple_of_8(
    photo_hw: tuple[int, int], content_hw: tuple[int, int]
) -> None:
    rgb, frame = fit_and_pad(plain(*photo_hw), 364)
    assert frame.content_hw == content_hw
    assert (rgb[0] > 0).sum() == content_hw[0] * content_hw[1]


@pytest.mark.parametrize("way_in", [stretch, fit_and_pad])
@pytest.mark.parametrize("photo_hw", [(61, 97), (97, 61), (67, 67), (11, 13)])
def test_there_and_back_again(way_in: type, photo_hw: tuple[int, int]) -> None:
    height, width = photo_hw
    # Ramps over 3/4 of the range: red from left to right, green from top to bottom.
    red = np.tile(np.linspace(32, 223, width), (height, 1))
    green = np.tile(np.linspace(32, 223, height)[:, None], (1, width))
    photo = np.stack([red, green, np.full(photo_hw, 127.0)], axis=2).round().astype(np.uint8)
    rgb, frame = way_in(photo, 64)
    back = to_photo(rgb, frame).permute(1, 2, 0) * 255
    # Half a pixel of shift would cost more than this in the middle; the two resamplings round off the outermost pixels.
    inner = (slice(height // 8 + 1, -(height // 8) - 1), slice(width // 8 + 1, -(width // 8) - 1))
    step = 191 / min(photo_hw)
    assert (back - torch.from_numpy(photo).float())[inner].abs().max() < max(1.0, 0.3 * step)


def test_nothing_of_the_padding_reaches_the_photo() -> None:
    maps = torch.full((2, 64, 64), torch.nan)
    maps[0, :16, :64], maps[1, :16, :64] = 0.25, 0.75
    photo = to_photo(maps, Frame(photo_hw=(37, 101), input_size=64, content_hw=(16, 64)))
    assert photo.shape == (2, 37, 101)
    assert torch.allclose(photo, torch.tensor([0.25, 0.75])[:, None, None].expand(2, 37, 101))


def test_what_the_photo_fills_is_stretched_to_the_whole() -> None:
    frame = Frame((3, 6), 8, (4, 8))
    maps = torch.arange(4.0).view(1, 4, 1).expand(1, 4, 2)  # four rows, of which the photo fills two
    assert without_padding(maps, frame)[0].tolist() == [[0.0] * 2, [0.25] * 2, [0.75] * 2, [1.0] * 2]
    half_a_row = replace(frame, content_hw=(1, 8))  # the photo ends in the middle of the first row
    assert without_padding(maps, half_a_row).unique().tolist() == [0.0]
    assert without_padding(maps, replace(frame, content_hw=(8, 8))) is maps


@pytest.mark.parametrize("photo_hw", [(1, 1000), (1000, 1), (37, 101), (1, 1)])
def test_probabilities_stay_probabilities(photo_hw: tuple[int, int]) -> None:
    _, frame = fit_and_pad(plain(*photo_hw), 64)
    maps = torch.rand(5, 64, 64, generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    photo = to_photo(maps, frame)
    assert photo.shape == (5, *photo_hw)
    assert torch.allclose(photo.sum(dim=0), torch.ones(photo_hw), atol=1e-5)


def test_labels_go_in_unmixed_and_the_padding_is_outside() -> None:
    labels = np.array([[1, 1, 0, 7], [0, 255, 1, 1]], np.uint8)
    frame = Frame(photo_hw=(2, 4), input_size=16, content_hw=(8, 16))
    square = labels_to_input(labels, frame, outside=99)
    assert (square[:8] == labels.repeat(4, axis=0).repeat(4, axis=1)).all()
    assert (square[8:] == 99).all()


@pytest.mark.parametrize("photo_hw", [(1, 1000), (1000, 1)])
def test_labels_of_a_line_go_in_too(photo_hw: tuple[int, int]) -> None:
    labels = np.zeros(photo_hw, np.uint8)
    labels.reshape(-1)[:500] = 1
    _, frame = fit_and_pad(plain(*photo_hw), 64)
    square = labels_to_input(labels, frame, outside=255)
    assert [int((square == value).sum()) for value in (0, 1, 255)] == [32 * 8, 32 * 8, 64 * 64 - 64 * 8]


@pytest.mark.parametrize("photo_hw", [(37, 101), (101, 37)])
def test_a_photo_and_its_labels_go_to_the_same_place(photo_hw: tuple[int, int]) -> None:
    labels = np.zeros(photo_hw, np.uint8)
    labels[5:23, 11:29] = 1
    rgb, frame = fit_and_pad(np.repeat(labels[:, :, None] * 255, 3, axis=2).astype(np.uint8), 64)
    seen, told = rgb[0] > 0.5, torch.from_numpy(labels_to_input(labels, frame, outside=0)) == 1
    assert told.sum() > 50
    assert (seen & told).sum() / (seen | told).sum() > 0.9


def test_normalising_takes_imagenet_s_mean_to_zero_and_its_deviation_to_one() -> None:
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rgb = torch.stack([mean, mean + deviation, mean - 2 * deviation], dim=1)[:, :, None]
    assert torch.allclose(imagenet_normalise(rgb)[:, :, 0], torch.tensor([0.0, 1, -2]).expand(3, 3), atol=1e-6)
    assert torch.equal(imagenet_normalise(rgb[None])[0], imagenet_normalise(rgb))


def test_a_masks_share_is_by_area_and_nothing_of_it_is_lost() -> None:
    mask = np.random.default_rng(0).random((83, 131)) < 0.01
    share = mask_to_input(mask, Frame((83, 131), 29, (17, 29)), outside=255)
    assert share[:17].mean().item() == pytest.approx(mask.mean(), rel=0.02)
    assert (share[17:] == 255).all()
    assert share.dtype == torch.float32
