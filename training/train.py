"""The training loop."""

import math
import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from app.method.prompts import BACKGROUND_WORDS

from .network import Network, class_map_loss
from .photos import SIZE, UNKNOWN, Labels, Photo, Sample, load, mosaic, paste, vary

GRID = SIZE // 16


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: For the progress bar.
        steps: Optimiser steps.
        learning_rates: Of the parts of the network that learn (see `Network.part`), each at its peak.
        tower_waits: Share of the steps before the image tower learns too.
        batch: Photos of a step.
        patches: Patches of a photo that are looked at.
        first_layer: Whether the first layer's class map, over many words at once, is trained.
        map_layers: Later layers whose class maps are trained.
        deep_every: Of so many steps one trains the later layers and the match head.
        deep_prompts: Prompts of a photo that run through all layers.
        match_weight: Of the match head's loss.
        average: Decay of the running mean of the weights, which is what is kept.
        mosaics: Share of the samples that are made of four photos.
        share: How far to go from the weights before the stage to those after it.
        own_labels: Whether the photos without masks are labelled anew, by the network as it is when the stage begins.
    """

    name: str
    steps: int
    learning_rates: tuple[tuple[str, float], ...]
    tower_waits: float = 0.12
    batch: int = 12
    patches: int = 192
    first_layer: bool = True
    map_layers: tuple[int, ...] = (0, 1, 2, 3)
    deep_every: int = 2
    deep_prompts: int = 14
    match_weight: float = 0.4
    average: float = 0.995
    mosaics: float = 0.0
    share: float = 1.0
    own_labels: bool = False


# First where things are, then the same with the network's own, sharper guesses: half-way between the two is better than
# either (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903). Then who is there at all, which only what comes after
# the second layer's map learns: when the whole text tower did, the maps lost five points.
STAGES = (
    Stage("maps", steps=1200, learning_rates=(("joining", 7e-4), ("tower", 8e-5))),
    Stage(
        "sharper",
        steps=900,
        learning_rates=(("joining", 4e-4), ("tower", 8e-5)),
        tower_waits=0.0,
        mosaics=0.15,
        share=0.5,
        own_labels=True,
    ),
    Stage(
        "match",
        steps=120,
        learning_rates=(("match", 7e-4), ("text", 5e-5)),
        patches=320,
        first_layer=False,
        map_layers=(2, 3),
        deep_every=1,
        deep_prompts=24,
        match_weight=1.0,
        average=0.97,
    ),
)

# Steps over which a learning rate rises.
_WARM_UP = 60

# Of a batch: COCO's photos, VOC's, those with a class only.
_SHARE = (0.45, 0.3, 0.25)


@dataclass(frozen=True)
class Collections:
    """What is shown, by kind; photos of one kind are drawn by category, so that rare ones are seen too."""

    coco: list[Photo]
    voc: list[Photo]
    named: list[Photo]


@dataclass(frozen=True)
class Material:
    """What there is to learn from.

    Attributes:
        collections: The photos.
        guessed: Masks of the photos that have a class only.
        vocabulary: The words.
    """

    collections: Collections
    guessed: dict[Path, Labels]
    vocabulary: "Vocabulary"


def train(
    network: Network, material: Material, stage: Stage, *, seed: int, keep: Callable[[dict[str, Tensor], int], None]
) -> None:
    """Go through one stage; the network then holds the averaged weights.

    Args:
        seed: Of everything random.
        keep: Called with the averaged weights and the number of steps, now and then and at the end.
    """
    parts = [network.part(name) for name, _ in stage.learning_rates]
    learning = {name: tensor.requires_grad_(True) for part in parts for name, tensor in part.items()}
    start = {name: tensor.detach().clone() for name, tensor in learning.items()}
    average = {name: tensor.clone() for name, tensor in start.items()}
    groups = [
        {"params": list(part.values()), "peak": rate, "waits": stage.tower_waits * stage.steps * (name == "tower")}
        for part, (name, rate) in zip(parts, stage.learning_rates, strict=True)
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    smooth: dict[str, float] = {}
    bar = tqdm(_batches(material, stage, seed), total=stage.steps, desc=stage.name, unit="step", mininterval=20)
    for step, samples in enumerate(bar):
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps)) * 0.98 + 0.02
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * cosine * min(1.0, max(0.0, (step + 1 - group["waits"]) / _WARM_UP))
        losses = _losses(network, material.vocabulary, samples, stage, step, rng)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(list(learning.values()), 1.0)
        optimiser.step()
        decay = min(stage.average, (step + 1) / (step + 20))
        for name, tensor in learning.items():
            average[name].lerp_(tensor.detach(), 1 - decay)
        for name, value in losses.items():
            smooth[name] = 0.97 * smooth.get(name, value.item()) + 0.03 * value.item()
        bar.set_postfix({name: f"{value:.3f}" for name, value in smooth.items()}, refresh=False)
        if (step + 1) % 200 == 0 or step + 1 == stage.steps:
            keep({**network.weights, **average}, step + 1)
    for name, tensor in learning.items():
        tensor.requires_grad_(False).copy_(torch.lerp(start[name], average[name], stage.share))


class Vocabulary:
    """Every word that a photo may be asked for, and what the first layer makes of it.

    Attributes:
        prompts: The background's words, then all others.
        index: Place of each of the others in `prompts`.
        common: COCO's categories, which compete in every step.
        text: Tokens of all prompts.
        hidden: What the first cross-attention's queries are made of.
    """

    def __init__(self, network: Network, collections: Collections, imagenet: list[str], *, without: set[str]) -> None:
        shown = (*collections.coco, *collections.voc, *collections.named)
        names = {name for photo in shown for region in photo.regions.values() for name in region.names}
        words = sorted({*names, *imagenet} - without)
        self.common = sorted({region.names[0] for photo in collections.coco for region in photo.regions.values()})
        self.prompts = [*BACKGROUND_WORDS, *words]
        self.index = {word: len(BACKGROUND_WORDS) + i for i, word in enumerate(words)}
        self.text = network.tokens_of(self.prompts)
        self.hidden = network.first_hidden(self.text)


def _losses(
    network: Network,
    vocabulary: Vocabulary,
    samples: list[Sample],
    stage: Stage,
    step: int,
    rng: random.Random,
) -> dict[str, Float[Tensor, ""]]:
    """The step's losses by name."""
    rgb = torch.stack([torch.from_numpy(s.rgb.copy()).permute(2, 0, 1) for s in samples]).float() / 255
    seen = torch.randperm(GRID * GRID)[: stage.patches]
    tower_learns = "tower" in dict(stage.learning_rates) and step >= stage.tower_waits * stage.steps
    tokens = network.encode(rgb, seen, tower_learns=tower_learns)
    chosen = [[rng.choice(_weighted(region.names)) for region in sample.regions] for sample in samples]
    pool = _competitors(vocabulary, rng)
    if stage.first_layer:
        # One set of prompts for all photos: their queries at the first layer are made once.
        asked = sorted({vocabulary.index[word] for names in chosen for word in names} | pool)
        rows = torch.tensor([*range(len(BACKGROUND_WORDS)), *asked])
        place = {prompt: i for i, prompt in enumerate(rows.tolist())}
        scores = network.first_scores(vocabulary.hidden[rows], vocabulary.text.attention_mask[rows], tokens[:, 1:])
    losses: dict[str, list[Tensor]] = {}
    for number, (sample, names) in enumerate(zip(samples, chosen, strict=True)):
        names, target, known = _target(sample, names)
        target, known = target[:, seen], known[seen]
        others = _negatives(vocabulary, sample, pool, rng)
        words = [word for word in BACKGROUND_WORDS if not _names_a(word, [*names, *others])]
        if stage.first_layer:
            prompts = [place[BACKGROUND_WORDS.index(word)] for word in words]
            prompts += [place[vocabulary.index[name]] for name in names + others]
            full = torch.cat([target, target.new_zeros(len(others), target.shape[1])])
            losses.setdefault("first", []).append(class_map_loss(scores[number, prompts], len(words), full, known))
        if step % stage.deep_every == 0:
            _add_deep(network, losses, tokens[number], words, names, others, target, known, stage, rng)
    return {name: torch.stack(values).mean() for name, values in losses.items()}


