"""Adapter files: a bit-exact round trip, and no input that crashes the reader."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from app.method.adapter import Adapter
from app.method.parameters import ExampleMemory, LowRank, Parameters, TokenRows, VisualPrompt
from app.storage.adapter_file import FORMAT, adapter_from_bytes, adapter_to_bytes


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KEY = "encoder.layer.2.crossattention.self.key"
TAUGHT = Adapter(
    backbone="embedded",
    revision="0123456789abcdef",
    category="Straßenbahn 🚋",
    version=7,
    prompts=("Straßenbahn 🚋", "tram"),
    layers=(2, 3),
    ensemble=(0.30000000000000004, 0.7),
    example_iou=0.8123,
    zero_shot_example_iou=1 / 3,
    created_at="2026-01-02T03:04:05Z",
    parameters=Parameters(
        {
            f"{KEY}.weight": numbers(5, 7).mT,
            f"{KEY}.bias": numbers(3, seed=1).bfloat16(),
            "encoder.layer.2.crossattention.self.query.weight": LowRank(numbers(5, 2), numbers(2, 7)),
        },
        TokenRows(
            torch.tensor([101, 3746, 102]),
            torch.tensor([[1e-7, -65504.0], [0.1, -0.0], [3.0, 5.0]], dtype=torch.float16),
        ),
    ),
)
WITH_VISUAL_PROMPT = replace(TAUGHT, visual_prompt=VisualPrompt(numbers(11), torch.tensor(0.25)))
MEMORY_ALONE = replace(
    TAUGHT,
    parameters=None,
    memory=ExampleMemory(
        numbers(3, 5),
        numbers(3),
        numbers(3, 5, seed=1),
        numbers(3),
        numbers(3, 5, seed=2),
        numbers(3, seed=2),
        numbers(3),
    ),
)
NO_PHOTO_WITHOUT_IT = replace(
    MEMORY_ALONE, memory=replace(MEMORY_ALONE.memory, absent=torch.zeros(3, 5), absent_share=torch.zeros(3))
)
WORDS_KEPT = replace(NO_PHOTO_WITHOUT_IT, kept="words", presence_bias=-1.25)
RAW = adapter_to_bytes(TAUGHT)
HEADER: dict[str, Any] = {
    "format": FORMAT,
    "backbone": "embedded",
    "revision": "0123456789abcdef",
    "category": "dog",
    "version": 1,
    "prompts": ["dog"],
    "layers": [2, 3],
    "ensemble": [0.5, 0.5],
    "example_iou": 0.5,
    "zero_shot_example_iou": 0.25,
    "created_at": "2026-01-02T03:04:05Z",
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=7,
)


def written(header: object, *, dtype: str = "F32", tensor_bytes: int = 8) -> bytes:
    """A well-formed safetensors file with a visual prompt, by hand: length, JSON, values."""
    width = 8 if dtype.endswith("64") else 4 if dtype.endswith("32") else 2 if dtype.endswith("16") else 1
    facts = {
        "__metadata__": {"exemplar": json.dumps(header)},
        "visual.direction": {"dtype": dtype, "shape": [tensor_bytes // width], "data_offsets": [0, tensor_bytes]},
        "visual.bias": {"dtype": "F32", "shape": [], "data_offsets": [tensor_bytes, tensor_bytes + 4]},
    }
    head = json.dumps(facts).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + bytes(tensor_bytes + 4)


def tensorless(adapter: Adapter) -> Adapter:
    return replace(adapter, parameters=None, visual_prompt=None, memory=None)


def read_or_refused(raw: bytes) -> None:
    """Anything else than an adapter or a ValueError escapes and fails the test."""
    with contextlib.suppress(ValueError):
        assert isinstance(adapter_from_bytes(raw), Adapter)


def stored(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The tensors of its file, by name."""
    return load(adapter_to_bytes(adapter))


@pytest.mark.parametrize(
    "adapter",
    [TAUGHT, WITH_VISUAL_PROMPT, MEMORY_ALONE, NO_PHOTO_WITHOUT_IT, WORDS_KEPT],
    ids=["parameters", "visual", "memory", "no photo without it", "words"],
)
def test_the_way_through_bytes_is_exact(adapter: Adapter) -> None:
    read = adapter_from_bytes(adapter_to_bytes(adapter))
    assert tensorless(read) == tensorless(adapter)
    assert stored(read).keys() == stored(adapter).keys()
    for name, tensor in stored(adapter).items():
        again = stored(read)[name]
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
        assert again.view(torch.uint8).equal(tensor.view(torch.uint8)) if tensor.ndim else again.equal(tensor)
    assert adapter_to_bytes(read) == adapter_to_bytes(adapter)
    assert (read.kept, read.form) == (adapter.kept, adapter.form)


def test_names_of_tensors_are_those_of_files_written_before() -> None:
    assert set(stored(WITH_VISUAL_PROMPT)) == {
        "embeddings.word_embeddings.token_ids",
        "embeddings.word_embeddings.rows",
        "encoder.layer.2.crossattention.self.key.weight",
        "encoder.layer.2.crossattention.self.key.bias",
        "encoder.layer.2.crossattention.self.query.weight.left",
        "encoder.layer.2.crossattention.self.query.weight.right",
        "visual.direction",
        "visual.bias",
    }
    assert set(stored(NO_PHOTO_WITHOUT_IT)) == {
        "example.inside",
        "example.inside_share",
        "example.outside",
        "example.outside_share",
        "example.facts",
    }


