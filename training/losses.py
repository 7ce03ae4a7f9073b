"""Losses of the class maps (the right names at every patch, against many wrong ones) and of the match head."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from app.method.prompts import BACKGROUND_WORDS, free_background

from .network import Network, class_map_loss
from .photos import GRID, UNKNOWN, Photo, Sample
from .stages import Stage

# Losses of a step by name, one per photo.
Losses = dict[str, list[Tensor]]


class Vocabulary:
    """All words that training uses, with the first layer's hidden states for them.

    Attributes:
        prompts: The background words, then all other words.
        index: Position in `prompts` of each of the other words.
        common: COCO's categories; all or half of them compete in every step.
        text: Tokens of all prompts.
        hidden: Hidden states from which the first cross-attention computes its queries.
    """

    def __init__(
        self,
        network: Network,
        coco: Sequence[Photo],
        others: Sequence[Photo],
        imagenet: list[str],
        *,
        without: set[str],
    ) -> None:
        names = {name for photo in (*coco, *others) for region in photo.regions.values() for name in region.names}
        words = sorted({*names, *imagenet} - without)
        self.common = sorted({region.names[0] for photo in coco for region in photo.regions.values()})
        self.prompts = [*BACKGROUND_WORDS, *words]
        self.index = {word: len(BACKGROUND_WORDS) + i for i, word in enumerate(words)}
        self.text = network.tokens_of(self.prompts)
        self.hidden = network.first_hidden(self.text)


@dataclass(frozen=True)
class Question:
    """Names that are scored in one photo, and the target.

    Attributes:
        background: The background words.
        names: Names of what is present.
        wrong: Names of what is absent.
        target: Share of each patch that the background and each of `names` cover.
        known: Share of each patch that is labelled.
    """

    background: tuple[str, ...]
    names: list[str]
    wrong: list[str]
    target: Float[Tensor, "class patch"]
    known: Float[Tensor, "patch"]

    def at(self, patches: Int[Tensor, "patch"]) -> "Question":
        """The same for some of the patches."""
        return Question(self.background, self.names, self.wrong, self.target[:, patches], self.known[patches])

    @property
    def full_target(self) -> Float[Tensor, "class patch"]:
        """The target, with zeros for the wrong names."""
        return F.pad(self.target, (0, 0, 0, len(self.wrong)))


def map_losses(
    network: Network, vocabulary: Vocabulary, samples: Sequence[Sample], stage: Stage, step: int, rng: random.Random
) -> Losses:
    """Losses of the class maps and of the match head."""
    seen = torch.randperm(GRID * GRID)[: stage.patches]
    tower_learns = "tower" in dict(stage.learning_rates) and step >= stage.tower_waits * stage.steps
    tokens = network.encode(pixels(samples), seen, tower_learns=tower_learns)
    questions = [question.at(seen) for question in ask(vocabulary, samples, rng)]
    losses: Losses = {}
    if stage.first_layer:
        losses["first"] = first_layer_losses(network, vocabulary, tokens[:, 1:], questions)
    if step % stage.deep_every == 0:
        for photo, question in zip(tokens, questions, strict=True):
            for name, loss in _deep_losses(network, photo, question, stage, rng):
                losses.setdefault(name, []).append(loss)
    return losses


def pixels(samples: Sequence[Sample]) -> Float[Tensor, "photo 3 size size"]:
    """Photos as input of the network; values in [0, 1]."""
    return torch.stack([torch.from_numpy(sample.rgb.copy()).permute(2, 0, 1) for sample in samples]).float() / 255


def ask(vocabulary: Vocabulary, samples: Sequence[Sample], rng: random.Random) -> list[Question]:
    """One question per photo; the wrong names of all photos are drawn from the same pool."""
    pool = _competitors(vocabulary, rng)
    questions = []
    for sample in samples:
        names, target, known = _target(sample, [rng.choice(_weighted(region.names)) for region in sample.regions])
        wrong = _negatives(vocabulary, sample, pool, rng)
        questions.append(Question(background_beside([*names, *wrong]), names, wrong, target, known))
    return questions


def background_beside(names: Iterable[str]) -> tuple[str, ...]:
    """Background words that are neither one of these names nor a part of one ("lamp" in "table lamp")."""
    return free_background(BACKGROUND_WORDS, [part for name in names for part in (name, *name.split())])


def first_layer_losses(
    network: Network,
    vocabulary: Vocabulary,
    patches: Float[Tensor, "photo patch width"],
    questions: Sequence[Question],
) -> list[Tensor]:
    """Losses of the first layer's class maps: one set of prompts for all photos, whose queries are computed once."""
    asked = {vocabulary.index[name] for question in questions for name in (*question.names, *question.wrong)}
    rows = torch.tensor([*range(len(BACKGROUND_WORDS)), *sorted(asked)])
    place = {vocabulary.prompts[prompt]: i for i, prompt in enumerate(rows.tolist())}
    scores = network.first_scores(vocabulary.hidden[rows], vocabulary.text.attention_mask[rows], patches)
    losses = []
    for photo, question in zip(scores, questions, strict=True):
        prompts = [place[word] for word in (*question.background, *question.names, *question.wrong)]
        losses.append(class_map_loss(photo[prompts], len(question.background), question.full_target, question.known))
    return losses