def _add_deep(
    network: Network,
    losses: dict[str, list[Tensor]],
    tokens: Tensor,
    words: list[str],
    names: list[str],
    others: list[str],
    target: Tensor,
    known: Tensor,
    stage: Stage,
    rng: random.Random,
) -> None:
    """Losses of one photo that need all layers: the later layers' class maps, and who is in the photo."""
    few = rng.sample(words, min(5, len(words)))
    wrong = rng.sample(others, min(max(3, stage.deep_prompts - len(few) - len(names)), len(others)))
    text = network.tokens_of([*few, *names, *wrong])
    scores, match = network.all_scores(tokens, text)
    full = torch.cat([target, target.new_zeros(len(wrong), target.shape[1])])
    shift = math.log(len(words) / len(few))
    for layer in stage.map_layers:
        loss = class_map_loss(scores[layer], len(few), full, known, background_shift=shift)
        losses.setdefault(f"layer{layer}", []).append(loss / (2 * len(stage.map_layers)))
    there = torch.tensor([1.0] * len(names) + [0.0] * len(wrong))
    logit = (match[:, 1] - match[:, 0])[len(few) :]
    if len(there):
        weight = torch.where(there > 0, 2.0, 1.0)
        found = F.binary_cross_entropy_with_logits(logit, there, weight=weight)
        losses.setdefault("match", []).append(stage.match_weight * found)


