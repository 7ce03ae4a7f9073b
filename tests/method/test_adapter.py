"""The description of an adapter, and the models that can run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from app.backbones.blip import Blip
from app.method.adapter import Adapter, OtherBackboneError
from app.method.low_rank import factorised
from app.method.parameters import ExampleMemory, Parameters, TokenRows, VisualPrompt
from tests.models import random_adapter

TOKENS = TokenRows(torch.tensor([101, 3746, 102]), torch.zeros(3, 2, dtype=torch.float16))
MEMORY = ExampleMemory(*[torch.zeros(3, 5), torch.zeros(3)] * 3, torch.zeros(3))


@contextmanager
def unchecked() -> Iterator[None]:
    """Shapes in signatures are checked in tests alone; a file from elsewhere meets the service without that."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


@pytest.fixture
def adapter(blip: Blip) -> Adapter:
    return random_adapter(blip, "dog", "small white puppy")


def test_where_the_words_were_kept_the_memory_makes_no_masks(adapter: Adapter) -> None:
    with_memory = replace(adapter, memory=MEMORY)
    assert with_memory.mask_memory is MEMORY
    assert replace(with_memory, kept="words").mask_memory is None


def test_adapters_of_one_form_can_be_stacked(blip: Blip, adapter: Adapter) -> None:
    assert adapter.form == random_adapter(blip, "cat", seed=1).form, "they differ in token rows alone"
    assert adapter.form != random_adapter(blip, "cat", layers=(0, 2)).form
    assert adapter.form != replace(adapter, visual_prompt=None).form
    assert replace(adapter, parameters=None).form is None


def test_it_counts_its_bytes(adapter: Adapter) -> None:
    parameters = Parameters({"bias": torch.zeros(5, 7), "norm": torch.zeros(3, dtype=torch.bfloat16)}, TOKENS)
    plain = replace(adapter, parameters=parameters, visual_prompt=None)
    assert plain.nbytes == 35 * 4 + 3 * 2 + 3 * 8 + 6 * 2
    assert replace(plain, memory=MEMORY).nbytes == plain.nbytes + 4 * (3 * (15 + 3) + 3)


class TestCheck:
    @pytest.mark.parametrize("rank", [3, 50])
    def test_what_the_model_tunes_can_be_run(self, blip: Blip, adapter: Adapter, rank: int) -> None:
        adapter.check(blip)
        replace(adapter, parameters=None, visual_prompt=None).check(blip)
        base = blip.trainable(adapter.layers, blip.tokenize(adapter.prompts))
        replace(adapter, parameters=factorised(adapter.parameters, base, rank)).check(blip)

    @pytest.mark.parametrize("change", [{"backbone": "blip:other"}, {"revision": "0"}], ids=str)
    def test_other_weights_cannot_run_it(self, blip: Blip, adapter: Adapter, change: dict[str, str]) -> None:
        with pytest.raises(OtherBackboneError, match="blip:random"):
            replace(adapter, **change).check(blip)

    def test_a_layer_that_the_model_lacks(self, blip: Blip, adapter: Adapter) -> None:
        with pytest.raises(ValueError, match="layers 0 to 4, got 5"):
            replace(adapter, layers=(0, 5)).check(blip)

    def test_a_parameter_of_another_shape_or_name_is_named(self, blip: Blip, adapter: Adapter) -> None:
        name, change = next(iter(adapter.parameters.delta.items()))
        others = {key: value for key, value in adapter.parameters.delta.items() if key != name}
        for delta in (others, {**others, name: change[:-1]}, {**adapter.parameters.delta, "a.b": change}):
            wrong = "a.b" if "a.b" in delta else name
            with pytest.raises(ValueError, match=f"such as {wrong}"):
                replace(adapter, parameters=Parameters(delta, adapter.parameters.tokens)).check(blip)

    @pytest.mark.parametrize(
        ("ids", "rows"),
        [
            (torch.tensor([101, 102]), torch.zeros(2, 22)),
            (torch.tensor([101, 102]), torch.zeros(3, 21)),
            (torch.tensor([101.0, 102.0]), torch.zeros(2, 21)),
            (torch.tensor([101, 102]), torch.zeros(2, 21, dtype=torch.long)),
        ],
        ids=["width", "count", "float ids", "whole rows"],
    )
    def test_token_rows_of_another_form(self, blip: Blip, adapter: Adapter, ids: Tensor, rows: Tensor) -> None:
        with unchecked():
            other = replace(adapter, parameters=Parameters(adapter.parameters.delta, TokenRows(ids, rows)))
            with pytest.raises(ValueError, match="expected"):
                other.check(blip)

    def test_a_visual_prompt_of_another_width_or_without_parameters(self, blip: Blip, adapter: Adapter) -> None:
        with pytest.raises(ValueError, match="direction of shape"):
            replace(adapter, visual_prompt=VisualPrompt(torch.zeros(5), torch.zeros(()))).check(blip)
        with pytest.raises(ValueError, match="beside the visual prompt"):
            replace(adapter, parameters=None).check(blip)

    def test_a_memory_without_a_mask_decoder(self, blip: Blip, adapter: Adapter) -> None:
        with pytest.raises(ValueError, match="no mask decoder"):
            replace(adapter, memory=MEMORY).check(blip)

    def test_a_memory_of_another_shape(self, embedded) -> None:
        words = random_adapter(embedded, "dog", layers=(0, 1))
        with pytest.raises(ValueError, match="inside of shape"):
            replace(words, parameters=None, visual_prompt=None, memory=MEMORY).check(embedded)
