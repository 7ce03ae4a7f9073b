"""Adapters that are imported: which of them fit, and who reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from app.errors import ConflictError, InvalidInputError
from app.method.adapter import Adapter
from app.method.low_rank import unchanged
from app.method.parameters import LowRank, Parameters, TokenRows
from app.services.categories import check_adapter
from app.storage.adapter_file import adapter_from_bytes, adapter_to_bytes
from app.storage.names import CategoryName
from tests.models import random_adapter


@pytest.fixture
def adapter(tiny) -> Adapter:
    return Adapter(
        backbone="tiny",
        revision=tiny.revision,
        category="cat",
        version=1,
        prompts=("cat", "kitten"),
        layers=(0, 3),
        ensemble=(0.5, 0.5),
        example_iou=0.5,
        zero_shot_example_iou=0.5,
        created_at="now",
        parameters=tiny.trainable((0, 3), tiny.tokenize(["cat", "kitten"])),
    )


class TestAdapters:
    def test_its_own_backbones_adapter_fits(self, adapter, tiny) -> None:
        check_adapter(adapter, tiny)
        check_adapter(replace(adapter, parameters=None), tiny)

    def test_other_weights(self, adapter, tiny) -> None:
        for other in (replace(adapter, backbone="other"), replace(adapter, revision="0" * 16)):
            with pytest.raises(ConflictError):
                check_adapter(other, tiny)

    def test_layers_that_are_not_there(self, adapter, tiny) -> None:
        with pytest.raises(InvalidInputError, match="layers"):
            check_adapter(replace(adapter, layers=(0, 4)), tiny)

    def test_factors_of_a_change_fit_too_if_they_belong_together(self, adapter, tiny) -> None:
        rank, wide = unchanged(adapter.parameters, 3), unchanged(adapter.parameters, 5)
        check_adapter(replace(adapter, parameters=rank), tiny)
        name = next(name for name, change in rank.delta.items() if isinstance(change, LowRank))
        left, right = rank.delta[name]
        for change in (LowRank(left, wide.delta[name].right), left, LowRank(torch.zeros(()), right)):
            wrong = Parameters({**rank.delta, name: change}, rank.tokens)
            with pytest.raises(InvalidInputError):
                check_adapter(replace(adapter, parameters=wrong), tiny)

    def test_parameters_that_are_not_tuned(self, adapter, tiny) -> None:
        delta, tokens = adapter.parameters.delta, adapter.parameters.tokens
        name = next(iter(delta))
        narrower_rows = TokenRows(tokens.ids, tokens.rows[:, 1:])
        for wrong in (
            Parameters({key: change for key, change in delta.items() if key != name}, tokens),
            Parameters({**delta, "x": torch.zeros(1)}, tokens),
            Parameters({**delta, name: torch.zeros(2, 3, 5)}, tokens),
            Parameters({**delta, name: delta[name].long()}, tokens),
            Parameters(delta, narrower_rows),
        ):
            with pytest.raises(InvalidInputError):
                check_adapter(replace(adapter, parameters=wrong), tiny)

    def test_the_memory_of_the_examples_comes_with_it_where_there_is_a_mask_decoder(self, adapter, embedded) -> None:
        memory = embedded.mask_decoder.empty_memory()
        own = random_adapter(embedded, "dog", layers=(0, 1))
        check_adapter(replace(own, memory=memory), embedded)
        check_adapter(replace(own, memory=memory, parameters=None, visual_prompt=None), embedded)
        narrow = {name: torch.zeros(32, 7) for name in ("inside", "outside", "absent")}
        with pytest.raises(InvalidInputError, match="shape"):
            check_adapter(replace(own, memory=replace(memory, **narrow)), embedded)

    def test_a_memory_is_refused_where_there_is_no_mask_decoder(self, adapter, tiny, embedded) -> None:
        with pytest.raises(InvalidInputError, match="no mask decoder"):
            check_adapter(replace(adapter, memory=embedded.mask_decoder.empty_memory()), tiny)

    def test_numbers_beyond_all_measure(self, adapter, tiny) -> None:
        huge = adapter.parameters.map(lambda tensor: torch.full_like(tensor, 3e4))
        with pytest.raises(InvalidInputError, match="no usable scores"):
            check_adapter(replace(adapter, parameters=huge), tiny)

    def test_a_visual_prompt_alone_is_refused(self, tiny) -> None:
        own = random_adapter(tiny, "dog")
        with pytest.raises(InvalidInputError, match="parameters beside"):
            check_adapter(replace(own, parameters=None), tiny)


async def test_other_requests_go_on_while_an_adapter_is_read_and_written(wire, adapter: Adapter, monkeypatch) -> None:
    worked_on_by: list[threading.Thread] = []

    def noted(work: Callable[[object], object]) -> Callable[[object], object]:
        def work_and_note(value: object) -> object:
            worked_on_by.append(threading.current_thread())
            return work(value)

        return work_and_note

    monkeypatch.setattr("app.services.categories.adapter_from_bytes", noted(adapter_from_bytes))
    monkeypatch.setattr("app.storage.categories.adapter_to_bytes", noted(adapter_to_bytes))
    async with wire(worker=False) as live:
        imported = await live.categories.import_(
            CategoryName("cat"), await live.categories.read_adapter(adapter_to_bytes(adapter))
        )
        assert imported.adapter.version == 1
        with pytest.raises(InvalidInputError, match="not an adapter"):
            await live.categories.read_adapter(b"no adapter")
    assert len(worked_on_by) == 3
    assert threading.main_thread() not in worked_on_by
