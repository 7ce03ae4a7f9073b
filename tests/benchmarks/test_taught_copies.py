"""Copies of a taught category run everything that an adapter may have, as distinct categories of the service do."""

from __future__ import annotations

from app.backbones.embedded import Embedded
from benchmarks.presence import taught_copies


def test_each_has_parameters_and_a_memory_of_its_own(embedded: Embedded) -> None:
    one, other = (query.adapter for query in taught_copies(embedded, ["cat", "dog"]))
    assert one
    assert other
    assert (one.category, one.prompts) == ("cat", ("cat",))
    assert one.parameters
    assert one.mask_memory
    assert other.mask_memory
    assert not one.mask_memory.inside.equal(other.mask_memory.inside)
    assert not {tensor.data_ptr() for tensor in one.tensors} & {tensor.data_ptr() for tensor in other.tensors}
