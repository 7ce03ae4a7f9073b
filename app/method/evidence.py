"""Attention of every prompt over one image, each prompt under its own category's adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .adapter import Adapter
from .backbone import Backbone, EncodedImage, TextToImage, TextTokens
from .parameters import Parameters, VisualPrompt
from .prompts import Prompts, Query
from .scores import LayerWeights, class_scores, head_max, prompt_scores, strongest, token_sum
from .visual_prompt import visual_logits

# Prompts of one pass: bounds the logits [prompt, head, token, patch] to some tens of megabytes however many categories
# are asked for.
PROMPTS_PER_PASS = 128
# Logits of trained models, summed over a prompt's tokens, stay within some hundreds. An imported adapter may hold any
# finite numbers, and one category's huge logits would leave nothing to the others of a request.
_LARGEST_LOGIT = 1e4


@dataclass(frozen=True)
class Evidence:
    """Attention of the prompts, reduced to one number per layer, prompt and patch.

    Attributes:
        patch_logits: Head-max, token-summed attention logits.
        match_score: Image-text score, in [0, 1].
        spans: Per class the half-open range of its prompts; the background first.
        unusable: Classes whose adapter gave no number or one beyond all measure; theirs is the evidence of the words.
    """

    patch_logits: Float[Tensor, "layer prompt patch"]
    match_score: Float[Tensor, "prompt"]
    spans: tuple[tuple[int, int], ...]
    unusable: tuple[int, ...] = ()

    def only(self, classes: Sequence[int]) -> "Evidence":
        """The evidence as it would be if the other classes had not been requested."""
        rows = [row for number in classes for row in range(*self.spans[number])]
        sizes = [self.spans[number][1] - self.spans[number][0] for number in classes]
        stops = list(accumulate(sizes))
        spans = tuple((stop - size, stop) for stop, size in zip(stops, sizes, strict=True))
        return Evidence(self.patch_logits[:, rows], self.match_score[rows], spans)

    def by_layer(self) -> list[Float[Tensor, "class patch"]]:
        """Class scores of each layer."""
        return [class_scores(prompt_scores(logits, self.match_score), self.spans) for logits in self.patch_logits]

    def class_scores(self, weights: LayerWeights) -> Float[Tensor, "class patch"]:
        """Class scores on the patch grid, mixed over layers.

        Mixing comes before upsampling: both are linear, so the order is free, and the grid is smaller.
        """
        per_layer = self.by_layer()
        mix = weights.weights.to(per_layer[0])
        return torch.stack([mix[:, [index]] * scores for index, scores in enumerate(per_layer)]).sum(dim=0)

    def best_match(self) -> Float[Tensor, "category"]:
        """Per category, the background aside, the best image-text score of its prompts."""
        # The background has no score of its own; it is dropped last, since a request may have no other class.
        return strongest(self.match_score, self.spans)[1:]


def layer_weights(queries: Sequence[Query], chosen: Sequence[int]) -> LayerWeights:
    """Layers to read for these queries, and the weight of each of them per class.

    A class without an adapter averages the chosen layers (the paper); an adapter brings its own layers and weights. So
    categories taught before and after a new ranking of the layers work side by side.
    """
    adapters = [query.adapter for query in queries]
    layers = tuple(sorted({*chosen, *(layer for adapter in adapters if adapter for layer in adapter.layers)}))
    column = {layer: index for index, layer in enumerate(layers)}
    rows = [[0.0] * len(layers) for _ in adapters]
    for row, adapter in zip(rows, adapters, strict=True):
        own = (
            zip(adapter.layers, adapter.ensemble, strict=True)
            if adapter
            else ((layer, 1 / len(chosen)) for layer in chosen)
        )
        for layer, weight in own:
            row[column[layer]] = weight
    return LayerWeights(layers, torch.tensor(rows))


def prompt_evidence(backbone: Backbone, image: EncodedImage, prompts: Prompts, layers: Sequence[int]) -> Evidence:
    """Run all prompts over an image.

    Queries without tuned parameters share passes; those with parameters are batched with those of the same form, their
    adapters stacked. An adapter that gives unusable numbers costs its own category alone, which is read by its words.
    """
    evidence = _evidence(backbone, image, prompts, layers)
    unusable = _unusable(evidence, prompts.queries)
    if not unusable:
        return evidence
    words = Prompts(tuple(Query(prompts.queries[number].words) for number in unusable))
    plain = _evidence(backbone, image, words, layers)
    logits, match = evidence.patch_logits.clone(), evidence.match_score.clone()
    for number, (start, stop) in zip(unusable, plain.spans, strict=True):
        rows = slice(*evidence.spans[number])
        logits[:, rows], match[rows] = plain.patch_logits[:, start:stop], plain.match_score[start:stop]
    return Evidence(logits, match, evidence.spans, unusable)


def usable(adapter: Adapter, backbone: Backbone, image: EncodedImage) -> bool:
    """True if an adapter gives numbers on this image that a trained model can give."""
    query = Query(adapter.prompts, adapter)
    return not _unusable(_evidence(backbone, image, Prompts((query,)), adapter.layers), (query,))


def _unusable(evidence: Evidence, queries: Sequence[Query]) -> tuple[int, ...]:
    """Classes with an adapter whose logits or image-text score are no number, or huge."""
    adapted = [number for number, query in enumerate(queries) if query.adapter and query.adapter.parameters]
    if not adapted:
        return ()
    # Comparisons with NaN are false.
    fine = (evidence.patch_logits.abs().amax(dim=(0, 2)) <= _LARGEST_LOGIT) & evidence.match_score.isfinite()
    usable = fine.tolist()
    return tuple(number for number in adapted if not all(usable[slice(*evidence.spans[number])]))


def _evidence(backbone: Backbone, image: EncodedImage, prompts: Prompts, layers: Sequence[int]) -> Evidence:
    queries = prompts.queries
    logits: list[Tensor | None] = [None] * len(queries)
    match: list[Tensor | None] = [None] * len(queries)
    for members in batches(queries):
        words = [word for index in members for word in queries[index].words]
        sizes = [len(queries[index].words) for index in members]
        summed, scores = _attend(backbone, image, words, layers, _stacked_parameters(queries, members))
        if visual := _stacked_visual_prompts(queries, members):
            seen = visual_logits(backbone.patch_features(image), visual)
            summed = summed + seen.repeat_interleave(torch.tensor(sizes, device=seen.device), dim=0)
        parts = zip(members, torch.split(summed, sizes, dim=1), torch.split(scores, sizes), strict=True)
        for index, part, score in parts:
            logits[index], match[index] = part, score
    return Evidence(
        patch_logits=torch.cat([part for part in logits if part is not None], dim=1),
        match_score=torch.cat([score for score in match if score is not None]),
        spans=prompts.spans,
    )


def batches(queries: Sequence[Query]) -> list[list[int]]:
    """Indices of the queries that run in one pass: of one form, and not too many prompts."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for index, query in enumerate(queries):
        form = query.adapter.form if query.adapter else None
        # A stack shares the prompts out evenly, so all of its queries have as many prompts.
        kind = () if form is None else (len(query.words), form)
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


