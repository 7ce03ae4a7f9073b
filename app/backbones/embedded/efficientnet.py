"""EfficientNet-Lite2 with dilated last stages: the image tower of the embedded backbone.

Stages as in Tan & Le 2019 (https://arxiv.org/abs/1905.11946), the Lite variant without squeeze-and-excite; its batch
norms are folded into the convolutions.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# Per stage: blocks, stride, expansion. Stage 6 has stride 1, and every block after its first has dilation 2, so that
# every map from stage 5 on is 1/16 of the input.
_STAGES = ((1, 1, 1), (3, 2, 6), (3, 2, 6), (4, 2, 6), (4, 1, 6), (5, 1, 6), (1, 1, 6))
_DILATED_STAGE = 5
# Blocks of stages 1 to 3, after which a map is 1/8 of the input.
EDGE_BLOCKS = 7


@dataclass(frozen=True)
class Conv:
    """Convolution with TensorFlow's "same" padding; depthwise if the kernel has one input channel.

    On a CPU, without gradients, oneDNN computes what follows it in the same pass, and lays the weights out once: the
    tower takes 18 ms instead of 27 in bfloat16, 29 instead of 33 to 40 in float32. These are the operations that
    torch's own compiler emits for a CPU.
    """

    weight: Tensor
    bias: Tensor
    stride: int = 1
    dilation: int = 1
    _laid_out: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, x: Tensor, *, relu6: bool = False, plus: Tensor | None = None) -> Tensor:
        """The convolution, then ReLU6 or the sum with another tensor."""
        groups = x.shape[1] // self.weight.shape[1]
        (top, bottom), (left, right) = (self._padding(side) for side in x.shape[2:])
        # The convolution applies the padding common to both sides without a copy.
        both = (min(top, bottom), min(left, right))
        if (top, left) != (bottom, right):
            x = F.pad(x, (left - both[1], right - both[1], top - both[0], bottom - both[0]))
        run = self._fused if _can_fuse(x) else self._plain
        return run(x, both, groups, relu6, plus)

    def _plain(self, x: Tensor, padding: tuple[int, int], groups: int, relu6: bool, plus: Tensor | None) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, groups)
        if relu6:
            y = F.relu6(y, inplace=True)
        return y if plus is None else y.add_(plus)

    def _fused(self, x: Tensor, padding: tuple[int, int], groups: int, relu6: bool, plus: Tensor | None) -> Tensor:
        how = (padding, [self.stride] * 2, [self.dilation] * 2, groups)
        if not self._laid_out:  # for the first size; the weights are laid out again in a call with another one
            self._laid_out.append(torch.ops.mkldnn._reorder_convolution_weight(self.weight, *how, x.shape))
        convolution = torch.ops.mkldnn._convolution_pointwise
        what = (self._laid_out[0], self.bias, *how)
        if plus is not None:
            y: Tensor = convolution.binary(x, plus, *what, "add", 1.0, None, [], None)
        elif relu6:
            y = convolution(x, *what, "hardtanh", [0.0, 6.0], "")
        else:
            y = convolution(x, *what, "none", [], "")
        return y

    def _padding(self, side: int) -> tuple[int, int]:
        """Pixels before and after, as in TensorFlow's "same": an odd pixel goes after."""
        extent = (self.weight.shape[-1] - 1) * self.dilation + 1
        total = max((math.ceil(side / self.stride) - 1) * self.stride + extent - side, 0)
        return total // 2, total - total // 2


@dataclass(frozen=True)
class Block:
    """Inverted residual block: expand, depthwise, project."""

    expand: Conv | None
    depthwise: Conv
    project: Conv
    residual: bool

    def __call__(self, x: Tensor) -> Tensor:
        y = self.expand(x, relu6=True) if self.expand else x
        return self.project(self.depthwise(y, relu6=True), plus=x if self.residual else None)


@dataclass(frozen=True)
class EfficientNetLite2:
    """The image tower, with three output maps.

    They are `edges` (the input of stage 4: 48 channels, 1/8 of the input), `fine` (the input of stage 6: 120 channels,
    1/16) and `deep` (the last map: 352 channels, 1/16).
    """

    stem: Conv
    before: tuple[Block, ...]
    after: tuple[Block, ...]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and biases, named as for `build`."""
        yield from _tensors("stem", self.stem)
        for number, block in enumerate((*self.before, *self.after)):
            for part in ("expand", "depthwise", "project"):
                if conv := getattr(block, part):
                    yield from _tensors(f"blocks.{number}.{part}", conv)

    def __call__(
        self, rgb: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 48 yy xx"], Float[Tensor, "batch 120 y x"], Float[Tensor, "batch 352 y x"]]:
        """Compute the maps `edges`, `fine` and `deep` of images with values in [0, 1]."""
        edges, fine = self.early(rgb)
        x = fine
        for block in self.after:
            x = block(x)
        return edges, fine, x

    def early(
        self, rgb: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 48 yy xx"], Float[Tensor, "batch 120 y x"]]:
        """Compute `edges` and `fine` only."""
        edges = x = self.edges(rgb)
        for block in self.before[EDGE_BLOCKS:]:
            x = block(x)
        return edges, x

    def edges(self, rgb: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 48 yy xx"]:
        """Compute `edges` only."""
        x = ((rgb * 255 - 127) / 128).to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = self.stem(x, relu6=True)
        for block in self.before[:EDGE_BLOCKS]:
            x = block(x)
        return x


def build(weights: Mapping[str, Tensor], dtype: torch.dtype) -> EfficientNetLite2:
    """Build the tower.

    Args:
        weights: Weights of the convolutions with batch norms folded in: `stem.weight`, `blocks.0.depthwise.bias`, …
        dtype: Number format.
    """

    def conv(name: str, *, stride: int = 1, dilation: int = 1) -> Conv:
        weight = weights[f"{name}.weight"].to(dtype).contiguous(memory_format=torch.channels_last)
        return Conv(weight, weights[f"{name}.bias"].to(dtype), stride, dilation)

    before: list[Block] = []
    after: list[Block] = []
    number = 0
    for stage, (blocks, stride, expansion) in enumerate(_STAGES):
        for position in range(blocks):
            dilated = stage > _DILATED_STAGE or (stage == _DILATED_STAGE and position > 0)
            block = Block(
                expand=conv(f"blocks.{number}.expand") if expansion != 1 else None,
                depthwise=conv(
                    f"blocks.{number}.depthwise",
                    stride=stride if position == 0 else 1,
                    dilation=2 if dilated else 1,
                ),
                project=conv(f"blocks.{number}.project"),
                residual=position > 0,
            )
            (before if stage < _DILATED_STAGE else after).append(block)
            number += 1
    return EfficientNetLite2(conv("stem", stride=2), tuple(before), tuple(after))


def _can_fuse(x: Tensor) -> bool:
    """True if oneDNN can compute what follows a convolution of this tensor in the same pass."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    if x.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # untyped in torch
    return available and x.dtype is torch.float32


def _tensors(name: str, conv: Conv) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", conv.weight
    yield f"{name}.bias", conv.bias
