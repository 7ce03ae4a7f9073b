"""Memory of a category's examples for the mask decoder: appearance of their patches, and error of the words.

Patches are compared in a space that was trained for it. Examples are kept as a few directions in that space, inside
their masks, outside, and of photos without the category, with the share of the patches that each stands for: twelve
kilobytes, however many examples.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from app.method.parameters import ExampleMemory

# Directions kept per side, and k-means iterations that find them.
_DIRECTIONS, _ITERATIONS = 32, 6
# Patches of less than this share of the weightiest one are left out.
_MIN_SHARE = 1e-4
# Log-odds are clamped to this range, in which the network was trained.
LOG_ODDS_RANGE = (-10.0, 8.0)
# Facts and likeness are divided by these, so that inputs of the network are near one.
_FACT_SCALE, _DENSITY_SCALE = 4.0, 8.0
# Classes compared at once: bounds [class, direction, patch] to some tens of megabytes.
_CLASSES_PER_PASS = 128


def place(weights: Mapping[str, Tensor], features: Float[Tensor, "patch feature"]) -> Float[Tensor, "patch space"]:
    """Patch features as directions of unit length in the decoder's space, where patches of like things are near."""
    return F.normalize(F.linear(features.float(), weights["example.weight"], weights["example.bias"]), dim=1)


def remember(
    weights: Mapping[str, Tensor],
    features: Sequence[Float[Tensor, "patch feature"]],
    inside: Sequence[Float[Tensor, "patch"]],
    outside: Sequence[Float[Tensor, "patch"]],
    log_odds: Sequence[Float[Tensor, "patch"]],
) -> ExampleMemory:
    """Memory of a category's examples, one entry of each list per example.

    Args:
        weights: Of the mask decoder.
        features: Of the photos' patches.
        inside: Share of each patch that the category covers; 0 everywhere in a photo without it.
        outside: Share of each patch that it does not cover.
        log_odds: Of the category against everything else, without its memory.

    Raises:
        ValueError: If no photo shows the category.
    """
    shown = [bool(each.any()) for each in inside]
    if not any(shown):
        raise ValueError("expected an example that shows the category, got none")
    places = torch.cat([place(weights, photo) for photo in features])
    absent = [side * (not there) for side, there in zip(outside, shown, strict=True)]
    inner, outer, nowhere = (directions(places, _weights(side), _DIRECTIONS) for side in (inside, outside, absent))
    examples = zip(shown, log_odds, inside, outside, strict=True)
    facts = [example_facts(*each) for there, *each in examples if there]
    return ExampleMemory(*inner, *outer, *nowhere, torch.stack(facts).mean(dim=0))


def empty_memory(weights: Mapping[str, Tensor]) -> ExampleMemory:
    """Memory of no example; every other has its shapes."""
    kept, share = torch.zeros(_DIRECTIONS, len(weights["example.bias"])), torch.zeros(_DIRECTIONS)
    return ExampleMemory(kept, share, kept, share, kept, share, torch.zeros(3))


def _weights(side: Sequence[Float[Tensor, "patch"]]) -> Float[Tensor, "patches"]:
    """Weight of every patch of several photos: each photo counts the same."""
    return torch.cat([each / each.sum().clamp_min(1e-6) for each in side]) / len(side)


def example_facts(
    log_odds: Float[Tensor, "patch"], inside: Float[Tensor, "patch"], outside: Float[Tensor, "patch"]
) -> Float[Tensor, "3"]:
    """Mean log-odds inside and outside the mask, and the logarithm of its area."""
    z = log_odds.clamp(*LOG_ODDS_RANGE)
    means = [(side * z).sum() / side.sum().clamp_min(1e-6) for side in (inside, outside)]
    return torch.stack([*means, (inside.mean() + 1e-4).log()]) / _FACT_SCALE


def directions(
    places: Float[Tensor, "patch space"], share: Float[Tensor, "patch"], count: int
) -> tuple[Float[Tensor, "direction space"], Float[Tensor, "direction"]]:
    """A few directions that stand for many, and the share of each: k-means on the sphere, without randomness."""
    some = (share > _MIN_SHARE * share.max()).nonzero().flatten()
    places, share = places[some], share[some]
    total = share.sum().clamp_min(1e-6)
    if len(places) <= count:
        missing = count - len(places)
        return F.pad(places, (0, 0, 0, missing)), F.pad(share / total, (0, missing))
    # Starts spread from the least to the most typical patch.
    order = (places @ (share @ places)).argsort()
    found = places[order[torch.linspace(0, len(places) - 1, count).round().long().to(order.device)]]
    for _ in range(_ITERATIONS):
        nearest = (places @ found.T).argmax(dim=1)
        weight = torch.zeros_like(found[:, 0]).index_add(0, nearest, share)
        moved = F.normalize(torch.zeros_like(found).index_add(0, nearest, share[:, None] * places), dim=1)
        found = torch.where(weight[:, None] > 0, moved, found)
    return found, weight / total


def resemblance(
    weights: Mapping[str, Tensor],
    features: Float[Tensor, "patch feature"],
    memories: ExampleMemory,
) -> Float[Tensor, "category 2 patch"]:
    """Likeness of each patch to a category's examples inside their masks, less the likeness to those outside.

    Args:
        weights: Of the mask decoder.
        features: Of the photo's patches.
        memories: Stacked over categories.

    Returns:
        Difference of the cosines with the mean directions, and logarithm of the ratio of the two densities.
    """
    places = place(weights, features)
    sharpness = weights["example.sharpness"].exp()
    parts = []
    for start in range(0, len(memories.facts), _CLASSES_PER_PASS):
        some = _part(memories, slice(start, start + _CLASSES_PER_PASS), places)
        mean_in, density_in = _likeness(places, some.inside, some.inside_share, sharpness)
        mean_out, density_out = _likeness(places, some.outside, some.outside_share, sharpness)
        parts.append(torch.stack([mean_in - mean_out, (density_in - density_out) / _DENSITY_SCALE], dim=1))
    return torch.cat(parts)


def _part(memories: ExampleMemory, categories: slice, like: Tensor) -> ExampleMemory:
    return memories.map(lambda tensor: tensor[categories].to(like))


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
