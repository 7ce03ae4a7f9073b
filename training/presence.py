"""`python -m training.presence --data DIR`: make the embedded model's presence file.

It holds the bank, usual facts of known words, and two logistic models.

Every sample is a category in a photo: named alone or among others, or taught from one other photo. Photos that are
measured on (`own_things.measured`) are neither in the bank nor fitted.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from app.backbones import embedded
from app.backbones.embedded import example_memory
from app.backbones.embedded.presence import (
    COMPARED_FACTS,
    KIND_FACTS,
    UPPER_QUANTILE,
    Bank,
    KnownWords,
    density,
    example_facts,
    likeness_in_bank,
    named_facts,
)
from app.method.evidence import Evidence, prompt_evidence
from app.method.frame import mask_to_input
from app.method.parameters import ExampleMemory
from app.method.pipeline import encode_one
from app.method.presence import LogisticModel
from app.method.prompts import BACKGROUND_WORDS, Prompts, Query, free_background
from app.method.scores import LayerWeights, normalise
from app.method.tuning import COMPETING_CATEGORIES

from .own_things import COMMON, measured
from .vocabulary import KINDS, names_of

# Photos of the bank, directions per photo, and directions that stand for all of its patches.
BANK_PHOTOS, DIRECTIONS, CENTROIDS = 256, 16, 512
# A patch of so many stands for the bank's patches: coprime to the grid, so that all of its places are among them.
BANK_STRIDE = 17
# Sizes of the requests that samples are drawn from, and requests per photo.
REQUEST_SIZES, REQUESTS = (1, 1, 3, 10, 20, 40, 100), 7
# Who requests a single category expects it: it is present in this share of the photos, and by chance in the others. Who
# names one looks at the photo; a taught one is looked for in folders of photos that mostly lack it.
SINGLE_NAMED, SINGLE_TAUGHT = 0.22, 0.15
# Times that requests and supports are drawn, and fits from different starts whose mean is kept: with one of each, the
# presence of a category in a photo changes by 0.1 to 0.2 with the seed.
DRAWS, FITS = 3, 5
# Categories of a request that are taught in turn.
TAUGHT_AT_ONCE = 12
# Share of the taught categories under the word of an absent one: people also teach words that mean nothing.
WORDLESS = 0.3
# A photo teaches a category that covers at least this share of it.
SUPPORT_AREA = 0.005

# Photos without what a word names that say how the word scores there; the smallest spread of these scores.
LACKING, MIN_SPREAD = 20, 0.3

_HIDDEN, _STEPS, _RATE, _DECAY = 8, 600, 0.02, 1e-4
_IMAGENET_CLASSES = 1000
_HELD_OUT = Path(__file__).parent / "held_out.json"


@dataclass(frozen=True)
class Scene:
    """A photo of a set, encoded.

    Attributes:
        image: Photo file.
        names: Names that may be asked for in it, present or surely absent.
        words: These names and synonyms of some of them.
        share: Per present name the share of each patch that it covers.
        evidence: Of the background words, each by itself, and of all words.
        features: Of the patches.
        kinds: By `kind_facts`.
    """

    image: Path
    names: tuple[str, ...]
    words: tuple[str, ...]
    share: dict[str, Tensor]
    evidence: Evidence
    features: Tensor
    kinds: Tensor


@dataclass(frozen=True)
class Entry:
    """A photo of a set before it is encoded; `labels` by value in the mask file."""

    image: Path
    mask: Path
    labels: dict[int, str]


def fitted_entries(data: Path) -> dict[str, list[Entry]]:
    """Photos to fit on, by set: COCO without every second held-out one, a twentieth of VOC, half of own things."""
    sets = {}
    held_out = json.loads(_HELD_OUT.read_text())["coco"]
    coco, _ = _entries(data / "coco_mini_dev")
    sets["coco"] = [entry for entry in coco if entry.image.stem not in set(held_out[1::2])]
    voc, _ = _entries(data / "voc_animals_dev")
    sets["voc"] = voc[::20]
    for folder in sorted((data / "own_things").iterdir()):
        entries, _ = _entries(folder)
        kept = [entry for entry in entries if not any(measured(name) for name in _shown(entry))]
        if kept:
            sets[folder.name] = kept
    return sets


def _entries(folder: Path) -> tuple[list[Entry], list[str]]:
    index = json.loads((folder / "index.json").read_text())
    classes = index["classes"]
    entries = [
        Entry(
            folder / "images" / f"{image['id']}.jpg",
            folder / "masks" / f"{image['id']}.png",
            {number: classes[number] for number in image["classes"]},
        )
        for image in index["images"]
    ]
    return entries, classes


def _shown(entry: Entry) -> set[str]:
    return set(entry.labels.values())


def scenes(backbone: embedded.Embedded, sets: dict[str, list[Entry]]) -> Iterator[Scene]:
    """Every photo, encoded and asked for the names of its set and for those of other sets that it cannot show."""
    names = {name: sorted(set().union(*map(_shown, entries))) for name, entries in sets.items()}
    own = sorted({n for name in names if name not in ("coco", "voc") for n in names[name]} - COMMON)
    for name, entries in sets.items():
        asked = tuple(dict.fromkeys([*names[name], *own]))
        synonyms = [word for each in names[name] for word in names_of(each)] if name in ("coco", "voc") else []
        words = tuple(dict.fromkeys([*asked, *synonyms]))
        for entry in entries:
            yield _scene(backbone, entry, asked, words)


@torch.no_grad()
def _scene(backbone: embedded.Embedded, entry: Entry, names: tuple[str, ...], words: tuple[str, ...]) -> Scene:
    with Image.open(entry.image) as file:
        rgb, frame = backbone.preprocess(np.array(file.convert("RGB")))
    with Image.open(entry.mask) as file:
        labels = np.array(file)
    image = encode_one(backbone, rgb)
    assert image.kinds is not None
    prompts = Prompts(tuple(Query((word,)) for word in (*BACKGROUND_WORDS, *words)))
    share = {}
    for number, name in entry.labels.items():
        on_input = mask_to_input(labels == number, frame, outside=0)
        share[name] = F.adaptive_avg_pool2d(on_input[None], backbone.patch_grid_hw)[0].flatten()
    evidence = prompt_evidence(backbone, image, prompts, backbone.default_layers)
    return Scene(entry.image, names, words, share, evidence, backbone.patch_features(image), image.kinds)


def make_bank(weights: dict[str, Tensor], seen: Sequence[Scene], rng: random.Random) -> Bank:
    """The bank of some of the scenes."""
    chosen = rng.sample(list(seen), min(BANK_PHOTOS, len(seen)))
    places = torch.stack([example_memory.place(weights, scene.features) for scene in chosen])
    uniform = torch.full((places.shape[1],), 1 / places.shape[1])
    directions = torch.stack([example_memory.directions(each, uniform, DIRECTIONS)[0] for each in places])
    some = places.flatten(0, 1)[::BANK_STRIDE]
    centroids, share = example_memory.directions(some, torch.full((len(some),), 1 / len(some)), CENTROIDS)
    at = density(directions.flatten(0, 1), centroids, share, weights["example.sharpness"].exp())
    return Bank(directions, at.view(directions.shape[:2]), centroids, share)


def kind_members() -> Tensor:
    """1 for each class of ImageNet that is of a kind, `[kind, imagenet_class]`, in the order of `KINDS`."""
    members = torch.zeros(len(KINDS), _IMAGENET_CLASSES)
    for row, classes in enumerate(KINDS.values()):
        members[row, list(classes)] = 1
    return members


def known_words(sets: dict[str, list[Entry]], seen: Sequence[Scene]) -> KnownWords:
    """Names that the network has learned from many masks, COCO's and VOC's, and their synonyms.

    The photos without what a word names give its usual facts.
    """
    shown = {name for kind in ("coco", "voc") for entry in sets[kind] for name in _shown(entry)}
    named = {word.casefold(): name for name in sorted(shown) for word in names_of(name)}
    kinds = {word.casefold(): row for row, name in enumerate(KINDS) for word in names_of(name)}
    row = {word: number for number, word in enumerate(sorted(named))}
    kind = torch.tensor([kinds.get(word, 0) for word in row] + [0])
    shape = (len(row) + 1, len(COMPARED_FACTS))
    # So that what is unusual is the fact itself.
    plain = KnownWords(row, kind_members(), kind, torch.zeros(shape), torch.ones(shape))
    lacking: dict[str, list[Tensor]] = {word: [] for word in row}
    for scene in seen:
        words = [word for word in scene.words if named.get(word.casefold()) in scene.names]
        if words:
            facts = _facts(scene, words, plain)[:, -len(COMPARED_FACTS) :]
            for word, of_word in zip(words, facts, strict=True):
                if named[word.casefold()] not in scene.share:
                    lacking[word.casefold()].append(of_word)
    median, spread = torch.zeros(shape), torch.full(shape, torch.inf)
    for word, of_photos in lacking.items():
        if len(of_photos) >= LACKING:
            values = torch.stack(of_photos)
            median[row[word]] = values.quantile(0.5, dim=0)
            spread[row[word]] = (values.quantile(UPPER_QUANTILE, dim=0) - median[row[word]]).clamp_min(MIN_SPREAD)
        if word not in kinds:
            spread[row[word], -len(KIND_FACTS) :] = torch.inf
    return KnownWords(row, plain.members, kind, median, spread)


@torch.no_grad()
def samples(
    weights: dict[str, Tensor], bank: Bank, known: KnownWords, seen: Sequence[Scene], rng: random.Random
) -> tuple[Tensor, ...]:
    """Facts and truth of named categories, then of taught ones."""
    examples = _Examples(weights, seen, rng)
    sharpness = weights["example.sharpness"].exp()
    named, taught = [], []
    for scene in seen:
        places = example_memory.place(weights, scene.features)
        everywhere = density(places, bank.centroids, bank.share, sharpness)
        for size in rng.sample(REQUEST_SIZES, REQUESTS):
            request = _request(scene, size, rng, single=SINGLE_NAMED)
            named.append((_facts(scene, request, known), _truth(scene, request)))
            if size == 1:
                request = _request(scene, size, rng, single=SINGLE_TAUGHT)
            words, memories = examples.teach(scene, request)
            if memories:
                stacked = ExampleMemory.stack(list(memories.values()))
                in_bank = likeness_in_bank(bank, stacked, sharpness)
                looks = example_facts(in_bank, everywhere, places, stacked, sharpness)
                rows = list(memories)
                # A category under the word of another thing is one under a word that means nothing.
                facts = _facts(scene, words, known, meant=request)[rows]
                taught.append((torch.cat([facts, looks], dim=1), _truth(scene, request)[rows]))
    return (*map(torch.cat, zip(*named, strict=True)), *map(torch.cat, zip(*taught, strict=True)))


class _Examples:
    """Memories of categories from one photo each, some of them under a word that means nothing."""

    def __init__(self, weights: dict[str, Tensor], seen: Sequence[Scene], rng: random.Random) -> None:
        self._weights, self._rng = weights, rng
        self._supports: dict[str, list[Scene]] = {}
        for scene in seen:
            for name, share in scene.share.items():
                if share.mean() >= SUPPORT_AREA:
                    self._supports.setdefault(name, []).append(scene)
        self._made: dict[tuple[Path, str, str], ExampleMemory] = {}

    def teach(self, scene: Scene, request: Sequence[str]) -> tuple[list[str], dict[int, ExampleMemory]]:
        """Words of a request in a photo, and memories of some of its rows from other photos."""
        rng, words, memories = self._rng, list(request), {}
        rows = [row for row, name in enumerate(request) if len(self._supports.get(name, [])) > 1]
        for row in rng.sample(rows, min(TAUGHT_AT_ONCE, len(rows))):
            name = request[row]
            support = rng.choice([each for each in self._supports[name] if each.image != scene.image])
            if rng.random() < WORDLESS:
                taken = {*words, *scene.share, *support.share}
                free = [word for word in scene.names if word in support.names and word not in taken]
                words[row] = rng.choice(free or [name])
            memories[row] = self._memory(name, words[row], support)
        return words, memories

    def _memory(self, name: str, word: str, support: Scene) -> ExampleMemory:
        if (support.image, name, word) not in self._made:
            self._made[support.image, name, word] = _memory(self._weights, name, word, support, self._rng)
        return self._made[support.image, name, word]


def _facts(scene: Scene, words: Sequence[str], known: KnownWords, *, meant: Sequence[str] = ()) -> Tensor:
    """Facts of the words of a request; a word that is not the one `meant` is not known."""
    told = [(word,) if word == other else () for word, other in zip(words, meant or words, strict=True)]
    return named_facts(*_scores(scene, words), scene.kinds, known, told)


def _truth(scene: Scene, request: Sequence[str]) -> Tensor:
    return torch.tensor([float(name in scene.share) for name in request])


def _request(scene: Scene, size: int, rng: random.Random, *, single: float) -> list[str]:
    """Names of one request, present as often as in photos that mostly lack them; a single one more often."""
    if size == 1 and scene.share and rng.random() < single:
        return [rng.choice(sorted(scene.share))]
    return rng.sample(scene.names, min(size, len(scene.names)))


def _scores(scene: Scene, request: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Class scores and match scores of a request, beside the background that it has."""
    background = [BACKGROUND_WORDS.index(word) for word in free_background(BACKGROUND_WORDS, request)]
    own = [len(BACKGROUND_WORDS) + scene.words.index(word) for word in request]
    part = scene.evidence.only([*background, *own])
    spans = [(0, len(background)), *part.spans[len(background) :]]
    together = Evidence(part.patch_logits, part.match_score, tuple(spans))
    weights = LayerWeights.mean(range(len(part.patch_logits)), len(spans))
    return together.class_scores(weights), together.best_match()