def test_an_adapter_without_tensors_survives_too() -> None:
    words_alone = replace(TAUGHT, parameters=None, kept="words")
    assert adapter_from_bytes(adapter_to_bytes(words_alone)) == words_alone


@pytest.mark.parametrize(
    "missing", ["embeddings.word_embeddings.rows", "visual.bias", f"{KEY.replace('key', 'query')}.weight.left"]
)
def test_a_file_that_lacks_a_tensor_is_refused(missing: str) -> None:
    raw = adapter_to_bytes(WITH_VISUAL_PROMPT)
    tensors = load(raw)
    del tensors[missing]
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    with pytest.raises(ValueError, match="expected an adapter"):
        adapter_from_bytes(save(tensors, header))


def test_what_is_written_here_by_hand_is_an_adapter() -> None:
    assert adapter_from_bytes(written(HEADER)).layers == (2, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "exemplar-adapter-2"},
        {"backbone": ""},
        {"category": 5},
        {"version": "one"},
        {"version": float("inf")},
        {"prompts": []},
        {"prompts": "dog"},
        {"prompts": [""]},
        {"layers": [], "ensemble": []},
        {"layers": [2]},
        {"layers": "23"},
        {"layers": [2, 2]},
        {"layers": [-1, 2]},
        {"ensemble": [0.5, 0.6]},
        {"ensemble": [-0.5, 1.5]},
        {"ensemble": [float("nan"), 1]},
        {"ensemble": [10**400, 0]},
        {"example_iou": 1.01},
        {"zero_shot_example_iou": float("nan")},
        {"created_at": None},
        {"backbone": "\ud800"},
        {"revision": "a\udfff"},
        {"category": "\ud800"},
        {"prompts": ["dog", "\ud83d"]},
        {"created_at": "\ud800"},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|invalid literal"):
        adapter_from_bytes(written({**HEADER, **change}))


@pytest.mark.parametrize("name", list(HEADER))
def test_a_missing_value_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        adapter_from_bytes(written({key: value for key, value in HEADER.items() if key != name}))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_parameters_that_are_no_numbers_are_refused(number: float) -> None:
    prompt = VisualPrompt(torch.tensor([1.0, number]), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"finite numbers in visual\.direction"):
        adapter_from_bytes(adapter_to_bytes(replace(TAUGHT, visual_prompt=prompt)))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F64", "C64", "BOOL", "U8", "I32"])
def test_parameters_of_other_types_are_refused(dtype: str) -> None:
    """They can't be stacked with those of other adapters; int64 holds token ids."""
    with pytest.raises(ValueError, match="expected"):
        adapter_from_bytes(written(HEADER, dtype=dtype))


@pytest.mark.parametrize("header", [None, [], "text", 7, {}])
def test_a_header_that_is_no_header_is_refused(header: object) -> None:
    with pytest.raises(ValueError, match="expected an adapter"):
        adapter_from_bytes(written(header))


def test_a_safetensors_file_that_is_no_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="__metadata__"):
        adapter_from_bytes(struct.pack("<Q", 2) + b"{}")


@given(length=st.integers(0, len(RAW) - 1))
def test_cut_short_it_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="expected an adapter"):
        adapter_from_bytes(RAW[:length])


@given(raw=st.binary(max_size=200))
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="expected an adapter"):
        adapter_from_bytes(raw)


@settings(max_examples=200)
@given(position=st.integers(0, len(RAW) - 1), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(position: int, value: int) -> None:
    read_or_refused(RAW[:position] + bytes([value]) + RAW[position + 1 :])


@settings(max_examples=200)
@given(name=st.sampled_from(list(HEADER)), value=json_values)
def test_a_changed_value_is_read_or_refused(name: str, value: object) -> None:
    read_or_refused(written({**HEADER, name: value}))


def test_a_deeply_nested_header_is_refused() -> None:
    nested = "[" * 100_000 + "]" * 100_000
    head = json.dumps({"__metadata__": {"exemplar": nested}}).encode()
    with pytest.raises(ValueError, match="expected an adapter"):
        adapter_from_bytes(struct.pack("<Q", len(head)) + head)


def test_a_file_without_photos_that_lack_the_category_is_as_earlier_releases_wrote_it() -> None:
    names = set(stored(NO_PHOTO_WITHOUT_IT))
    assert not {name for name in names if "absent" in name}
    assert {name for name in stored(MEMORY_ALONE) if "absent" in name} == {"example.absent", "example.absent_share"}


def test_earlier_releases_kept_no_tensor_where_the_words_were_better() -> None:
    assert adapter_from_bytes(save({}, metadata={"exemplar": json.dumps(HEADER)})).kept == "words"
    assert adapter_from_bytes(written(HEADER)).kept == "adapter"


@pytest.mark.parametrize(
    "header", [{"kept": "both"}, {"kept": None}, {"presence_bias": math.inf}, {"presence_bias": "x"}]
)
def test_what_presence_needs_is_checked(header: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|convert"):
        adapter_from_bytes(written(HEADER | header))
