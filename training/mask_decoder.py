"""Training of the mask decoder (`app.backbones.embedded.mask_decoder`) on photos with exact masks; all else is frozen.

The first part trains on words and photo. The second part freezes these parameters and trains the example memory, with
other photos of the same class as examples. Some of the taught classes get the words of another class, so that the
decoder also learns categories that the words do not describe.

Two more parts train on open requests: most of what is asked for is absent, look-alikes of what is there among it, and
most of it is taught. Two photos of five show people's own things, which the words hardly describe.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from app.backbones.embedded import DEFAULT_LAYERS
from app.backbones.embedded.example_memory import example_facts, place
from app.backbones.embedded.mask_decoder import fuse_appearance, image_features, logits
from app.method.parameters import ExampleMemory
from app.method.scores import normalise

from .looking import PIXELS, Seen
from .network import is_of_a_space
from .photos import GRID
from .self_support import misled, random_bias

_WIDTH, _LAYERS = 24, 3
_EXAMPLE_WIDTH, _EXAMPLE_FACTS = 24, 9
_CLASS_FACTS, _EXAMPLE_CHANNELS = 5, 3
_STATISTICS = ("edges.mean", "edges.deviation")
# The convolution whose input is the facts of a class; the last channels are those of the examples.
_FIRST = "class.weight"
_BATCH = 12
_WARM_UP = 50
# Decay of the running mean of the weights; the mean is the result.
_AVERAGE = 0.99
# Weight of the overlap loss relative to the cross-entropy.
_OVERLAP = 0.5
# Share of the present classes that get an example, and of these the share whose words are replaced by those of another
# class.
_TAUGHT, _WORDLESS = 0.7, 0.25
# Minimum share of a photo that a class must cover for the photo to be an example of it.
_EXAMPLE_AREA = 0.005
# Number of patches inside the mask, and outside it, that represent an example; at inference it is that of mean patches.
_PATCHES = 48
# Numbers of competing names, drawn at random, when the accuracy of the words on an example is measured.
_COMPETING = (0, 2, 8, 16, 16)


@dataclass(frozen=True)
class Requests:
    """Shares of the requests of which absent names are part, and of the absent ones that get an example.

    Attributes:
        without_absent: Share in which no absent name competes.
        with_few: Share in which one to six do; in the rest all of them do.
        taught_absent: Share of the absent classes that get an example.
        from_first: Number of the first absent names, those of look-alikes, that the few are drawn from; None for all.
    """

    without_absent: float = 0.5
    with_few: float = 0.3
    taught_absent: float = 0.3
    from_first: int | None = None


OPEN_REQUESTS = Requests(without_absent=0.35, with_few=0.35, taught_absent=0.6, from_first=12)


@dataclass(frozen=True)
class _Part:
    """One part of the training.

    Attributes:
        name: Name in the progress bar.
        steps: Optimiser steps.
        learns: Trained parameters: those that read examples, the others, or all. The others are trained without
            examples.
        rates: Peak learning rates: `space` for the projections in which patches are compared, `numbers` for the few
            other parameters of self-support, `new` for all parameters that start from random values.
        weight_decay: Of the optimiser.
        requests: How classes are drawn.
    """

    name: str
    steps: int
    learns: Literal["others", "examples", "all"]
    rates: dict[str, float]
    weight_decay: float = 0.0
    requests: Requests = Requests()


_PARTS = (
    _Part("mask decoder", 500, "others", {"space": 1e-4, "numbers": 1e-3, "new": 2e-3}, weight_decay=0.02),
    _Part("examples", 400, "examples", {"space": 2e-4, "new": 3e-3}),
)
_OPEN_PARTS = (
    _Part("examples, open requests", 400, "examples", {"space": 1e-4, "new": 1.5e-3}, requests=OPEN_REQUESTS),
    _Part("open requests", 500, "all", {"space": 5e-5, "numbers": 3e-4, "new": 5e-4}, requests=OPEN_REQUESTS),
)
# Shares of their lessons: photos of people's own things, of the few and of the many.
_OPEN_SHARES = (0.4, 0.35, 0.25)


@dataclass(frozen=True)
class Lesson:
    """One photo of a step: the classes, the scores used for each, and examples of some of them.

    Attributes:
        layers: Layers that are read.
        rows: Rows of the photo's scores, one per class: the background first.
        words: Row of the photo's scores that is used for each class; another class's row if its words are replaced.
        bias: Bias added to the log-probability of each class.
        examples: By index into `rows`: photos that show the class, and True if its words are replaced.
    """

    layers: Sequence[int]
    rows: list[int]
    words: list[int]
    bias: Float[Tensor, "class"]
    examples: dict[int, tuple[list[Seen], bool]]


def train_mask_decoder(
    start: Mapping[str, Tensor], few: Sequence[Seen], many: Sequence[Seen], *, seed: int, pace: float = 1.0
) -> dict[str, Tensor]:
    """Train the tensors of `app.backbones.embedded.mask_decoder`.

    Args:
        start: Tensors of `app.backbones.embedded.self_support`, trained before.
        few: Photos for one half of each batch.
        many: Photos for the other half.
        seed: Seed of all random choices.
        pace: Factor on the number of steps.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    weights = _start(start, [*few, *many])
    shown = showing([*few, *many])
    for part in _PARTS:
        lessons = _lessons(_either(few, many, rng), shown if part.learns == "examples" else {}, part.requests, rng)
        weights = _learned(weights, part, lessons, rng, steps=max(1, round(part.steps * pace)))
    return weights


