"""Training of self-support (`app.backbones.embedded.self_support`), with which the mask decoder starts.

Everything before it is frozen and its outputs are cached, so a step is cheap.
"""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from app.backbones.embedded import DEFAULT_LAYERS
from app.backbones.embedded.self_support import logits
from app.method.scores import normalise

from .looking import Seen
from .photos import GRID

_SPACE = 64
_HIDDEN = 12
_STEPS = 1500
_BATCH = 16
_WARM_UP = 50
# Peak learning rates of the projection, and of the few other parameters.
_RATES = (5e-4, 6e-3)


def train_self_support(few: Sequence[Seen], many: Sequence[Seen], *, seed: int, pace: float = 1.0) -> dict[str, Tensor]:
    """Train the tensors of `app.backbones.embedded.self_support`.

    Args:
        few: Photos for one half of each batch.
        many: Photos for the other half.
        seed: Seed of all random choices.
        pace: Factor on the number of steps.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    weights = _start(few, _SPACE)
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
        batch = [rng.choice(few if rng.random() < 0.5 else many) for _ in range(_BATCH)]
        loss = torch.stack([_loss(weights, one, rng) for one in batch]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return {name: tensor.detach() for name, tensor in weights.items()}


def misled(
    scores: Float[Tensor, "class patch"], bias: Float[Tensor, "class"], rng: random.Random
) -> Float[Tensor, "class patch"]:
    """Scores flattened by a random factor, with a bias added to each class's log-probability.

    The words are more accurate on their own training photos than on others, so their scores are made worse here.
    """
    log_p = normalise(scores).clamp_min(1e-9).log()
    return (rng.uniform(0.5, 1.0) * log_p + bias[:, None]).softmax(dim=0)


def random_bias(classes: int) -> Float[Tensor, "class"]:
    """Random bias of each class's log-probability; small for the background, which comes first."""
    return torch.randn(classes) * torch.tensor([0.3] + [1.0] * (classes - 1))


def _start(photos: Sequence[Seen], space: int) -> dict[str, Tensor]:
    """Starting weights: patches are compared along their principal components."""
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
    """Cross-entropy of the class map, with each class weighted by the root of its area.

    Absent names compete half of the time.
    """
    present, others = len(photo.target), len(photo.names) + 1 - len(photo.target)
    draw = rng.random()
    count = 0 if draw < 0.5 else rng.randint(min(1, others), others) if draw < 0.75 else others
    rows = torch.tensor([*range(present), *rng.sample(range(present, present + others), count)])
    blurred = misled(photo.read(DEFAULT_LAYERS)[rows], random_bias(len(rows)), rng)
    found = logits(weights, blurred, photo.features).log_softmax(dim=0)
    target = F.pad(photo.patch_shares(GRID), (0, 0, 0, count))
    weight = target / (target.sum(dim=1, keepdim=True) + 2).sqrt()
    return -(weight * found).sum() / weight.sum().clamp_min(1e-6)