def patch_logits(
    seen: TextToImage, attention_mask: Int[Tensor, "prompt token"], layers: Sequence[int]
) -> Float[Tensor, "layer prompt patch"]:
    """Attention logits reduced per layer: the strongest head, summed over the prompt's tokens.

    The sum is taken in float32: it reaches hundreds, which bfloat16 rounds to whole numbers.
    """
    return torch.stack([token_sum(head_max(seen.logits[layer]).float(), attention_mask) for layer in layers])


def _stacked_parameters(queries: Sequence[Query], members: Sequence[int]) -> Parameters | None:
    adapters = [queries[index].adapter for index in members]
    parts = [adapter.parameters for adapter in adapters if adapter and adapter.parameters]
    return Parameters.stack(parts) if parts else None


def _stacked_visual_prompts(queries: Sequence[Query], members: Sequence[int]) -> VisualPrompt | None:
    adapters = [queries[index].adapter for index in members]
    parts = [adapter.visual_prompt for adapter in adapters if adapter and adapter.visual_prompt]
    return VisualPrompt.stack(parts) if parts else None


def _attend(
    backbone: Backbone,
    image: EncodedImage,
    words: Sequence[str],
    layers: Sequence[int],
    adapters: Parameters | None,
) -> tuple[Float[Tensor, "layer prompt patch"], Float[Tensor, "prompt"]]:
    if adapters is None and len(words) > PROMPTS_PER_PASS:  # the many words of one query
        starts = range(0, len(words), PROMPTS_PER_PASS)
        parts = [_attend(backbone, image, words[start : start + PROMPTS_PER_PASS], layers, None) for start in starts]
        logits, scores = zip(*parts, strict=True)
        return torch.cat(logits, dim=1), torch.cat(scores)
    text: TextTokens = backbone.tokenize(words)
    seen = backbone.attend(image, text, layers=layers, adapters=adapters)
    return patch_logits(seen, text.attention_mask, layers), seen.match_score.float()