def train_on_open_requests(
    weights: Mapping[str, Tensor],
    own: Sequence[Sequence[Seen]],
    few: Sequence[Seen],
    many: Sequence[Seen],
    *,
    seed: int,
    pace: float = 1.0,
) -> dict[str, Tensor]:
    """Train the tensors of `app.backbones.embedded.mask_decoder` further, on requests of which most is absent.

    Args:
        weights: The tensors, trained before.
        own: Photos of people's own things, by set; a set is drawn by the root of its size.
        few: Photos of everyday scenes.
        many: The same, of a larger collection.
        seed: Seed of all random choices.
        pace: Factor on the number of steps.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    learned = {name: tensor.detach().clone() for name, tensor in weights.items()}
    shown = showing([photo for photos in (*own, few, many) for photo in photos])
    for part in _OPEN_PARTS:
        lessons = _lessons(_mixed(own, few, many, rng), shown, part.requests, rng)
        learned = _learned(learned, part, lessons, rng, steps=max(1, round(part.steps * pace)))
    return learned


def _learned(
    weights: dict[str, Tensor],
    part: _Part,
    lessons: Iterator[tuple[Seen, "Lesson"]],
    rng: random.Random,
    *,
    steps: int,
) -> dict[str, Tensor]:
    """The running mean of the weights after a part of the training."""
    learning = {name: t.clone().requires_grad_(True) for name, t in weights.items() if _learns(name, part)}
    average = {name: tensor.clone() for name, tensor in weights.items()}
    groups = [
        {"params": [tensor for name, tensor in learning.items() if _kind(name) == kind], "peak": rate}
        for kind, rate in part.rates.items()
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=part.weight_decay)
    bar = tqdm(range(steps), desc=part.name, unit="step", mininterval=20)
    smooth = 0.0
    for step in bar:
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps)) * 0.99 + 0.01
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * cosine * min(1.0, (step + 1) / _WARM_UP)
        optimiser.zero_grad()
        total = 0.0
        for photo, lesson in islice(lessons, _BATCH):
            loss = lesson_loss({**weights, **learning}, photo, lesson, rng) / _BATCH
            loss.backward()
            total += loss.item()
        if part.learns == "examples":  # of the first convolution, only the input channels of the examples are trained
            learning[_FIRST].grad[:, :-_EXAMPLE_CHANNELS] = 0
        torch.nn.utils.clip_grad_norm_(list(learning.values()), 1.0)
        optimiser.step()
        decay = min(_AVERAGE, (step + 1) / (step + 10))
        for name, tensor in learning.items():
            average[name].lerp_(tensor.detach(), 1 - decay)
        smooth = total if not step else 0.98 * smooth + 0.02 * total
        bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
    return average


def _learns(name: str, part: _Part) -> bool:
    if name in _STATISTICS:
        return False
    if part.learns == "all" or name == _FIRST:
        return True
    return name.startswith("example.") == (part.learns == "examples")


def _kind(name: str) -> str:
    if is_of_a_space(name):
        return "space"
    return "numbers" if name.startswith("presence.") or name in ("likeness", "words", "background") else "new"


def _start(self_support: Mapping[str, Tensor], photos: Sequence[Seen]) -> dict[str, Tensor]:
    """Starting weights, with which the masks equal those of self-support and examples have no effect."""
    channels, width = len(photos[0].edges), photos[0].features.shape[1]
    edges = torch.cat([photo.edges.flatten(1)[:, ::17].float() for photo in photos[::5]], dim=1)
    layers: dict[str, torch.nn.Module] = {
        "tokens": torch.nn.Linear(width, _WIDTH),
        "edges": torch.nn.Conv2d(channels, _WIDTH, 3),
        "image": torch.nn.Conv2d(_WIDTH, _WIDTH, 3),
        "place": torch.nn.Conv2d(_WIDTH, _WIDTH, 1),
        "class": torch.nn.Conv2d(_CLASS_FACTS + _EXAMPLE_CHANNELS, _WIDTH, 3),
        **{f"layers.{layer}": torch.nn.Conv2d(_WIDTH, _WIDTH, 3) for layer in range(_LAYERS)},
        "mask": torch.nn.Conv2d(_WIDTH, 1, 1),
        "example.0": torch.nn.Linear(_EXAMPLE_FACTS, _EXAMPLE_WIDTH),
        "example.1": torch.nn.Linear(_EXAMPLE_WIDTH, _EXAMPLE_WIDTH),
        "example.2": torch.nn.Linear(_EXAMPLE_WIDTH, 1),
    }
    for last in ("mask", "example.2"):
        for parameter in layers[last].parameters():
            torch.nn.init.zeros_(parameter)
    new = {
        f"{name}.{kind}": value.detach() for name, layer in layers.items() for kind, value in layer.named_parameters()
    }
    return {
        **{name: tensor.detach().clone() for name, tensor in self_support.items()},
        **new,
        "edges.mean": edges.mean(dim=1)[:, None, None],
        "edges.deviation": edges.std(dim=1)[:, None, None] + 1e-3,
        # Examples start with the projection in which the photo's own patches are compared.
        "example.weight": self_support["projection.weight"].detach().clone(),
        "example.bias": self_support["projection.bias"].detach().clone(),
        "example.sharpness": torch.tensor(2.3),
    }


def showing(photos: Sequence[Seen]) -> dict[str, list[Seen]]:
    """Photos by the names of which they are examples."""
    found: dict[str, list[Seen]] = {}
    for photo in photos:
        area = photo.shares[1:].mean(dim=(1, 2))
        for name, share in zip(photo.names, area.tolist(), strict=False):  # present names come first
            if share >= _EXAMPLE_AREA:
                found.setdefault(name, []).append(photo)
    return found


def _either(few: Sequence[Seen], many: Sequence[Seen], rng: random.Random) -> Iterator[Seen]:
    while True:
        yield rng.choice(few if rng.random() < 0.5 else many)


def _mixed(
    own: Sequence[Sequence[Seen]], few: Sequence[Seen], many: Sequence[Seen], rng: random.Random
) -> Iterator[Seen]:
    roots = [math.sqrt(len(photos)) for photos in own]
    while True:
        (source,) = rng.choices(("own", "few", "many"), _OPEN_SHARES)
        photos = rng.choices(own, roots)[0] if source == "own" else few if source == "few" else many
        yield rng.choice(photos)


def _lessons(
    photos: Iterator[Seen], shown: Mapping[str, list[Seen]], requests: Requests, rng: random.Random
) -> Iterator[tuple[Seen, Lesson]]:
    for photo in photos:
        yield photo, lesson_of(photo, shown, rng, layers=DEFAULT_LAYERS, requests=requests)


def lesson_of(
    photo: Seen,
    shown: Mapping[str, list[Seen]],
    rng: random.Random,
    *,
    layers: Sequence[int],
    doubt: float = 1.0,
    requests: Requests = Requests(),
) -> Lesson:
    """Draw a lesson about a photo.

    Args:
        photo: Outputs of the network on the photo.
        shown: Photos by the names of which they may be examples.
        rng: Source of the random choices.
        layers: Layers that are read.
        doubt: Factor on the random bias that makes the words less accurate.
        requests: How classes are drawn.
    """
    present, names = len(photo.target), 1 + len(photo.names)
    absent = list(range(present, names))
    rows = [*range(present), *_competing(absent, requests, rng)]
    spare = [row for row in absent if row not in rows]
    words, examples = list(rows), {}
    for at, row in enumerate(rows[1:], start=1):
        there = row < present
        others = [one for one in shown.get(photo.names[row - 1], ()) if one.photo != photo.photo]
        if not others or rng.random() > (_TAUGHT if there else requests.taught_absent):
            continue
        shots = 1 if rng.random() < 0.65 or len(others) < 3 else min(len(others), rng.choice((2, 3, 5)))
        wordless = there and bool(spare) and rng.random() < _WORDLESS
        if wordless:
            words[at] = rng.choice(spare)
        examples[at] = rng.sample(others, shots), wordless
    return Lesson(layers, rows, words, doubt * random_bias(len(rows)), examples)


def _competing(absent: Sequence[int], requests: Requests, rng: random.Random) -> list[int]:
    """Absent rows of a request."""
    draw = rng.random()
    if draw < requests.without_absent:
        return []
    if draw >= requests.without_absent + requests.with_few:
        return rng.sample(absent, len(absent))
    first = absent[: requests.from_first]
    return rng.sample(first, min(rng.randint(1, 6), len(first)))


def lesson_loss(weights: dict[str, Tensor], photo: Seen, lesson: Lesson, rng: random.Random) -> Float[Tensor, ""]:
    """Cross-entropy with each class weighted by the root of its area, plus the overlap loss of the present classes."""
    scores = misled(photo.read(lesson.layers)[torch.tensor(lesson.words)], lesson.bias, rng)
    memories = [
        _memory(
            weights,
            shots,
            photo.names[lesson.rows[at] - 1],
            rng,
            layers=lesson.layers,
            bias=lesson.bias[[0, at]],
            wordless=wordless,
        )
        for at, (shots, wordless) in lesson.examples.items()
    ]
    features = photo.features.float()
    found, seen = fuse_appearance(weights, scores, features, taught=list(lesson.examples), memories=_stacked(memories))
    image = image_features(weights, features, photo.edges, grid_hw=(GRID, GRID))
    fine = logits(weights, scores, found, seen, image, grid_hw=(GRID, GRID))
    target = F.pad(photo.shares, (0, 0, 0, 0, 0, len(lesson.rows) - len(photo.target)))
    log_p = F.interpolate(fine[None], size=target.shape[1:], mode="bilinear")[0].log_softmax(dim=0)
    weight = target / (target.sum(dim=(1, 2), keepdim=True) + 2 * PIXELS).sqrt()
    entropy = -(weight * log_p).sum() / weight.sum().clamp_min(1e-6)
    p = log_p.exp() * target.sum(dim=0)
    both, either = (p * target).sum(dim=(1, 2)), (p + target - p * target).sum(dim=(1, 2))
    return entropy + _OVERLAP * (1 - (both + 1) / (either + 1))[: len(photo.target)].mean()


def _memory(
    weights: Mapping[str, Tensor],
    shots: Sequence[Seen],
    name: str,
    rng: random.Random,
    *,
    layers: Sequence[int],
    bias: Float[Tensor, "2"],
    wordless: bool,
) -> ExampleMemory:
    """Like `app.backbones.embedded.example_memory.remember`, but of random patches and with gradients."""
    places, sides, facts = [], [], []
    competing = rng.choice(_COMPETING)
    for shot in shots:
        row = 1 + shot.names.index(name)
        shares = shot.patch_shares(GRID)
        inside, outside = shares[row], shares.sum(dim=0) - shares[row]
        others = range(len(shot.target), 1 + len(shot.names))
        words = rng.choice(others) if wordless else row
        scores = shot.read(layers)[torch.tensor([0, *rng.sample(others, min(competing, len(others))), words])]
        log_p = normalise(scores).clamp_min(1e-9).log()
        log_p[0], log_p[-1] = log_p[0] + bias[0], log_p[-1] + bias[1]
        facts.append(example_facts(log_p.softmax(dim=0)[-1].logit(eps=1e-6), inside, outside))
        some = torch.unique(torch.cat([_drawn(side) for side in (inside, outside)]))
        places.append(place(weights, shot.features[some]))
        sides.append(torch.stack([side[some] / side[some].sum().clamp_min(1e-6) for side in (inside, outside)]))
    kept, (inside, outside) = torch.cat(places), torch.cat(sides, dim=1) / len(shots)
    none = torch.zeros_like(kept), torch.zeros_like(inside)
    return ExampleMemory(kept, inside, kept, outside, *none, torch.stack(facts).mean(dim=0))


def _drawn(share: Float[Tensor, "patch"]) -> Tensor:
    count = min(_PATCHES, max(1, int((share > 1e-3).sum())))
    return torch.multinomial(share.clamp_min(1e-9), count)


def _stacked(memories: Sequence[ExampleMemory]) -> ExampleMemory | None:
    """The memories, padded to the same number of patches with shares of zero; None if there are none."""
    if not memories:
        return None
    most = max(len(memory.inside) for memory in memories)
    return ExampleMemory.stack([_padded(memory, most - len(memory.inside)) for memory in memories])


def _padded(memory: ExampleMemory, missing: int) -> ExampleMemory:
    patches = F.pad(memory.inside, (0, 0, 0, missing))
    inside, outside = (F.pad(share, (0, missing)) for share in (memory.inside_share, memory.outside_share))
    none = torch.zeros_like(patches), torch.zeros_like(inside)
    return ExampleMemory(patches, inside, patches, outside, *none, memory.facts)
