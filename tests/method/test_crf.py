"""Both fast ConvCRFs against a plain implementation, and the effect on edges."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.method import crf
from app.method.crf import CrfParameters, by_matrices, conv_crf, neighbour_weights, pass_messages
from benchmarks import plain

Crf = Callable[[Tensor, Tensor, CrfParameters], Tensor]
both = pytest.mark.parametrize("refine", [conv_crf, by_matrices], ids=["compiled", "matrices"])


def test_it_is_compiled_where_a_compiler_is() -> None:
    assert crf.IS_COMPILED or not shutil.which("g++")


def an_image(classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Smooth colours (noise alone has no neighbours of like colour), and a random class map."""
    generator = torch.Generator().manual_seed(height * width)
    colours = F.interpolate(torch.randn(1, 3, 3, 3, generator=generator), size=(height, width), mode="bilinear")[0]
    return (3 * torch.randn(classes, height, width, generator=generator)).softmax(dim=0), colours


@both
@pytest.mark.parametrize("classes", [1, 3, 13])
@pytest.mark.parametrize(
    ("height", "width", "blur", "size"),
    [
        (23, 37, 4, 15),
        (22, 29, 4, 5),
        (41, 1, 4, 15),
        (1, 1, 4, 3),
        (24, 32, 4, 7),
        (19, 17, 3, 5),
        (13, 11, 1, 3),
        (67, 131, 2, 5),
        (97, 71, 5, 1),
    ],
)
def test_it_equals_the_plain_one(refine: Crf, classes: int, height: int, width: int, blur: int, size: int) -> None:
    class_map, colours = an_image(classes, height, width)
    parameters = CrfParameters(iterations=7, filter_size=size, blur=blur)
    fast = refine(class_map, colours, parameters)
    exact = plain.crf(class_map.double(), colours.double(), parameters)
    torch.testing.assert_close(fast, exact.float(), rtol=0, atol=5e-5 if refine is conv_crf else 5e-4)
    torch.testing.assert_close(fast.sum(dim=0), torch.ones(height, width), rtol=0, atol=1e-5)


def test_the_authors_settings_are_the_default() -> None:
    class_map, colours = an_image(2, 23, 31)
    torch.testing.assert_close(conv_crf(class_map, colours), plain.crf(class_map, colours), rtol=0, atol=1e-3)


def neighbours_of(colours: Tensor, row: int, column: int) -> Tensor:
    """The message that a pixel of a small image takes from the 3 × 3 pixels around it."""
    weights = neighbour_weights(colours, CrfParameters(filter_size=3, blur=1))
    return weights[0].view(10, 10, 8, 8)[row : row + 3, column : column + 3, row, column]


def test_a_neighbour_of_like_colour_weighs_ten_and_its_nearness_up_to_three() -> None:
    grey = torch.zeros(3, 5, 7)
    weights = neighbours_of(grey, 2, 3)
    assert weights[1, 1] == pytest.approx(13)
    assert weights[1, 2] == pytest.approx(10 + 3 * 0.9459595)  # exp(−1/18): one pixel, deviation 3
    assert weights[2, 2] == pytest.approx(10 + 3 * 0.8948393)  # exp(−2/18)
    assert neighbours_of(grey, 0, 3)[0].abs().max() == 0  # nothing lies above the first row
    assert neighbours_of(grey, 2, 6)[:, 2].abs().max() == 0  # nor right of the last column
    # … and of no pixel further away.
    assert (neighbour_weights(grey, CrfParameters(filter_size=3, blur=1))[0, :, 2 * 8 + 3] > 0).sum() == 9


def test_a_neighbour_of_another_colour_weighs_its_nearness_alone() -> None:
    colours = torch.zeros(3, 1, 2)
    colours[0, 0, 1] = 1  # ten deviations away
    assert neighbours_of(colours, 0, 0)[1, 2] == pytest.approx(3 * 0.9459595)