def _memory(weights: dict[str, Tensor], name: str, word: str, support: Scene, rng: random.Random) -> ExampleMemory:
    """Memory of a category from one photo, under a word."""
    absent = [other for other in support.names if other not in support.share and other != word]
    others = rng.sample(absent, min(COMPETING_CATEGORIES, len(absent)))
    scores, _ = _scores(support, [*others, word])
    log_odds = normalise(scores)[-1].logit(eps=1e-5)
    inside = support.share[name]
    return example_memory.remember(weights, [support.features], [inside], [1 - inside], [log_odds])


def fit(facts: Tensor, truth: Tensor) -> LogisticModel:
    """The mean of the log-odds of several fits, as one model whose hidden units are those of all."""
    models = [fit_once(facts, truth, seed=seed) for seed in range(FITS)]
    linear = facts.shape[1]
    units = torch.cat([model.out[linear:-1] for model in models]) / FITS
    of_facts, bias = (sum(model.out[part] for model in models) / FITS for part in (slice(linear), slice(-1, None)))
    return LogisticModel(
        models[0].mean,
        models[0].deviation,
        torch.cat([model.hidden for model in models]),
        torch.cat([model.hidden_bias for model in models]),
        torch.cat([of_facts, units, bias]),
    )


def fit_once(facts: Tensor, truth: Tensor, *, seed: int) -> LogisticModel:
    """The model of least cross-entropy and small weights."""
    mean, deviation = facts.mean(dim=0), facts.std(dim=0).clamp_min(1e-3)
    generator = torch.Generator().manual_seed(seed)
    count = facts.shape[1]
    hidden = (0.3 * torch.randn(_HIDDEN, count, generator=generator)).requires_grad_()
    bias = torch.zeros(_HIDDEN, requires_grad=True)
    out = torch.zeros(count + _HIDDEN + 1, requires_grad=True)
    optimiser = torch.optim.Adam([hidden, bias, out], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    model = LogisticModel(mean, deviation, hidden, bias, out)
    for _ in range(_STEPS):
        loss = F.binary_cross_entropy_with_logits(model.logit(facts), truth)
        loss = loss + _DECAY * (hidden.square().sum() + out[:-1].square().sum())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return LogisticModel(mean, deviation, hidden.detach(), bias.detach(), out.detach())


def write(
    file: Path, bank: Bank, known: KnownWords, named: LogisticModel, taught: LogisticModel, facts: dict[str, str]
) -> None:
    """Write the presence file: the bank in float16, members of kinds as bytes, all else in float32."""
    tensors = {f"bank.{name}": tensor.half().contiguous() for name, tensor in vars(bank).items()}
    tensors |= {f"known.{name}": getattr(known, name) for name in ("kind", "median", "spread")}
    tensors["known.members"] = known.members.byte()
    for prefix, model in (("named", named), ("taught", taught)):
        tensors |= {f"{prefix}.{name}": tensor.contiguous() for name, tensor in vars(model).items()}
    save_file(tensors, file, metadata=facts | {"known words": "\n".join(known.row)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.presence", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collections of photos")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    backbone = embedded.load("", device="cpu", dtype="float32")
    backbone.kinds = kind_members()
    weights = dict(backbone.mask_decoder.weights)
    sets = fitted_entries(arguments.data)
    seen = list(scenes(backbone, sets))
    known = known_words(sets, seen)
    bank = make_bank(weights, seen, rng)
    draws = [samples(weights, bank, known, seen, rng) for _ in range(DRAWS)]
    named_facts, named_truth, taught_facts, taught_truth = map(torch.cat, zip(*draws, strict=True))
    named, taught = fit(named_facts, named_truth), fit(taught_facts, taught_truth)
    _tell("named", named, named_facts, named_truth)
    _tell("taught", taught, taught_facts, taught_truth)
    facts = {"revision": backbone.revision, "photos": str(len(seen))}
    write(arguments.out, bank, known, named, taught, facts)


def _tell(kind: str, model: LogisticModel, facts: Tensor, truth: Tensor) -> None:
    loss = F.binary_cross_entropy_with_logits(model.logit(facts), truth)
    print(f"{kind}: {len(truth)} samples, {truth.mean():.3f} present, cross-entropy {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
