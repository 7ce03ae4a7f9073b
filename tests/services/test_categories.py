"""Names as they are stored and compared; what is let in as an adapter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from app.method.example_memory import FACTS, INSIDE, blank

from app.errors import ConflictError, InvalidInputError
from app.method.adapter import TOKEN_IDS, Adapter, adapter_from_bytes, adapter_to_bytes
from app.method.low_rank import unchanged
from app.services.categories import check_adapter, clean_name, clean_names, teaching_words
from tests.models import random_adapter


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("cat", "cat"),
        ("  fire  truck\t", "fire  truck"),
        ("Fu\N{COMBINING DIAERESIS}ße", "Füße"),
        ("猫", "猫"),
        ("👩‍🚒", "👩‍🚒"),
        ("é" * 64, "é" * 64),
        ("e\N{COMBINING ACUTE ACCENT}" * 64, "é" * 64),
    ],
)
def test_names(given: str, stored: str) -> None:
    assert clean_name(given) == stored


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "a\nb", "\0", "a\x9f", "x" * 65, "\ud800", "a\N{REPLACEMENT CHARACTER}"]
)
def test_no_names(name: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        clean_name(name, field="prompts")
    assert refused.value.field == "prompts"


def test_each_name_once_where_it_came_first() -> None:
    assert clean_names(["dog", "Cat", "DOG", "cat", "bird"], field="categories", limit=5) == ("dog", "Cat", "bird")
    with pytest.raises(InvalidInputError, match="EXEMPLAR_MAX_CATEGORIES"):
        clean_names(["a"] * 6, field="categories", limit=5)


def test_other_words_leave_out_the_name() -> None:
    assert teaching_words(["kitten", "CAT", "Kitten", "tomcat"], "cat") == ("Kitten", "tomcat")


@pytest.fixture
def adapter(tiny) -> Adapter:
    tensors = tiny.trainable((0, 3), tiny.tokenize(["cat", "kitten"]))
    return Adapter(
        backbone="tiny",
        revision=tiny.revision,
        category="cat",
        version=1,
        prompts=("cat", "kitten"),
        layers=(0, 3),
        ensemble=(0.5, 0.5),
        tensors=tensors,
        example_iou=0.5,
        zero_shot_example_iou=0.5,
        created_at="now",
    )


class TestAdapters:
    def test_its_own_backbones_adapter_fits(self, adapter, tiny) -> None:
        check_adapter(adapter, tiny)
        check_adapter(replace(adapter, tensors={}), tiny)

    def test_other_weights(self, adapter, tiny) -> None:
        for other in (replace(adapter, backbone="other"), replace(adapter, revision="0" * 16)):
            with pytest.raises(ConflictError):
                check_adapter(other, tiny)

    def test_layers_that_are_not_there(self, adapter, tiny) -> None:
        with pytest.raises(InvalidInputError, match="layers"):
            check_adapter(replace(adapter, layers=(0, 4)), tiny)

    def test_factors_of_a_change_fit_too_if_they_belong_together(self, adapter, tiny) -> None:
        rank, wide = unchanged(adapter.tensors, 3), unchanged(adapter.tensors, 5)
        check_adapter(replace(adapter, tensors=rank), tiny)
        name = next(name for name in rank if name.endswith(".right"))
        for tensors in (
            rank | {name: wide[name]},
            {key: tensor for key, tensor in rank.items() if key != name},
            {key: torch.zeros(()) if key.endswith(".left") else tensor for key, tensor in rank.items()},
        ):
            with pytest.raises(InvalidInputError):
                check_adapter(replace(adapter, tensors=tensors), tiny)

    def test_tensors_that_are_not_tuned(self, adapter, tiny) -> None:
        fewer = dict(list(adapter.tensors.items())[1:])
        more = adapter.tensors | {"x": torch.zeros(1)}
        name = next(iter(fewer))
        misshaped = adapter.tensors | {name: torch.zeros(2, 3, 5)}
        integers = adapter.tensors | {name: adapter.tensors[name].long()}
        one_row_more = adapter.tensors | {TOKEN_IDS: torch.cat([adapter.tensors[TOKEN_IDS], torch.tensor([5])])}
        for tensors in (fewer, more, misshaped, integers, one_row_more):
            with pytest.raises(InvalidInputError):
                check_adapter(replace(adapter, tensors=tensors), tiny)

    def test_what_the_examples_look_like_comes_with_it_where_there_is_a_mask_decoder(self, adapter, embedded) -> None:
        memory = blank(embedded.mask_decoder)
        own = random_adapter(embedded, "dog", layers=(0, 1))
        check_adapter(replace(own, tensors=own.tensors | memory), embedded)
        check_adapter(replace(own, tensors=memory), embedded)
        with pytest.raises(InvalidInputError, match="shape"):
            check_adapter(replace(own, tensors=own.tensors | memory | {INSIDE: torch.zeros(32, 7)}), embedded)
        with pytest.raises(InvalidInputError, match="not those"):
            check_adapter(replace(own, tensors=own.tensors | {FACTS: torch.zeros(3)}), embedded)

    def test_it_is_refused_where_there_is_none(self, adapter, tiny, embedded) -> None:
        with pytest.raises(InvalidInputError, match="not those"):
            check_adapter(replace(adapter, tensors=adapter.tensors | blank(embedded.mask_decoder)), tiny)


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
        imported = await live.categories.import_("cat", adapter_to_bytes(adapter))
        assert imported.adapter.version == 1
        with pytest.raises(InvalidInputError, match="not an adapter"):
            await live.categories.import_("cat", b"no adapter")
    assert len(worked_on_by) == 3
    assert threading.main_thread() not in worked_on_by
