"""Attention of every prompt over one image, each prompt under its own category's adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .adapter import Adapter
from .backbone import Backbone, EncodedImage, TextToImage, TextTokens
from .parameters import Parameters, VisualPrompt
from .prompts import Prompts, Query
from .scores import LayerWeights, class_scores, head_max, prompt_scores, strongest, token_sum
from .visual_prompt import visual_logits

# Prompts of one pass, and prompts times the tokens of the longest: bound the logits [prompt, head, token, patch] to
# some tens of megabytes however many categories are asked for. A name of 64 characters may have 69 tokens; most have 6.
PROMPTS_PER_PASS = 128
TOKENS_PER_PASS = 16 * PROMPTS_PER_PASS
# Bytes of the adapters that are stacked for one pass. 128 low-rank ones have fewer; one with whole matrices has 11 MB
# in BLIP-large.
ADAPTER_BYTES_PER_PASS = 128 * 2**20
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
    text = backbone.tokenize(prompts.words)
    parts = [part for query in prompts.queries for part in _parts(query)]
    bounds = list(pairwise(accumulate((len(part.words) for part in parts), initial=0)))
    tokens = text.attention_mask.sum(dim=1).tolist()
    rows: list[int] = []
    logits, match = [], []
    for members in batches(parts, [max(tokens[slice(*bound)]) for bound in bounds]):
        own = [row for index in members for row in range(*bounds[index])]
        summed, scores = _attend(backbone, image, _rows(text, own), layers, [parts[index] for index in members])
        rows += own
        logits.append(summed)
        match.append(scores)
    order = torch.tensor(rows, device=match[0].device).argsort()
    return Evidence(torch.cat(logits, dim=1)[:, order], torch.cat(match)[order], prompts.spans)


def _parts(query: Query) -> list[Query]:
    """A query with tuned parameters, whose prompts share a pass; the words of any other, which need not."""
    if query.adapter and query.adapter.parameters:
        return [query]
    return [Query((word,)) for word in query.words]


def batches(parts: Sequence[Query], tokens: Sequence[int]) -> list[list[int]]:
    """Indices of the parts that run in one pass: of one form, within the bounds of a pass, those with few tokens first.

    Args:
        parts: Queries with tuned parameters, and words without.
        tokens: Tokens of each part's longest prompt.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    for index in sorted(range(len(parts)), key=tokens.__getitem__):
        adapter = parts[index].adapter
        # A stack shares the prompts out evenly, so all of its queries have as many prompts.
        kinds.setdefault((len(parts[index].words), adapter.form) if adapter else (), []).append(index)
    passes: list[list[int]] = []
    for members in kinds.values():
        passes.append([])
        for index in members:
            if len(passes[-1]) >= _most(parts[index], tokens[index]):
                passes.append([])
            passes[-1].append(index)
    return passes


def _most(part: Query, tokens: int) -> int:
    """Number of parts like this one in a pass; at least 1."""
    prompts = len(part.words)
    most = min(PROMPTS_PER_PASS // prompts, TOKENS_PER_PASS // (prompts * tokens))
    if part.adapter and part.adapter.parameters:
        most = min(most, ADAPTER_BYTES_PER_PASS // sum(tensor.nbytes for tensor in part.adapter.parameters.trained))
    return max(1, most)


def _rows(text: TextTokens, rows: Sequence[int]) -> TextTokens:
    """Some of the prompts, padded to the longest of them."""
    ids, mask = text.input_ids[rows], text.attention_mask[rows]
    longest = int(mask.sum(dim=1).max())
    questions = None if text.questions is None else _rows(text.questions, rows)
    return TextTokens(ids[:, :longest], mask[:, :longest], questions)


def patch_logits(
    seen: TextToImage, attention_mask: Int[Tensor, "prompt token"], layers: Sequence[int]
) -> Float[Tensor, "layer prompt patch"]:
    """Attention logits reduced per layer: the strongest head, summed over the prompt's tokens.

    The sum is taken in float32: it reaches hundreds, which bfloat16 rounds to whole numbers.
    """
    return torch.stack([token_sum(head_max(seen.logits[layer]).float(), attention_mask) for layer in layers])


def _attend(
    backbone: Backbone, image: EncodedImage, text: TextTokens, layers: Sequence[int], parts: Sequence[Query]
) -> tuple[Float[Tensor, "layer prompt patch"], Float[Tensor, "prompt"]]:
    """Run the prompts of parts of one form in one pass."""
    adapters = [part.adapter for part in parts if part.adapter]
    parameters = [adapter.parameters for adapter in adapters if adapter.parameters]
    stacked = Parameters.stack(parameters).to(image.tokens.device) if parameters else None
    seen = backbone.attend(image, text, layers=layers, adapters=stacked)
    summed = patch_logits(seen, text.attention_mask, layers)
    if visual := [adapter.visual_prompt for adapter in adapters if adapter.visual_prompt]:
        added = visual_logits(backbone.patch_features(image), VisualPrompt.stack(visual))
        summed = summed + added.repeat_interleave(len(parts[0].words), dim=0)
    return summed, seen.match_score.float()
