"""Typed tensors that one category owns: changed parameters, token rows, visual prompt, example memory.

All of them are values: they are passed to a model as arguments and never written into it. Stacked over A adapters, each
tensor has a leading axis `adapter`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LowRank(NamedTuple):
    """A matrix's change as the product `left @ right` (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        left: `[adapter?, out, rank]`.
        right: `[adapter?, rank, in]`.
    """

    left: Float[Tensor, "*adapter out rank"]
    right: Float[Tensor, "*adapter rank in"]


# A parameter's new value, or the low-rank change that is added to the model's own matrix.
Change: TypeAlias = Tensor | LowRank


@dataclass(frozen=True)
class TokenRows:
    """Rows of the word-embedding table that replace the model's own.

    Attributes:
        ids: Token numbers; −1 pads a stack and matches no token.
        rows: Embedding of each of them.
    """

    ids: Int[Tensor, "*adapter row"]
    rows: Float[Tensor, "*adapter row width"]

    def padded(self, count: int) -> "TokenRows":
        """As many rows as asked for; the added ones match no token."""
        missing = count - len(self.ids)
        ids = torch.cat([self.ids, self.ids.new_full((missing,), -1)])
        return TokenRows(ids, torch.cat([self.rows, self.rows.new_zeros(missing, self.rows.shape[1])]))


@dataclass(frozen=True)
class Parameters:
    """The model parameters that prompts run under instead of the model's own.

    Attributes:
        delta: Parameter name to its new value or its low-rank change.
        tokens: Replaced rows of the word-embedding table.
    """

    delta: Mapping[str, Change]
    tokens: TokenRows

    def map(self, function: Callable[[Tensor], Tensor]) -> "Parameters":
        """The same parameters with a function applied to every floating-point tensor."""
        return Parameters(_mapped(self.delta, function), TokenRows(self.tokens.ids, function(self.tokens.rows)))

    def to(self, device: torch.device) -> "Parameters":
        """The same parameters on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def __getitem__(self, adapters: slice) -> "Parameters":
        """Some adapters of a stack."""
        return self._each(lambda tensor: tensor[adapters])

    @property
    def stacked(self) -> "Parameters":
        """A stack of this one alone: every tensor with a leading adapter axis of 1."""
        return self._each(lambda tensor: tensor[None])

    @property
    def count(self) -> int:
        """Adapters in a stack."""
        return len(self.tokens.ids)

    @property
    def trained(self) -> list[Tensor]:
        """Every tensor that a gradient may change."""
        tensors = [tensor for change in self.delta.values() for tensor in _tensors(change)]
        return [*tensors, self.tokens.rows]

    @property
    def form(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Names and shapes, token rows aside: parameters of one form can be stacked."""
        shapes = {
            (f"{name}/{number}", tuple(tensor.shape))
            for name, change in self.delta.items()
            for number, tensor in enumerate(_tensors(change))
        }
        return frozenset(shapes)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Parameters":
        """The same parameters with a function applied to every tensor, token numbers too."""
        tokens = TokenRows(function(self.tokens.ids), function(self.tokens.rows))
        return Parameters(_mapped(self.delta, function), tokens)

    @staticmethod
    def stack(parts: Sequence["Parameters"]) -> "Parameters":
        """One stack of several adapters' parameters, which must have the same form.

        Token rows may differ in number: shorter ones are padded.
        """
        delta: dict[str, Change] = {}
        for name, change in parts[0].delta.items():
            columns = zip(*(_tensors(part.delta[name]) for part in parts), strict=True)
            stacks = [torch.stack(column) for column in columns]
            delta[name] = LowRank(*stacks) if isinstance(change, LowRank) else stacks[0]
        count = max(len(part.tokens.ids) for part in parts)
        rows = [part.tokens.padded(count) for part in parts]
        tokens = TokenRows(torch.stack([each.ids for each in rows]), torch.stack([each.rows for each in rows]))
        return Parameters(delta, tokens)


@dataclass(frozen=True)
class VisualPrompt:
    """The appearance of the examples as one direction, added to the patch logits (`visual_prompt`).

    Attributes:
        direction: In the space of the patch features, its length the weight of the likeness.
        bias: Added to the logits of every patch.
    """

    direction: Float[Tensor, "*adapter feature"]
    bias: Float[Tensor, "*adapter"]

    def map(self, function: Callable[[Tensor], Tensor]) -> "VisualPrompt":
        """The same prompt with a function applied to both tensors."""
        return VisualPrompt(function(self.direction), function(self.bias))

    @staticmethod
    def stack(prompts: Sequence["VisualPrompt"]) -> "VisualPrompt":
        """One stack of several categories' prompts."""
        return VisualPrompt(torch.stack([p.direction for p in prompts]), torch.stack([p.bias for p in prompts]))


@dataclass(frozen=True, eq=False)  # a memory equals itself alone, so that what is computed of it can be kept
class ExampleMemory:
    """The appearance of the examples as a mask decoder keeps it: directions of patches inside and outside the masks.

    Attributes:
        inside: Directions of unit length in the decoder's space.
        inside_share: Share of the patches inside that each direction stands for; sum 1.
        outside: The same of patches outside.
        outside_share: The same of patches outside.
        absent: The same of photos without the category; all zero without such photos.
        absent_share: Share of their patches.
        facts: Mean log-odds of the words inside and outside, and the logarithm of the mask's area.
    """

    inside: Float[Tensor, "*adapter direction space"]
    inside_share: Float[Tensor, "*adapter direction"]
    outside: Float[Tensor, "*adapter direction space"]
    outside_share: Float[Tensor, "*adapter direction"]
    absent: Float[Tensor, "*adapter direction space"]
    absent_share: Float[Tensor, "*adapter direction"]
    facts: Float[Tensor, "*adapter 3"]

    def map(self, function: Callable[[Tensor], Tensor]) -> "ExampleMemory":
        """The same memory with a function applied to every tensor."""
        return ExampleMemory(**{part.name: function(getattr(self, part.name)) for part in fields(self)})

    @staticmethod
    def stack(memories: Sequence["ExampleMemory"]) -> "ExampleMemory":
        """One stack of several categories' memories."""
        names = [part.name for part in fields(ExampleMemory)]
        return ExampleMemory(**{name: torch.stack([getattr(memory, name) for memory in memories]) for name in names})


def _tensors(change: Change) -> tuple[Tensor, ...]:
    return tuple(change) if isinstance(change, LowRank) else (change,)


def _mapped(delta: Mapping[str, Change], function: Callable[[Tensor], Tensor]) -> dict[str, Change]:
    return {
        name: LowRank(*map(function, change)) if isinstance(change, LowRank) else function(change)
        for name, change in delta.items()
    }
