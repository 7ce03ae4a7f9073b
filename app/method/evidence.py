"""Run every prompt over one image, each under its own category's adapter, and keep what the class map needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .adapter import TOKEN_IDS, TOKEN_ROWS, Adapter
from .backbone import Backbone, TextToImage, TextTokens
from .class_map import head_max, token_sum
from .prompts import prompt_set
from .visual_prompt import BIAS, DIRECTION, visual_logits

# Prompts of one pass: bounds the logits [prompt, head, token, patch] to some tens of megabytes however many categories
# are asked for.
PROMPTS_PER_PASS = 128


@dataclass(frozen=True)
class Query:
    """A category to look for: the words for it and, if it was taught, its adapter. The background is one too."""

    words: tuple[str, ...]
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Evidence:
    """What an image says to each prompt.

    Attributes:
        patch_logits: Head-max, token-summed attention logits.
        match_score: Image-text score, in [0, 1].
        spans: Per class the half-open range of its prompts; the background first.
    """

    patch_logits: Float[Tensor, "layer prompt patch"]
    match_score: Float[Tensor, "prompt"]
    spans: tuple[tuple[int, int], ...]


def prompt_evidence(
    backbone: Backbone,
    image_tokens: Float[Tensor, "image_token width"],
    queries: Sequence[Query],
    layers: Sequence[int],
) -> Evidence:
    """Evidence of all queries' prompts, the background's first, whichever adapters they run under.

    Queries without an adapter share passes; those with one are batched with those of the same shape, their adapters
    stacked.
    """
    asked = prompt_set(queries[0].words, [query.words for query in queries[1:]])
    logits: list[Tensor | None] = [None] * len(queries)
    match: list[Tensor | None] = [None] * len(queries)
    for members in batches(queries):
        words = [word for index in members for word in queries[index].words]
        adapters = [adapter for index in members if (adapter := _tuned(queries[index])) is not None]
        stacked = stack(adapters)
        summed, scores = _attend(backbone, image_tokens, words, layers, stacked)
        sizes = [len(queries[index].words) for index in members]
        if stacked and DIRECTION in stacked:
            seen = visual_logits(backbone.patch_features(image_tokens), stacked[DIRECTION], stacked[BIAS])
            summed = summed + seen.repeat_interleave(torch.tensor(sizes, device=seen.device), dim=0)
        parts = zip(members, torch.split(summed, sizes, dim=1), torch.split(scores, sizes), strict=True)
        for index, part, score in parts:
            logits[index], match[index] = part, score
    return Evidence(
        patch_logits=torch.cat([part for part in logits if part is not None], dim=1),
        match_score=torch.cat([score for score in match if score is not None]),
        spans=asked.spans,
    )


def batches(queries: Sequence[Query]) -> list[list[int]]:
    """Indices of the queries that run in one pass: of one kind, and not too many prompts."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for index, query in enumerate(queries):
        adapter = _tuned(query)
        # Stacked adapters need tensors of the same form and as many prompts each.
        kind = () if adapter is None else (len(query.words), adapter.form)
        kinds.setdefault(kind, []).append(index)
    passes: list[list[int]] = []
    for members in kinds.values():
        room = 0
        for index in members:
            if room < len(queries[index].words):
                passes.append([])
                room = PROMPTS_PER_PASS
            passes[-1].append(index)
            room -= len(queries[index].words)
    return passes


def stack(adapters: Sequence[Adapter]) -> dict[str, Tensor] | None:
    """Adapters of the same shape as one batch, `[adapter, …]`; None for no adapter.

    Each replaces rows of its own tokens, as many as it has: shorter lists are padded with token −1, which matches
    nothing.
    """
    if not adapters:
        return None
    rows = max(len(adapter.parameters[TOKEN_IDS]) for adapter in adapters)
    stacked = {}
    for name in adapters[0].parameters:
        tensors = [adapter.parameters[name] for adapter in adapters]
        if name in (TOKEN_IDS, TOKEN_ROWS):
            tensors = [_pad_rows(tensor, rows, -1 if name == TOKEN_IDS else 0) for tensor in tensors]
        stacked[name] = torch.stack(tensors)
    return stacked


def patch_logits(seen: TextToImage, text: TextTokens, layers: Sequence[int]) -> Float[Tensor, "layer prompt patch"]:
    """What each prompt says of each patch in each layer: the strongest head, summed over the prompt's tokens."""
    return torch.stack([token_sum(head_max(seen.logits[layer]), text.attention_mask).float() for layer in layers])


def _tuned(query: Query) -> Adapter | None:
    """The adapter that a query's prompts run under; one without parameters says that the words alone were better."""
    return query.adapter if query.adapter is not None and query.adapter.parameters else None


def _attend(
    backbone: Backbone,
    image_tokens: Tensor,
    words: Sequence[str],
    layers: Sequence[int],
    adapters: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    if adapters is None and len(words) > PROMPTS_PER_PASS:  # one query's words, all under the base model
        starts = range(0, len(words), PROMPTS_PER_PASS)
        parts = [
            _attend(backbone, image_tokens, words[start : start + PROMPTS_PER_PASS], layers, None) for start in starts
        ]
        logits, scores = zip(*parts, strict=True)
        return torch.cat(logits, dim=1), torch.cat(scores)
    text = backbone.tokenize(words)
    seen = backbone.attend(image_tokens, text, layers=layers, adapters=adapters)
    return patch_logits(seen, text, layers), seen.match_score.float()


def _pad_rows(tensor: Tensor, rows: int, value: int) -> Tensor:
    padding = tensor.new_full((rows - len(tensor), *tensor.shape[1:]), value)
    return torch.cat([tensor, padding])
