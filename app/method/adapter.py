"""Everything that one category learned: an immutable value, passed to the model as an argument."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from .backbone import Backbone
from .low_rank import rank_of, unchanged
from .parameters import ExampleMemory, LowRank, Parameters, VisualPrompt

Kept = Literal["adapter", "presence", "words"]

# Stacked adapters share one type per tensor, and bytes from elsewhere are limited to these.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int64)


class OtherBackboneError(ValueError):
    """The adapter was tuned on other weights than the model's."""


@dataclass(frozen=True)
class Adapter:
    """A category's own version of the parameters that one example may change, and the appearance of its examples.

    Attributes:
        backbone: Name of the model it was tuned on, such as `embedded`.
        revision: Hash of that model's weights; the adapter is valid on these alone.
        category: The category's name.
        version: 1, 2, …; never used twice for one name.
        prompts: The category's name and synonyms.
        layers: Layers whose cross-attention was tuned and is read.
        ensemble: Weight of each of `layers`, sum 1.
        example_iou: Intersection over union on the category's own examples, by this adapter, in [0, 1].
        zero_shot_example_iou: The same by the words alone.
        created_at: RFC 3339 time.
        parameters: Tuned parameters; None if the model's own marked the examples better.
        kept: `presence` if the words alone suffice for the masks, and `words` if they mark the examples better: then
            masks are made by them, and the memory serves presence only.
        presence_bias: Added to the category's log-odds of presence, by its own examples.
        visual_prompt: Of a backbone without a mask decoder; it needs `parameters`.
        memory: Of a backbone with a mask decoder.
    """

    backbone: str
    revision: str
    category: str
    version: int
    prompts: tuple[str, ...]
    layers: tuple[int, ...]
    ensemble: tuple[float, ...]
    example_iou: float
    zero_shot_example_iou: float
    created_at: str
    kept: Kept = "adapter"
    presence_bias: float = 0.0
    parameters: Parameters | None = None
    visual_prompt: VisualPrompt | None = None
    memory: ExampleMemory | None = None

    @property
    def mask_memory(self) -> ExampleMemory | None:
        """Memory for the mask decoder."""
        return self.memory if self.kept == "adapter" else None

    @property
    def form(self) -> frozenset[tuple[str, tuple[int, ...]]] | None:
        """Names and shapes of what the prompts run under: adapters of one form are stacked. None without parameters."""
        if self.parameters is None:
            return None
        prompt = {("visual_prompt", tuple(self.visual_prompt.direction.shape))} if self.visual_prompt else set()
        return self.parameters.form | prompt

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in memory."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor."""
        found = [*self.parameters.trained, self.parameters.tokens.ids] if self.parameters else []
        for part in (self.visual_prompt, self.memory):
            found += [getattr(part, each.name) for each in fields(part)] if part else []
        return found

    def fits(self, backbone: Backbone) -> bool:
        """True if the adapter was tuned on this model's weights."""
        return (self.backbone, self.revision) == (backbone.name, backbone.revision)

    def check(self, backbone: Backbone) -> None:
        """Raise unless a model can run the adapter.

        Raises:
            OtherBackboneError: If it was tuned on other weights.
            ValueError: If its layers or the shapes of its tensors are not those that these weights tune.
        """
        if not self.fits(backbone):
            raise OtherBackboneError(
                f"expected an adapter of {backbone.name} ({backbone.revision}), "
                f"got one of {self.backbone} ({self.revision})"
            )
        if max(self.layers) >= backbone.layer_count:
            raise ValueError(f"expected layers 0 to {backbone.layer_count - 1}, got {max(self.layers)}")
        if self.parameters:
            _check_parameters(self.parameters, backbone.trainable(self.layers, backbone.tokenize(self.prompts)))
        if self.visual_prompt:
            wanted = VisualPrompt(torch.zeros(backbone.feature_width), torch.zeros(()))
            _check_tensors(self.visual_prompt, wanted)
            if not self.parameters:
                raise ValueError("expected parameters beside the visual prompt")
        if self.memory:
            if backbone.mask_decoder is None:
                raise ValueError(f"expected no example memory, since {backbone.name} has no mask decoder")
            _check_tensors(self.memory, backbone.mask_decoder.empty_memory())


def _check_parameters(given: Parameters, wanted: Parameters) -> None:
    if any(isinstance(change, LowRank) for change in given.delta.values()):
        wanted = unchanged(wanted, rank_of(given))
    if given.form != wanted.form:
        name = next((name for name, _ in sorted(given.form ^ wanted.form)), "")
        raise ValueError(f"expected the parameters that the backbone tunes, got others, such as {name.split('/')[0]}")
    rows, width = len(given.tokens.ids), wanted.tokens.rows.shape[1]
    if given.tokens.ids.shape != (rows,) or given.tokens.rows.shape != (rows, width):
        raise ValueError(f"expected token rows of {width} numbers, got {tuple(given.tokens.rows.shape)}")
    if given.tokens.ids.is_floating_point() or not all(tensor.is_floating_point() for tensor in given.trained):
        raise ValueError("expected whole numbers for token ids and floating-point numbers for all others")


def _check_tensors(given: VisualPrompt | ExampleMemory, wanted: VisualPrompt | ExampleMemory) -> None:
    for part in fields(wanted):
        tensor, shape = getattr(given, part.name), tuple(getattr(wanted, part.name).shape)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ValueError(f"expected {part.name} of shape {shape}, got {tuple(tensor.shape)}")
