"""The revision of a model changes with everything that decides its output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.backbones.shared.transformers_backbone import revision_of


class TestRevision:
    TENSORS = (("a", torch.tensor([[1.0, 2, 3]])), ("b", torch.tensor(5)))

    def test_it_is_sixteen_digits_whatever_the_order(self) -> None:
        found = revision_of(self.TENSORS, "kind")
        assert found == revision_of(self.TENSORS[::-1], "kind")
        assert int(found, 16) >= 0
        assert len(found) == 16

    @pytest.mark.parametrize(
        "tensors",
        [
            (("a", torch.tensor([[1.0, 2, 4]])), ("b", torch.tensor(5))),
            (("a", torch.tensor([[1.0, 2, 3]])), ("b", torch.tensor(6))),
            (("a", torch.tensor([[1.0], [2], [3]])), ("b", torch.tensor(5))),
            (("a", torch.tensor([[1.0, 2, 3]])), ("c", torch.tensor(5))),
            (("a", torch.tensor([[1.0, 2, 3]])),),
        ],
        ids=["a value", "a number alone", "a shape", "a name", "one less"],
    )
    def test_it_changes_with(self, tensors: tuple[tuple[str, Tensor], ...]) -> None:
        assert revision_of(tensors, "kind") != revision_of(self.TENSORS, "kind")

    def test_it_changes_with_what_else_decides_the_output(self) -> None:
        assert revision_of(self.TENSORS, "kind", "512") != revision_of(self.TENSORS, "kind", "384")

    def test_the_layout_in_memory_does_not_matter(self) -> None:
        tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
        assert revision_of([("a", tensor.mT.contiguous().mT)]) == revision_of([("a", tensor)])
