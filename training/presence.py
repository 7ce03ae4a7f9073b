"""`python -m training.presence --data DIR`: make the embedded model's presence file, the bank and two logistic models.

Every sample is a category in a photo: named alone or among others, or taught from one other photo. Photos that are
measured on (`own_things.measured`) are neither in the bank nor fitted.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence, Set
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
from app.backbones.embedded.presence import Bank, density, example_facts, likeness_in_bank, named_facts
from app.method.evidence import Evidence, prompt_evidence
from app.method.frame import mask_to_input
from app.method.parameters import ExampleMemory
from app.method.pipeline import encode_one
from app.method.presence import LogisticModel
from app.method.prompts import BACKGROUND_WORDS, Prompts, Query
from app.method.scores import LayerWeights, normalise
from app.method.tuning import COMPETING_CATEGORIES

from .own_things import COMMON, measured
from .vocabulary import names_of

# Photos of the bank, directions per photo, and directions that stand for all of its patches.
BANK_PHOTOS, DIRECTIONS, CENTROIDS = 256, 16, 512
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

_HIDDEN, _STEPS, _RATE, _DECAY = 8, 600, 0.02, 3e-4
_HELD_OUT = Path(__file__).parent / "held_out.json"


@dataclass(frozen=True)
class Scene:
    """A photo of a set, encoded.

    Attributes:
        image: Photo file.
        names: Names that may be asked for in it, present or surely absent.
        share: Per present name the share of each patch that it covers.
        evidence: Of the background and all names.
        features: Of the patches.
    """

    image: Path
    names: tuple[str, ...]
    share: dict[str, Tensor]
    evidence: Evidence
    features: Tensor


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
        for entry in entries:
            yield _scene(backbone, entry, asked)


@torch.no_grad()
def _scene(backbone: embedded.Embedded, entry: Entry, names: tuple[str, ...]) -> Scene:
    with Image.open(entry.image) as file:
        rgb, frame = backbone.preprocess(np.array(file.convert("RGB")))
    with Image.open(entry.mask) as file:
        labels = np.array(file)
    image = encode_one(backbone, rgb)
    prompts = Prompts((Query(BACKGROUND_WORDS), *(Query((name,)) for name in names)))
    share = {}
    for number, name in entry.labels.items():
        on_input = mask_to_input(labels == number, frame, outside=0)
        share[name] = F.adaptive_avg_pool2d(on_input[None], backbone.patch_grid_hw)[0].flatten()
    evidence = prompt_evidence(backbone, image, prompts, backbone.default_layers)
    return Scene(entry.image, names, share, evidence, backbone.patch_features(image))


def make_bank(weights: dict[str, Tensor], seen: Sequence[Scene], rng: random.Random) -> Bank:
    """The bank of some of the scenes."""
    chosen = rng.sample(list(seen), min(BANK_PHOTOS, len(seen)))
    places = torch.stack([example_memory.place(weights, scene.features) for scene in chosen])
    uniform = torch.full((places.shape[1],), 1 / places.shape[1])
    directions = torch.stack([example_memory.directions(each, uniform, DIRECTIONS)[0] for each in places])
    some = places.flatten(0, 1)[:: max(1, len(chosen) // 16)]
    centroids, share = example_memory.directions(some, torch.full((len(some),), 1 / len(some)), CENTROIDS)
    at = density(directions.flatten(0, 1), centroids, share, weights["example.sharpness"].exp())
    return Bank(directions, at.view(directions.shape[:2]), centroids, share)


def known_words(sets: dict[str, list[Entry]]) -> frozenset[str]:
    """Names that the network has learned from many masks: COCO's and VOC's, and their synonyms."""
    shown = {name for kind in ("coco", "voc") for entry in sets[kind] for name in _shown(entry)}
    return frozenset(word.casefold() for name in shown for word in names_of(name))


@torch.no_grad()
def samples(
    weights: dict[str, Tensor], bank: Bank, known: Set[str], seen: Sequence[Scene], rng: random.Random
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
                facts = _facts(scene, words, known & {*request})[rows]
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


def _facts(scene: Scene, words: Sequence[str], known: Set[str]) -> Tensor:
    """Facts of the words of a request."""
    return named_facts(*_scores(scene, words), torch.tensor([word in known for word in words]))


def _truth(scene: Scene, request: Sequence[str]) -> Tensor:
    return torch.tensor([float(name in scene.share) for name in request])


def _request(scene: Scene, size: int, rng: random.Random, *, single: float) -> list[str]:
    """Names of one request, present as often as in photos that mostly lack them; a single one more often."""
    if size == 1 and scene.share and rng.random() < single:
        return [rng.choice(sorted(scene.share))]
    return rng.sample(scene.names, min(size, len(scene.names)))


def _scores(scene: Scene, request: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Class scores and match scores of a request."""
    numbers = [0, *(scene.names.index(name) + 1 for name in request)]
    part = scene.evidence.only(numbers)
    return part.class_scores(LayerWeights.mean(range(len(part.patch_logits)), len(numbers))), part.best_match()


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
    """The model of least cross-entropy, with weight decay."""
    mean, deviation = facts.mean(dim=0), facts.std(dim=0).clamp_min(1e-3)
    generator = torch.Generator().manual_seed(seed)
    count = facts.shape[1]
    hidden = (0.3 * torch.randn(_HIDDEN, count, generator=generator)).requires_grad_()
    bias = torch.zeros(_HIDDEN, requires_grad=True)
    out = torch.zeros(count + _HIDDEN + 1, requires_grad=True)
    optimiser = torch.optim.AdamW([hidden, bias, out], lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    model = LogisticModel(mean, deviation, hidden, bias, out)
    for _ in range(_STEPS):
        loss = F.binary_cross_entropy_with_logits(model.logit(facts), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return LogisticModel(mean, deviation, hidden.detach(), bias.detach(), out.detach())


def write(file: Path, bank: Bank, named: LogisticModel, taught: LogisticModel, facts: dict[str, str]) -> None:
    """Write the presence file: the bank in float16, the models in float32."""
    tensors = {f"bank.{name}": tensor.half().contiguous() for name, tensor in vars(bank).items()}
    for prefix, model in (("named", named), ("taught", taught)):
        tensors |= {f"{prefix}.{name}": tensor.contiguous() for name, tensor in vars(model).items()}
    save_file(tensors, file, metadata=facts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.presence", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collections of photos")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    backbone = embedded.load("", device="cpu", dtype="float32")
    weights = dict(backbone.mask_decoder.weights)
    sets = fitted_entries(arguments.data)
    known, seen = known_words(sets), list(scenes(backbone, sets))
    bank = make_bank(weights, seen, rng)
    draws = [samples(weights, bank, known, seen, rng) for _ in range(DRAWS)]
    named_facts, named_truth, taught_facts, taught_truth = map(torch.cat, zip(*draws, strict=True))
    named, taught = fit(named_facts, named_truth), fit(taught_facts, taught_truth)
    _tell("named", named, named_facts, named_truth)
    _tell("taught", taught, taught_facts, taught_truth)
    facts = {"revision": backbone.revision, "photos": str(len(seen)), "known words": "\n".join(sorted(known))}
    write(arguments.out, bank, named, taught, facts)


def _tell(kind: str, model: LogisticModel, facts: Tensor, truth: Tensor) -> None:
    loss = F.binary_cross_entropy_with_logits(model.logit(facts), truth)
    print(f"{kind}: {len(truth)} samples, {truth.mean():.3f} present, cross-entropy {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
