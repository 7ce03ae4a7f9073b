"""The last stage: how a photo is its own example (`app.method.self_support`), learned from photos with exact masks.

Everything before stands still, so each photo is looked at once, and a step costs next to nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from app.method.backbone import Backbone
from app.method.class_map import normalise
from app.method.ensemble import layer_weights, weighted_scores
from app.method.evidence import prompt_evidence
from app.method.prompts import BACKGROUND_WORDS, free_background
from app.method.segment import Query
from app.method.self_support import PREFIX, logits

from .photos import SIZE, UNKNOWN, Photo, Sample, load, vary, whole
from .train import GRID

_SPACE = 64
_HIDDEN = 12
_STEPS = 1500
_BATCH = 16
_WARM_UP = 50
# Of the projection, and of the few numbers beside it.
_RATES = (5e-4, 6e-3)
# Names that are not in the photo and may compete.
_OTHERS = 24
# A region must have so much of the photo to be asked for.
_LEAST_AREA = 0.001


@dataclass(frozen=True)
class Seen:
    """A photo, as the trained network sees it.

    Attributes:
        scores: Of the background, the names that are there, and `_OTHERS` that aren't.
        features: Of its patches.
        target: Share of each patch that the background and each name that is there cover.
    """

    scores: Float[Tensor, "class patch"]
    features: Float[Tensor, "patch feature"]
    target: Float[Tensor, "present patch"]


def train_self_support(
    model: Backbone, few: Sequence[Photo], many: Sequence[Photo], *, seed: int, pace: float = 1.0
) -> dict[str, Tensor]:
    """Learn the tensors of `app.method.self_support`, named as in a backbone's weights.

    Args:
        model: With everything else trained.
        few: Photos that are shown whole and in three varied forms, and make half of each batch.
        many: Photos that are shown whole, and make the other half.
        seed: Of everything random.
        pace: Share of the steps.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    names = sorted({region.names[0] for photo in few for region in photo.regions.values()})
    shown = [(photo, view) for photo in few for view in range(4)]
    with tqdm(total=len(shown) + len(many), desc="looking", unit="photo", mininterval=20) as bar:
        halves = [
            [found for photo, view in photos if (found := _look(model, photo, view, names, rng, bar))]
            for photos in (shown, [(photo, 0) for photo in many])
        ]
    weights = _start(halves[0], _SPACE)
    learning = {name: tensor.requires_grad_(True) for name, tensor in weights.items()}
    groups = [
        {"params": [t for name, t in learning.items() if ("projection" in name) == slow], "peak": rate}
        for slow, rate in zip((True, False), _RATES, strict=True)
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = max(1, round(_STEPS * pace))
    bar = tqdm(range(steps), desc="self-support", unit="step", mininterval=20)
    for step in bar:
        rate = min(1.0, (step + 1) / _WARM_UP) * (1 - step / steps)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        batch = [rng.choice(halves[rng.random() < 0.5]) for _ in range(_BATCH)]
        loss = torch.stack([_loss(weights, one, rng) for one in batch]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return {PREFIX + name: tensor.detach() for name, tensor in weights.items()}


@torch.no_grad()
def _look(
    model: Backbone, photo: Photo, view: int, names: Sequence[str], rng: random.Random, bar: "tqdm[object]"
) -> Seen | None:
    """What the network sees in a photo, or in a varied form of it; None if nothing known is in it."""
    bar.update()
    sample = load(photo)
    sample = vary(sample, rng) if view else whole(sample)
    present, target = _target(sample)
    if not present:
        return None
    related = set().union(*(region.related for region in sample.regions), present)
    possible = [name for name in names if name not in related]
    words = [*present, *rng.sample(possible, min(_OTHERS, len(possible)))]
    tokens = model.encode_image(torch.from_numpy(sample.rgb.copy()).permute(2, 0, 1)[None].float() / 255)[0]
    groups = [Query(free_background(BACKGROUND_WORDS, words)), *(Query((word,)) for word in words)]
    weights = layer_weights([None] * len(groups), model.default_layers)
    scores = weighted_scores(prompt_evidence(model, tokens, groups, weights.layers), weights)
    return Seen(scores, model.patch_features(tokens).half(), target)


def _target(sample: Sample) -> tuple[list[str], Float[Tensor, "class patch"]]:
    """Names in the photo, and the share of each patch that the background and each of them cover."""
    labels = torch.from_numpy(sample.labels.copy()).long()
    present = [
        value
        for value in range(1, len(sample.regions) + 1)
        if (labels == value).sum() >= _LEAST_AREA * (labels != UNKNOWN).sum()
    ]
    maps = torch.stack([labels == value for value in (0, *present)]).float()
    shares = F.avg_pool2d(maps[None], SIZE // GRID)[0].flatten(1)
    return [sample.regions[value - 1].names[0] for value in present], shares


def _start(photos: Sequence[Seen], space: int) -> dict[str, Tensor]:
    """Patches are compared along the directions in which they differ most; everything else is small and random."""
    features = torch.cat([photo.features[::37].float() for photo in photos])
    mean, deviation = features.mean(dim=0), features.std(dim=0) + 1e-3
    _, _, directions = torch.pca_lowrank((features - mean) / deviation, q=space)
    projection = directions.T / deviation
    first, second = torch.nn.Linear(4, _HIDDEN), torch.nn.Linear(_HIDDEN, 1)
    return {
        "projection.weight": projection.contiguous(),
        "projection.bias": -projection @ mean,
        "likeness": torch.tensor(8.0),
        "words": torch.tensor(0.8),
        "background": torch.tensor(0.0),
        "presence.0.weight": first.weight.detach().clone(),
        "presence.0.bias": first.bias.detach().clone(),
        "presence.1.weight": second.weight.detach().clone(),
        "presence.1.bias": second.bias.detach().clone(),
    }


def _loss(weights: dict[str, Tensor], photo: Seen, rng: random.Random) -> Float[Tensor, ""]:
    """Cross-entropy of the class map, each class weighing by the root of its area.

    The words know the photos that they were trained on better than any other. So their map is blurred and misled here,
    each class by a random amount; half of the time names that aren't there compete.
    """
    present, others = len(photo.target), len(photo.scores) - len(photo.target)
    draw = rng.random()
    count = 0 if draw < 0.5 else rng.randint(min(1, others), others) if draw < 0.75 else others
    rows = torch.tensor([*range(present), *rng.sample(range(present, present + others), count)])
    scores = photo.scores[rows]
    log_p = normalise(scores).clamp_min(1e-9).log()
    misled = torch.randn(len(rows), 1) * torch.tensor([0.3] + [1.0] * (len(rows) - 1))[:, None]
    blurred = (rng.uniform(0.5, 1.0) * log_p + misled).softmax(dim=0)
    found = logits(weights, blurred, photo.features).log_softmax(dim=0)
    target = torch.cat([photo.target, torch.zeros(count, photo.target.shape[1])])
    weight = target / (target.sum(dim=1, keepdim=True) + 2).sqrt()
    return -(weight * found).sum() / weight.sum().clamp_min(1e-6)
