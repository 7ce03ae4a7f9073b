"""What a category keeps of its examples for the mask decoder: how its patches look, and how far the words are off.

Patches are compared in a space that was trained for it. Examples are kept as a few directions in that space, inside
their masks and outside, with the share of the patches that each stands for: eight kilobytes, however many examples.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .adapter import MEMORY_PREFIX

# Names of an adapter's tensors.
INSIDE, INSIDE_SHARE = MEMORY_PREFIX + "inside", MEMORY_PREFIX + "inside_share"
OUTSIDE, OUTSIDE_SHARE = MEMORY_PREFIX + "outside", MEMORY_PREFIX + "outside_share"
FACTS = MEMORY_PREFIX + "facts"
MEMORY = (INSIDE, INSIDE_SHARE, OUTSIDE, OUTSIDE_SHARE, FACTS)

_DIRECTIONS = 32
_ROUNDS = 6
# Patches of less than this share of the weightiest one are left out.
_LEAST_SHARE = 1e-4
# Log-odds beyond these say no more.
LOG_ODDS = (-10.0, 8.0)
# Facts and likeness are divided by these to be near one.
_FACT_SCALE, _DENSITY_SCALE = 4.0, 8.0
# Classes compared at once: bounds [class, direction, patch] to some tens of megabytes.
_CLASSES_PER_PASS = 128


def place(weights: Mapping[str, Tensor], features: Float[Tensor, "patch feature"]) -> Float[Tensor, "patch space"]:
    """Directions of unit length: patches of like things are near each other."""
    return F.normalize(F.linear(features.float(), weights["example.weight"], weights["example.bias"]), dim=1)


def remember(
    weights: Mapping[str, Tensor],
    features: Sequence[Float[Tensor, "patch feature"]],
    inside: Sequence[Float[Tensor, "patch"]],
    outside: Sequence[Float[Tensor, "patch"]],
    log_odds: Sequence[Float[Tensor, "patch"]],
) -> dict[str, Tensor]:
    """What is kept of a category's examples, one entry of each list per example.

    Args:
        weights: Of the mask decoder.
        features: Of the photos' patches.
        inside: Share of each patch that the category covers.
        outside: Share of each patch that it doesn't.
        log_odds: Of the category against everything else, by all that it runs under but its memory.
    """
    places = torch.cat([place(weights, photo) for photo in features])
    kept = {}
    for side, share, name in ((inside, INSIDE_SHARE, INSIDE), (outside, OUTSIDE_SHARE, OUTSIDE)):
        even = torch.cat([each / each.sum().clamp_min(1e-6) for each in side]) / len(side)
        kept[name], kept[share] = directions(places, even, _DIRECTIONS)
    facts = [example_facts(*each) for each in zip(log_odds, inside, outside, strict=True)]
    return {**kept, FACTS: torch.stack(facts).mean(dim=0)}


def blank(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A memory of nothing, which has the form of every other."""
    kept, share = torch.zeros(_DIRECTIONS, len(weights["example.bias"])), torch.zeros(_DIRECTIONS)
    return {INSIDE: kept, INSIDE_SHARE: share, OUTSIDE: kept, OUTSIDE_SHARE: share, FACTS: torch.zeros(3)}


def memories_of(adapters: Sequence[Mapping[str, Tensor] | None]) -> tuple[list[int], dict[str, Tensor]]:
    """Which of these adapters' tensors hold a memory, and all of them, stacked."""
    rows = [row for row, tensors in enumerate(adapters) if tensors and FACTS in tensors]
    kept = [tensors for tensors in adapters if tensors and FACTS in tensors]
    return rows, {name: torch.stack([tensors[name] for tensors in kept]) for name in MEMORY} if rows else {}


def example_facts(
    log_odds: Float[Tensor, "patch"], inside: Float[Tensor, "patch"], outside: Float[Tensor, "patch"]
) -> Float[Tensor, "3"]:
    """Mean log-odds inside and outside the mask, and the logarithm of its area."""
    z = log_odds.clamp(*LOG_ODDS)
    means = [(side * z).sum() / side.sum().clamp_min(1e-6) for side in (inside, outside)]
    return torch.stack([*means, (inside.mean() + 1e-4).log()]) / _FACT_SCALE


def directions(
    places: Float[Tensor, "patch space"], share: Float[Tensor, "patch"], count: int
) -> tuple[Float[Tensor, "direction space"], Float[Tensor, "direction"]]:
    """A few directions that stand for many, and what share each has: k-means on the sphere, the same every time."""
    some = (share > _LEAST_SHARE * share.max()).nonzero().flatten()
    places, share = places[some], share[some]
    total = share.sum().clamp_min(1e-6)
    if len(places) <= count:
        missing = count - len(places)
        return F.pad(places, (0, 0, 0, missing)), F.pad(share / total, (0, missing))
    # Starts spread from the most to the least typical patch.
    order = (places @ (share @ places)).argsort()
    found = places[order[torch.linspace(0, len(places) - 1, count).round().long().to(order.device)]]
    for _ in range(_ROUNDS):
        nearest = (places @ found.T).argmax(dim=1)
        weight = torch.zeros_like(found[:, 0]).index_add(0, nearest, share)
        moved = F.normalize(torch.zeros_like(found).index_add(0, nearest, share[:, None] * places), dim=1)
        found = torch.where(weight[:, None] > 0, moved, found)
    return found, weight / total


def resemblance(
    weights: Mapping[str, Tensor],
    features: Float[Tensor, "patch feature"],
    memories: Mapping[str, Tensor],
) -> Float[Tensor, "category 2 patch"]:
    """How much more each patch is like a category's examples inside their masks than outside.

    Args:
        weights: Of the mask decoder.
        features: Of the photo's patches.
        memories: What `remember` kept, stacked over categories.

    Returns:
        Difference of the cosines with the mean directions, and logarithm of the ratio of the two densities.
    """
    places = place(weights, features)
    sharpness = weights["example.sharpness"].exp()
    parts = []
    for start in range(0, len(memories[FACTS]), _CLASSES_PER_PASS):
        some = {name: tensor[start : start + _CLASSES_PER_PASS].to(places) for name, tensor in memories.items()}
        (mean_in, density_in), (mean_out, density_out) = (
            _likeness(places, some[name], some[share], sharpness)
            for name, share in ((INSIDE, INSIDE_SHARE), (OUTSIDE, OUTSIDE_SHARE))
        )
        parts.append(torch.stack([mean_in - mean_out, (density_in - density_out) / _DENSITY_SCALE], dim=1))
    return torch.cat(parts)


def _likeness(
    places: Float[Tensor, "patch space"],
    kept: Float[Tensor, "category direction space"],
    share: Float[Tensor, "category direction"],
    sharpness: Float[Tensor, ""],
) -> tuple[Float[Tensor, "category patch"], Float[Tensor, "category patch"]]:
    """Cosine with the mean direction, and the logarithm of the density (von Mises-Fisher kernels) at each patch."""
    mean = F.normalize((share[..., None] * kept).sum(dim=1), dim=1)
    weight = share.clamp_min(1e-9).log()[..., None]
    density = torch.logsumexp(sharpness * (kept @ places.T) + weight, dim=1)
    return mean @ places.T, density
