"""The service's path against the plain one over everything that a request may be."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertTokenizer, BlipForImageTextRetrieval

from app.backbones.blip import Blip
from app.method.adapter import TOKEN_IDS, TOKEN_ROWS, Adapter
from app.method.evidence import Query
from app.method.frame import imagenet_normalise
from app.method.low_rank import factorised
from app.method.prompts import prompt_set
from app.method.segment import class_map, encode
from benchmarks import plain
from tests.models import random_adapter, random_blip

BACKGROUND = ("wall", "grass field", "sky")
WORDS = ("dog", "puppy", "hot air balloon", "cat", "railway track", "bed", "a very long name for a cup", "x")
# How a category runs: by its words, under whole matrices, under factors of their change.
KINDS = ("words", "whole", "factors")


@cache
def real() -> tuple[BlipForImageTextRetrieval, BertTokenizer]:
    return random_blip()


@cache
def backbone(side: int, dtype: torch.dtype) -> Blip:
    model, tokenizer = real()
    return Blip(copy.deepcopy(model), tokenizer, input_size=side, dtype=dtype)


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[tuple[tuple[str, ...], str]], tuple[int, ...]]:
    """Categories with their words and kind, and the layers read for all of them."""
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=len(WORDS), unique=True))
    categories = []
    while words:
        count = draw(st.integers(1, min(3, len(words))))
        categories.append((tuple(words[:count]), draw(st.sampled_from(KINDS))))
        words = words[count:]
    layers = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))
    return categories, tuple(layers)


def adapter_of(model: Blip, words: Sequence[str], kind: str, layers: tuple[int, ...], seed: int) -> Adapter | None:
    if kind == "words":
        return None
    even = [1 / len(layers)] * len(layers)
    base = model.trainable(layers, model.tokenize(words))
    made = random_adapter(model, *words, layers=layers, ensemble=even, seed=seed)
    tensors = {name: tensor for name, tensor in made.tensors.items() if name in base}
    if kind == "factors":
        tensors = factorised(tensors, base, 3)
    return replace(made, tensors=tensors)


def substituted(adapter: Adapter | None) -> BlipForImageTextRetrieval:
    """transformers' model with an adapter's parameters in the place of its own."""
    model, _ = real()
    if adapter is None:
        return model
    model = copy.deepcopy(model)
    own = dict(model.text_encoder.named_parameters())
    table = own["embeddings.word_embeddings.weight"]
    with torch.no_grad():
        table[adapter.tensors[TOKEN_IDS]] = adapter.tensors[TOKEN_ROWS]
        for name, tensor in whole(adapter.tensors, own).items():
            own[name].copy_(tensor)
    return model


def whole(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    changed = {
        name.removesuffix(".left"): base[name.removesuffix(".left")] + left @ tensors[name[:-5] + ".right"]
        for name, left in tensors.items()
        if name.endswith(".left")
    }
    return changed | {name: t for name, t in tensors.items() if name in base}


@given(
    request=requests(),
    side=st.sampled_from((64, 80, 112, 176)),
    dtype=st.sampled_from((torch.float32, torch.float32, torch.bfloat16)),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_it_is_the_plain_path_whatever_is_asked(
    request: tuple[list[tuple[tuple[str, ...], str]], tuple[int, ...]], side: int, dtype: torch.dtype, seed: int
) -> None:
    categories, layers = request
    exact, ours = backbone(side, torch.float32), backbone(side, dtype)
    adapters = [adapter_of(exact, words, kind, layers, n + seed) for n, (words, kind) in enumerate(categories)]
    rgb = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    queries = [Query(words, adapter) for (words, _), adapter in zip(categories, adapters, strict=True)]
    with torch.no_grad():
        found = class_map(ours, encode(ours, rgb), queries, layers=layers, background=BACKGROUND)
        groups = [(BACKGROUND, None), *((query.words, query.adapter) for query in queries)]
        parts = [
            plain.evidence(substituted(adapter), imagenet_normalise(rgb), exact.tokenize(words), layers)
            for words, adapter in groups
        ]
        logits, match = torch.cat([part for part, _ in parts], dim=1), torch.cat([score for _, score in parts])
        expected = plain.compete(logits, match, prompt_set(BACKGROUND, [query.words for query in queries]), size=side)
    error = (found.probabilities - expected).abs()
    if dtype == torch.float32:
        assert error.max() < 1e-4
    else:  # 8 bits of mantissa, and logits of some tens
        assert error.mean() < 0.05