def _deep_losses(
    network: Network, tokens: Float[Tensor, "image_token width"], question: Question, stage: Stage, rng: random.Random
) -> list[tuple[str, Tensor]]:
    """Losses of one photo that need all layers: the later layers' class maps and the match head."""
    few, names = rng.sample(question.background, min(5, len(question.background))), question.names
    room = max(3, stage.deep_prompts - len(few) - len(names))
    wrong = rng.sample(question.wrong, min(room, len(question.wrong)))
    scores, match = network.all_scores(tokens, network.tokens_of([*few, *names, *wrong]))
    target = F.pad(question.target, (0, 0, 0, len(wrong)))
    shift = math.log(len(question.background) / len(few))
    losses = []
    for layer in stage.map_layers:
        loss = class_map_loss(scores[layer], len(few), target, question.known, background_shift=shift)
        losses.append((f"layer{layer}", loss / (2 * len(stage.map_layers))))
    there = torch.tensor([1.0] * len(names) + [0.0] * len(wrong))
    if len(there):
        logit = (match[:, 1] - match[:, 0])[len(few) :]
        found = F.binary_cross_entropy_with_logits(logit, there, weight=torch.where(there > 0, 2.0, 1.0))
        losses.append(("match", stage.match_weight * found))
    return losses


def _weighted(names: tuple[str, ...]) -> list[str]:
    """The names with the first one repeated, so that it is drawn half of the time."""
    return [*names[:1] * max(1, len(names) - 1), *names[1:]]


def _competitors(vocabulary: Vocabulary, rng: random.Random) -> list[str]:
    """Pool from which the wrong names of a step are drawn."""
    common = vocabulary.common if rng.random() < 0.5 else rng.sample(vocabulary.common, len(vocabulary.common) // 2)
    return sorted({*common, *rng.sample(sorted(vocabulary.index), 40)})


def _negatives(vocabulary: Vocabulary, sample: Sample, pool: Sequence[str], rng: random.Random) -> list[str]:
    """Absent names that compete in one photo; sometimes few, because users often name only what is present."""
    possible = [word for word in pool if word in vocabulary.index and word not in sample.related]
    draw = rng.random()
    count = 3 if draw < 0.25 else rng.randint(5, 30) if draw < 0.6 else len(possible)
    return rng.sample(possible, min(count, len(possible)))


def _target(sample: Sample, names: list[str]) -> tuple[list[str], Float[Tensor, "class patch"], Float[Tensor, "patch"]]:
    """Names present, the share of each patch of the background and each name, and the labelled share of each patch.

    Regions with the same name are merged.
    """
    labels = torch.from_numpy(sample.labels.copy()).long()
    unique = list(dict.fromkeys(names))
    maps = [labels == 0, *(torch.zeros_like(labels, dtype=torch.bool) for _ in unique)]
    for value, name in enumerate(names, start=1):
        row = 1 + unique.index(name)
        maps[row] = maps[row] | (labels == value)
    known = F.avg_pool2d((labels != UNKNOWN).float()[None], 16)[0].flatten()
    shares = F.avg_pool2d(torch.stack(maps).float()[None], 16)[0].flatten(1)
    there = shares.sum(dim=1) > 0.2
    there[0] = True
    kept = [name for name, is_there in zip(unique, there[1:].tolist(), strict=True) if is_there]
    return kept, shares[there] / known.clamp_min(1e-6), known
