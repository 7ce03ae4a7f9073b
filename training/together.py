"""Losses of the stage that trains image tower, class maps and mask decoder at once.

A batch consists of pairs of photos, each of which may be the example for the other (prototypical episodes, Snell et al.
2017, https://arxiv.org/abs/1703.05175), so that the tower learns features that discriminate objects, not only names.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from app.backbones.embedded import DEFAULT_LAYERS
from app.backbones.embedded.mask_decoder import PREFIX

from .looking import Seen, cells_of
from .losses import Losses, Vocabulary, ask, background_beside, first_layer_losses, pixels
from .mask_decoder import OPEN_REQUESTS, Requests, lesson_loss, lesson_of, showing
from .network import Network, class_map_loss
from .photos import GRID, Sample
from .stages import Stage
from .start import TEXT_LAYERS

# Number of absent names that are scored; a random part of them competes.
_WRONG = 12
# Number of background words, drawn at random, that represent all of them.
_BACKGROUND = 8
# Factor on the random bias of the words. It is below 1, because photos are augmented anew in every step: the words are
# then less over-accurate on them than in `training.mask_decoder`.
_DOUBT = 0.6
_MAP_WEIGHT = 0.5
# Share of the pairs that use the default layers; the others use two random layers, since InfoScore may choose any.
_USUAL_LAYERS = 0.5


def mask_losses(
    network: Network, vocabulary: Vocabulary, samples: Sequence[Sample], stage: Stage, step: int, rng: random.Random
) -> Losses:
    """Losses of the class maps, and of the masks with and without an example."""
    with in_bfloat16(stage):
        edges, tokens = network.encode_whole(pixels(samples))
    edges, tokens = edges.float(), tokens.float()
    some = torch.randperm(GRID * GRID)[: stage.patches]
    questions = [question.at(some) for question in ask(vocabulary, samples, rng)]
    first = first_layer_losses(network, vocabulary, tokens[:, 1:][:, some], questions)
    losses: Losses = {"first": [_MAP_WEIGHT * loss for loss in first]}
    layers = [layers for _ in samples[::2] for layers in (drawn_layers(rng),) * 2]  # the same for both photos of a pair
    requests = OPEN_REQUESTS if stage.open_requests else Requests()
    seen = []
    for number, sample in enumerate(samples):
        depth = TEXT_LAYERS if max(layers[number]) > 1 else 2
        with in_bfloat16(stage):
            one, maps = _look(network, vocabulary, number, sample, edges[number], tokens[number], depth, rng)
        seen.append(one)
        losses.setdefault("maps", []).append(_MAP_WEIGHT * maps)
    decoder = {name.removeprefix(PREFIX): t for name, t in network.weights.items() if name.startswith(PREFIX)}
    for number, one in enumerate(seen):
        if len(one.target) == 1:  # the photo shows no known name
            continue
        partner = seen[number ^ 1]
        # No gradient through the scores of the example: the accuracy of the words on it is only an input.
        shown = showing([replace(partner, scores=partner.scores.detach())])
        lesson = lesson_of(one, shown, rng, layers=layers[number], doubt=_DOUBT, requests=requests)
        loss = lesson_loss(decoder, one, lesson, rng)
        losses.setdefault("examples" if lesson.examples else "masks", []).append(loss)
    return losses


def in_bfloat16(stage: Stage) -> torch.autocast:
    """Matrix products of a stage in bfloat16, if it asks for it; the parameters stay float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=stage.bfloat16)


def drawn_layers(rng: random.Random) -> Sequence[int]:
    """Layers that are read for a pair."""
    return DEFAULT_LAYERS if rng.random() < _USUAL_LAYERS else rng.sample(range(TEXT_LAYERS), 2)


def _look(
    network: Network,
    vocabulary: Vocabulary,
    number: int,
    sample: Sample,
    edges: Float[Tensor, "channel y x"],
    tokens: Float[Tensor, "image_token width"],
    depth: int,
    rng: random.Random,
) -> tuple[Seen, Float[Tensor, ""]]:
    """Outputs of the first layers on a photo, with gradients, and the loss of their class maps."""
    names, target = cells_of(sample)
    possible = [name for name in vocabulary.common if name not in {*sample.related, *names}]
    names = [*names, *rng.sample(possible, min(_WRONG, len(possible)))]
    background = background_beside(names)
    few = rng.sample(background, _BACKGROUND)
    shift = math.log(len(background) / len(few))
    scores = [layer.float() for layer in network.layer_scores(tokens, network.tokens_of([*few, *names]), depth)]
    joined = [
        torch.cat([layer[: len(few)].logsumexp(dim=0, keepdim=True) + shift, layer[len(few) :]]) for layer in scores
    ]
    by_layer = torch.stack(joined).softmax(dim=1)
    seen = Seen(str(number), names, by_layer, tokens[1:], edges, target)
    shares = seen.patch_shares(GRID)
    known = shares.sum(dim=0)
    full = F.pad(shares / known.clamp_min(1e-6), (0, 0, 0, 1 + len(names) - len(shares)))
    losses = [class_map_loss(layer, len(few), full, known, background_shift=shift) for layer in scores]
    return seen, torch.stack(losses).mean()
