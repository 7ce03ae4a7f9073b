"""EfficientNet-Lite2 with dilated last stages: the frozen image tower of the embedded backbone.

Stages as in Tan & Le 2019 (https://arxiv.org/abs/1905.11946), the Lite variant without squeeze-and-excite; batch norms
are folded into the convolutions when it is loaded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_BATCH_NORM_EPS = 1e-3

# Per stage: blocks, kernel, stride, expansion. Stage 6 runs at stride 1, and all after its first block with dilation 2,
# so that every map from stage 5 on is 1/16 of the input.
_STAGES = ((1, 3, 1, 1), (3, 3, 2, 6), (3, 5, 2, 6), (4, 3, 2, 6), (4, 5, 1, 6), (5, 5, 1, 6), (1, 3, 1, 6))
_DILATED_STAGE = 5


@dataclass(frozen=True)
class _Conv:
    weight: Tensor
    bias: Tensor
    stride: int = 1
    dilation: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        groups = x.shape[1] // self.weight.shape[1]
        x = _pad_same(x, self.weight.shape[-1], self.stride, self.dilation)
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, dilation=self.dilation, groups=groups)


@dataclass(frozen=True)
class _Block:
    """Inverted residual: expand, depthwise, project."""

    expand: _Conv | None
    depthwise: _Conv
    project: _Conv
    residual: bool

    def __call__(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if self.expand else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


@dataclass(frozen=True)
class EfficientNetLite2:
    """The tower: gives the input of stage 6 ("fine", 120 channels) and the last map ("deep", 352 channels)."""

    stem: _Conv
    before: tuple[_Block, ...]
    after: tuple[_Block, ...]

    def __call__(
        self, rgb: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 120 y x"], Float[Tensor, "batch 352 y x"]]:
        """Feature maps at 1/16 of the resolution, of an image with values in [0, 1]."""
        x = ((rgb * 255 - 127) / 128).to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x))
        for block in self.before:
            x = block(x)
        fine = x
        for block in self.after:
            x = block(x)
        return fine, x


def build(weights: Mapping[str, Tensor], dtype: torch.dtype) -> EfficientNetLite2:
    """Fold the batch norms of a checkpoint (names as in the original PyTorch port) and lay out the blocks."""

    def folded(conv: str, norm: str, *, stride: int = 1, dilation: int = 1) -> _Conv:
        gain = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + _BATCH_NORM_EPS)
        weight = weights[f"{conv}.weight"].float() * gain[:, None, None, None]
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
        return _Conv(weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype), stride, dilation)

    before: list[_Block] = []
    after: list[_Block] = []
    number = 0
    for stage, (blocks, _, stage_stride, expansion) in enumerate(_STAGES):
        for position in range(blocks):
            prefix = f"_blocks.{number}."
            dilated = stage > _DILATED_STAGE or (stage == _DILATED_STAGE and position > 0)
            block = _Block(
                expand=folded(prefix + "_expand_conv", prefix + "_bn0") if expansion != 1 else None,
                depthwise=folded(
                    prefix + "_depthwise_conv",
                    prefix + "_bn1",
                    stride=stage_stride if position == 0 else 1,
                    dilation=2 if dilated else 1,
                ),
                project=folded(prefix + "_project_conv", prefix + "_bn2"),
                residual=position > 0,
            )
            (before if stage < _DILATED_STAGE else after).append(block)
            number += 1
    return EfficientNetLite2(folded("_conv_stem", "_bn0", stride=2), tuple(before), tuple(after))


def _pad_same(x: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """TensorFlow's "same" padding: the odd pixel goes right and bottom."""
    extent = (kernel - 1) * dilation + 1
    padding: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        total = max((math.ceil(side / stride) - 1) * stride + extent - side, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding) if any(padding) else x