def _weighted(names: tuple[str, ...]) -> list[str]:
    """The usual name half of the time."""
    return [*names[:1] * max(1, len(names) - 1), *names[1:]]


def _competitors(vocabulary: Vocabulary, rng: random.Random) -> set[int]:
    """Names put beside the true ones in a step."""
    common = vocabulary.common if rng.random() < 0.5 else rng.sample(vocabulary.common, len(vocabulary.common) // 2)
    rare = rng.sample(sorted(vocabulary.index), 40)
    return {vocabulary.index[word] for word in (*common, *rare)}


def _negatives(vocabulary: Vocabulary, sample: Sample, pool: set[int], rng: random.Random) -> list[str]:
    """Names that compete in one photo: none of them is in it. Sometimes few, as when a user asks for what is there."""
    related = set(sample.uncertain).union(*(region.related for region in sample.regions))
    words = [vocabulary.prompts[index] for index in sorted(pool)]
    possible = [word for word in words if word not in related]
    draw = rng.random()
    count = 3 if draw < 0.25 else rng.randint(5, 30) if draw < 0.6 else len(possible)
    return rng.sample(possible, min(count, len(possible)))


def _names_a(word: str, names: list[str]) -> bool:
    """Whether a background word names a category in play, also as a part of it ("lamp" in "table lamp")."""
    return any(word == name or word in name.split() for name in names)


def _target(sample: Sample, names: list[str]) -> tuple[list[str], Float[Tensor, "class patch"], Float[Tensor, "patch"]]:
    """Share of each patch that belongs to the background and to each name; regions of one name are one."""
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


def _batches(material: Material, stage: Stage, seed: int) -> Iterator[list[Sample]]:
    """Varied samples, made in a thread beside the training."""
    ready: queue.Queue[list[Sample]] = queue.Queue(4)

    def produce() -> None:
        rng = random.Random(seed + 1)
        shown = material.collections
        kinds = [_by_category(photos) for photos in (shown.coco, shown.voc, shown.named)]
        for _ in range(stage.steps):
            samples = []
            for _ in range(stage.batch):
                if rng.random() < stage.mosaics:
                    samples.append(_mosaic(kinds[:2], rng))
                    continue
                (kind,) = rng.choices(kinds, _SHARE)
                samples.append(_sample(kind, kinds[0], material.guessed, rng))
            ready.put(samples)

    threading.Thread(target=produce, daemon=True).start()
    for _ in range(stage.steps):
        yield ready.get()


def _by_category(photos: list[Photo]) -> list[list[Photo]]:
    groups: dict[str, list[Photo]] = {}
    for photo in photos:
        for region in photo.regions.values():
            groups.setdefault(region.names[0], []).append(photo)
    return list(groups.values())


def _sample(
    groups: list[list[Photo]], exact: list[list[Photo]], guessed: dict[Path, Labels], rng: random.Random
) -> Sample:
    photo = _draw(groups, rng)
    sample = load(photo, guessed.get(photo.image))
    if rng.random() < 0.4:
        sample = paste(sample, load(rng.choice(rng.choice(exact))), rng)
    return vary(sample, rng)


def _draw(groups: list[list[Photo]], rng: random.Random) -> Photo:
    """Half by category, half by photo: the rare ones must be seen, but not only they."""
    sizes = [len(group) for group in groups]
    group = rng.choice(groups) if rng.random() < 0.6 else rng.choices(groups, sizes)[0]
    return rng.choice(group)


def _mosaic(kinds: list[list[list[Photo]]], rng: random.Random) -> Sample:
    """Of photos with exact masks: three of COCO's to one of VOC's."""
    parts = [vary(load(_draw(kinds[number == 0], rng)), rng) for number in range(4)]
    rng.shuffle(parts)
    return mosaic(parts)
