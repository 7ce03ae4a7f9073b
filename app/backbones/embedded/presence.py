"""Presence of a category in a photo for the embedded model: words, and likeness to the examples against a bank.

The bank is a few hundred photos, each as a few directions in the mask decoder's space, made by `training.presence`. How
like a category's examples the most alike of them are says how much likeness means: a photo must stand out from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from app.method.parameters import ExampleMemory
from app.method.presence import BEST_SHARES, LogisticModel, best_means, word_facts

from .example_memory import place

# Facts of a taught category, in order: those of its words, then these.
EXAMPLE_FACTS = (
    *(f"stands out {share}" for share in BEST_SHARES),
    *(f"ratio {share}" for share in BEST_SHARES),
    "words inside the example",
    "words outside the example",
    "example area",
)

# The spread of the bank's photos above their median is measured here: a normal distribution's deviation.
_UPPER_QUANTILE = 0.84
# A smaller spread is raised to this, so that presence stays finite.
_MIN_SPREAD = 0.1
# Categories computed at once: bounds [category, direction, place of the bank] to some tens of megabytes.
_CATEGORIES_PER_PASS = 64


@dataclass(frozen=True)
class Bank:
    """Photos of many things, as directions of unit length in the mask decoder's space.

    Attributes:
        directions: Of each photo.
        density: Logarithm of the density of all photos' patches at each of them.
        centroids: Directions that stand for the patches of all photos.
        share: Share of the patches that each centroid stands for.
    """

    directions: Float[Tensor, "photo direction space"]
    density: Float[Tensor, "photo direction"]
    centroids: Float[Tensor, "centroid space"]
    share: Float[Tensor, "centroid"]


class Presence:
    """See `app.method.presence.PresenceModel`.

    Args:
        weights: Of the mask decoder.
        bank: Photos to stand out from.
        named: Model of `WORD_FACTS`.
        taught: Model of `WORD_FACTS` and `EXAMPLE_FACTS`.
    """

    def __init__(self, weights: Mapping[str, Tensor], bank: Bank, named: LogisticModel, taught: LogisticModel) -> None:
        self._weights, self._bank, self._named, self._taught = weights, bank, named, taught

    @staticmethod
    def load(file: Path, weights: Mapping[str, Tensor], *, revision: str) -> "Presence | None":
        """Read a file of `training.presence`; None if it was made with other weights than this revision's."""
        with safe_open(file, "pt") as stored:
            if stored.metadata()["revision"] != revision:
                return None
            device = weights["example.bias"].device
            tensors = {name: stored.get_tensor(name).float().to(device) for name in stored.keys()}  # noqa: SIM118
        bank, named, taught = (
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for prefix in ("bank.", "named.", "taught.")
        )
        return Presence(weights, Bank(**bank), LogisticModel(**named), LogisticModel(**taught))

    def __call__(
        self,
        scores: Float[Tensor, "class patch"],
        match_score: Float[Tensor, "category"],
        patch_features: Float[Tensor, "patch feature"],
        memories: Sequence[ExampleMemory | None],
    ) -> Float[Tensor, "category"]:
        """See `app.method.presence.PresenceModel`."""
        facts = word_facts(scores, match_score)
        presence = self._named(facts)
        rows = [row for row, memory in enumerate(memories) if memory]
        if rows:
            stacked = ExampleMemory.stack([memory for memory in memories if memory]).map(lambda t: t.to(facts))
            places = place(self._weights, patch_features)
            examples = example_facts(self._bank, places, stacked, self._weights["example.sharpness"].exp())
            presence[rows] = self._taught(torch.cat([facts[rows], examples], dim=1))
        return presence


def density(
    places: Float[Tensor, "place space"],
    directions: Float[Tensor, "*category direction space"],
    share: Float[Tensor, "*category direction"],
    sharpness: Float[Tensor, ""],
) -> Float[Tensor, "*category place"]:
    """Logarithm of the density at each place of von Mises-Fisher kernels around some directions."""
    # An imported adapter may hold anything finite: the bounds keep overflow, and a presence that is no number, out.
    cosines = (directions @ places.T).clamp_(-1, 1)
    return (share.clamp_min(1e-9)[..., None, :] @ cosines.mul_(sharpness).exp_())[..., 0, :].log()


def example_facts(
    bank: Bank, places: Float[Tensor, "patch space"], memories: ExampleMemory, sharpness: Float[Tensor, ""]
) -> Float[Tensor, "category fact"]:
    """`EXAMPLE_FACTS` of each taught category.

    The ratio of a place is the logarithm of the density of the examples' inside over that of all photos or, if it is
    larger, of the photos that are known to lack the category.

    Args:
        bank: Photos to stand out from.
        places: Of the photo's patches in the mask decoder's space.
        memories: Stacked over categories.
        sharpness: Of the kernels.
    """
    everywhere = density(places, bank.centroids, bank.share, sharpness)
    of_bank, density_of_bank = bank.directions.flatten(0, 1), bank.density.flatten()
    parts = []
    for start in range(0, len(memories.facts), _CATEGORIES_PER_PASS):
        some = _part(memories, slice(start, start + _CATEGORIES_PER_PASS))
        elsewhere = density(places, some.absent, some.absent_share, sharpness).maximum(everywhere)
        ratio = best_means(density(places, some.inside, some.inside_share, sharpness) - elsewhere)
        likeness = density(of_bank, some.inside, some.inside_share, sharpness) - density_of_bank
        best = likeness.view(-1, *bank.density.shape).amax(dim=2)
        median, upper = best.quantile(torch.tensor([0.5, _UPPER_QUANTILE]).to(ratio), dim=1)[..., None]
        stands_out = (ratio - median) / (upper - median).clamp_min(_MIN_SPREAD)
        parts.append(torch.cat([stands_out, ratio, some.facts], dim=1))
    return torch.cat(parts)


def _part(memories: ExampleMemory, categories: slice) -> ExampleMemory:
    return memories.map(lambda tensor: tensor[categories])
