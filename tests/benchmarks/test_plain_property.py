"""The service's path against the baseline, over everything that a request may have."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, BlipForImageTextRetrieval

from app.backbones.blip import Blip
from app.method.adapter import Adapter
from app.method.frame import imagenet_normalise
from app.method.low_rank import factorised
from app.method.parameters import LowRank
from app.method.pipeline import Pipeline, encode_one
from app.method.prompts import Prompts, Query
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
    assert made.parameters is not None
    parameters = factorised(made.parameters, base, 3) if kind == "factors" else made.parameters
    return replace(made, parameters=parameters, visual_prompt=None)


def substituted(adapter: Adapter | None) -> BlipForImageTextRetrieval:
    """transformers' model with an adapter's parameters in the place of its own."""
    model, _ = real()
    if adapter is None:
        return model
    model = copy.deepcopy(model)
    own = dict(model.text_encoder.named_parameters())
    table = own["embeddings.word_embeddings.weight"]
    with torch.no_grad():
        assert adapter.parameters is not None
        table[adapter.parameters.tokens.ids] = adapter.parameters.tokens.rows
        for name, change in adapter.parameters.delta.items():
            own[name].copy_(own[name] + change.left @ change.right if isinstance(change, LowRank) else change)
    return model


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
        pipeline = Pipeline(ours, layers=layers, background=BACKGROUND, min_relative_score=0.0)
        found = pipeline.class_map(encode_one(ours, rgb), queries)
        groups = [(BACKGROUND, None), *((query.words, query.adapter) for query in queries)]
        parts = [
            plain.evidence(substituted(adapter), imagenet_normalise(rgb), exact.tokenize(words), layers)
            for words, adapter in groups
        ]
        logits, match = torch.cat([part for part, _ in parts], dim=1), torch.cat([score for _, score in parts])
        expected = plain.compete(logits, match, Prompts.of(queries, BACKGROUND).spans, size=side)
    error = (found.probabilities - expected).abs()
    if dtype == torch.float32:
        assert error.max() < 1e-4
    else:  # 8 bits of mantissa, and logits of some tens
        assert error.mean() < 0.05