def test_a_message_is_the_weighted_sum_of_the_neighbours() -> None:
    weights = torch.zeros(1, 10, 10, 8, 8)
    for column in range(3):
        weights[0, 1, column, 0, column], weights[0, 1, column + 2, 0, column] = 2, 100  # the left and the right one
    message = pass_messages(torch.tensor([[[1.0, 3, 5]]]), weights.view(1, 100, 64), 3)
    assert message.tolist() == [[[300, 502, 6]]]


@pytest.mark.skipif(not crf.IS_COMPILED, reason="not compiled")
class TestCompiled:
    @pytest.mark.parametrize("threads", [0, 1, 2, 7, 1000])
    def test_threads_change_nothing(self, threads: int) -> None:
        class_map, colours = (tensor.numpy() for tensor in an_image(3, 131, 97))
        refined = [np.zeros_like(class_map) for _ in range(2)]
        for out, count in zip(refined, (1, threads), strict=True):
            crf._conv_crf.conv_crf(class_map, colours, out, out.shape, astuple(CrfParameters()), count)
        np.testing.assert_array_equal(*refined)

    def test_maps_with_gaps_and_rows_of_another_order(self) -> None:
        class_map, colours = an_image(5, 31, 43)
        whole = conv_crf(class_map, colours)
        columns_first = class_map.mT.contiguous().mT, colours.mT.contiguous().mT
        torch.testing.assert_close(conv_crf(*columns_first), whole, rtol=0, atol=0)
        torch.testing.assert_close(conv_crf(class_map.repeat(1, 1, 2)[:, :, :43], colours), whole, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("shape", "changed"),
        [
            ((3, 31, 44), {}),
            ((4, 31, 43), {}),
            ((0, 31, 43), {}),
            ((-3, -31, 43), {}),
            ((3, 31, 43), {"iterations": 0}),
            ((3, 31, 43), {"filter_size": 4}),
            ((3, 31, 43), {"blur": 0}),
        ],
    )
    def test_what_does_not_fit_is_refused(self, shape: tuple[int, int, int], changed: dict[str, int]) -> None:
        class_map, colours = (tensor.numpy() for tensor in an_image(3, 31, 43))
        parameters = astuple(CrfParameters(**changed))
        with pytest.raises(ValueError, match="expected float32 arrays of the given shape"):
            crf._conv_crf.conv_crf(class_map, colours, np.zeros_like(class_map), shape, parameters, 1)


@both
def test_a_class_that_lost_leaves_the_others_as_they_were(refine: Crf) -> None:
    """Of seven classes five are hardly anywhere: the two others are refined as the plain one would."""
    colours = torch.zeros(3, 43, 61)
    colours[:, :, 30:] = 2
    class_map = torch.full((7, 43, 61), 1e-4)
    class_map[2, :, :30], class_map[5, :, 30:] = 0.6, 0.6
    class_map[2, :, 30:], class_map[5, :, :30] = 0.39, 0.39
    class_map = class_map / class_map.sum(dim=0)
    refined = refine(class_map, colours, CrfParameters())
    assert int((refined.flatten(1).amax(dim=1) > 0).sum()) == 2
    torch.testing.assert_close(refined, plain.crf(class_map, colours), rtol=0, atol=1e-4)


def test_the_rows_of_a_band_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class_map, colours = an_image(3, 61, 43)
    whole = by_matrices(class_map, colours, CrfParameters())
    monkeypatch.setattr("app.method.crf._BAND_VALUES", 1)
    torch.testing.assert_close(by_matrices(class_map, colours, CrfParameters()), whole, rtol=0, atol=1e-4)


@both
def test_the_mask_s_edge_moves_to_the_photo_s_edge(refine: Crf) -> None:
    # The photo changes colour at column 32; the map gives class 1 the columns from 24 on, hesitantly.
    colours = torch.zeros(3, 31, 64)
    colours[:, :, 32:] = 2
    class_map = torch.full((2, 31, 64), 0.1)
    class_map[1, :, 24:] = 0.9
    class_map[0] = 1 - class_map[1]
    refined = refine(class_map, colours, CrfParameters())
    edge = (refined[1] > 0.5).int().argmax(dim=1)
    assert bool((edge >= 30).all())
    assert bool((edge <= 34).all())
