"""The embedded model's image tower: shapes, and one block and the padding with hand-computed numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from app.backbones.embedded import WEIGHTS
from app.backbones.embedded.efficientnet import Conv, EfficientNetLite2, build

PREFIX = "image_tower."


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The tower's weights as shipped."""
    stored = load_file(WEIGHTS)
    return {name.removeprefix(PREFIX): t.float() for name, t in stored.items() if name.startswith(PREFIX)}


@pytest.fixture(scope="module")
def tower(weights: dict[str, Tensor]) -> EfficientNetLite2:
    return build(weights, torch.float32)


def test_the_tower_gives_a_map_at_an_eighth_and_two_at_a_sixteenth(tower: EfficientNetLite2) -> None:
    edges, fine, deep = tower(torch.rand(1, 3, 96, 160))
    assert edges.shape == (1, 48, 12, 20)
    assert fine.shape == (1, 120, 6, 10)
    assert deep.shape == (1, 352, 6, 10)


def test_a_block_expands_filters_and_projects(tower: EfficientNetLite2, weights: dict[str, Tensor]) -> None:
    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **how)

    pixels = torch.rand(1, 3, 13, 11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tower.stem(pixels), conv(F.pad(pixels, (1, 1, 1, 1)), "stem", stride=2))
    # The second block of stage 2: expansion, 3 × 3 depthwise, projection, and the way around them.
    x = torch.randn(1, 24, 7, 5, generator=torch.Generator().manual_seed(1))
    y = F.relu6(conv(x, "blocks.2.expand"))
    y = F.relu6(conv(y, "blocks.2.depthwise", padding=1, groups=y.shape[1]))
    torch.testing.assert_close(tower.before[2](x), x + conv(y, "blocks.2.project"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "dilation", "padding"),
    [
        (11, 3, 1, 1, (1, 1)),
        (11, 3, 2, 1, (1, 1)),
        (12, 3, 2, 1, (0, 1)),  # the odd pixel goes right and bottom
        (12, 5, 2, 1, (1, 2)),
        (11, 5, 1, 2, (4, 4)),
        (11, 1, 1, 1, (0, 0)),
        (13, 1, 2, 1, (0, 0)),
    ],
)
def test_padding_is_tensorflow_s(side: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int]) -> None:
    x = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(side))
    weight = torch.randn(1, 1, kernel, kernel, generator=torch.Generator().manual_seed(kernel))
    expected = F.conv2d(F.pad(x, padding * 2), weight, stride=stride, dilation=dilation)
    torch.testing.assert_close(Conv(weight, torch.zeros(1), stride, dilation)(x), expected)


@settings(max_examples=60, deadline=None)
@given(
    # oneDNN's own convolution of maps one or two pixels wide is wrong in bfloat16, stride 2; a photo's are wider.
    sides=st.lists(st.tuples(st.integers(1, 23), st.integers(3, 19)), min_size=2, max_size=3),
    channels=st.sampled_from([(3, 7, 1), (11, 11, 11), (13, 5, 1)]),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    then=st.sampled_from(["nothing", "relu6", "sum"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_on_a_cpu_it_computes_the_plain_convolution_at_every_size(
    sides: list[tuple[int, int]],
    channels: tuple[int, int, int],
    kernel: int,
    stride: int,
    dilation: int,
    then: str,
    dtype: torch.dtype,
) -> None:
    inner, outer, groups = channels
    generator = torch.Generator().manual_seed(kernel)
    weight = torch.randn(outer, inner // groups, kernel, kernel, generator=generator).to(dtype)
    weight, bias = (
        weight.contiguous(memory_format=torch.channels_last),
        torch.randn(outer, generator=generator).to(dtype),
    )
    conv, plain = Conv(weight, bias, stride, dilation), Conv(weight.float(), bias.float(), stride, dilation)
    for height, width in sides:  # the weights were laid out for the first
        x = torch.randn(2, inner, height, width, generator=generator)
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        with torch.enable_grad():
            expected = plain(x.float())
        other = torch.randn(expected.shape, generator=generator)
        other = other.to(dtype).contiguous(memory_format=torch.channels_last)
        if then == "relu6":
            expected = F.relu6(expected)
        elif then == "sum":
            expected = expected + other.float()
        with torch.no_grad():
            found = conv(x, relu6=then == "relu6", plus=other if then == "sum" else None)
        assert found.dtype is dtype
        near = 1e-4 if dtype is torch.float32 else 0.02
        torch.testing.assert_close(found.float(), expected, rtol=near, atol=near)


def test_with_gradients_it_is_the_plain_convolution() -> None:
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    Conv(weight, torch.zeros(5))(torch.rand(1, 3, 7, 7), relu6=True).sum().backward()
    assert weight.grad is not None
