"""The stage in which all that makes a mask learns at once: image tower, the words' maps and the mask decoder.

Of each pair of photos in a batch either may be the example of what both show (prototypical episodes, Snell et al. 2017,
https://arxiv.org/abs/1703.05175), so that the tower learns what tells things apart, not only what their names are.
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
from .mask_decoder import lesson_loss, lesson_of, showing
from .network import Network, class_map_loss
from .photos import GRID, Sample
from .stages import Stage
from .start import TEXT_LAYERS

# Names that are not in the photo: as many are looked at, more or less of them compete.
_WRONG = 12
# Words that stand for the background's.
_BACKGROUND = 8
# The photos are new in every step, so words are not as far from what they are elsewhere as `training.mask_decoder` has
# to make them.
_DOUBT = 0.6
_MAP_WEIGHT = 0.5
# Share of the pairs that are read by the layers read in use; the others by any two, since InfoScore may choose them.
_USUAL_LAYERS = 0.5


def mask_losses(
    network: Network, vocabulary: Vocabulary, samples: Sequence[Sample], stage: Stage, step: int, rng: random.Random
) -> Losses:
    """Losses of the class maps, and of the masks without and with an example."""
    edges, tokens = network.encode_whole(pixels(samples))
    some = torch.randperm(GRID * GRID)[: stage.patches]
    questions = [question.at(some) for question in ask(vocabulary, samples, rng)]
    first = first_layer_losses(network, vocabulary, tokens[:, 1:][:, some], questions)
    losses: Losses = {"first": [_MAP_WEIGHT * loss for loss in first]}
    layers = [layers for _ in samples[::2] for layers in (drawn_layers(rng),) * 2]  # of a pair the same
    seen = []
    for number, sample in enumerate(samples):
        depth = TEXT_LAYERS if max(layers[number]) > 1 else 2
        one, maps = _look(network, vocabulary, number, sample, edges[number], tokens[number], depth, rng)
        seen.append(one)
        losses.setdefault("maps", []).append(_MAP_WEIGHT * maps)
    decoder = {name.removeprefix(PREFIX): t for name, t in network.weights.items() if name.startswith(PREFIX)}
    for number, one in enumerate(seen):
        if len(one.target) == 1:  # nothing known is in it
            continue
        partner = seen[number ^ 1]
        # How sure the words are of the example is a fact, not something to learn from.
        shown = showing([replace(partner, scores=partner.scores.detach())])
        lesson = lesson_of(one, shown, rng, layers=layers[number], doubt=_DOUBT)
        loss = lesson_loss(decoder, one, lesson, rng)
        losses.setdefault("examples" if lesson.examples else "masks", []).append(loss)
    return losses


def drawn_layers(rng: random.Random) -> Sequence[int]:
    """Layers that a pair is read by."""
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
    """What the network sees in a photo by the first layers, with gradients; and the loss of their class maps."""
    names, target = cells_of(sample)
    possible = [name for name in vocabulary.common if name not in {*sample.related, *names}]
    names = [*names, *rng.sample(possible, min(_WRONG, len(possible)))]
    background = background_beside(names)
    few = rng.sample(background, _BACKGROUND)
    shift = math.log(len(background) / len(few))
    scores = network.layer_scores(tokens, network.tokens_of([*few, *names]), depth)
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
