"""Presence of a category in a photo for the embedded model: words, and likeness to the examples against a bank.

A score means little by itself: it is compared with what it is in photos without the category. For a word that the
network has learned from many masks, `training.presence` has measured that. For examples there is the bank: a few
hundred photos, each as a few directions in the mask decoder's space. How like the examples the most alike of them are
says how much likeness means: a photo must stand out from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from app.method.backbone import EncodedImage
from app.method.parameters import ExampleMemory
from app.method.presence import BEST_SHARES, WORD_FACTS, LogisticModel, best_means, word_facts

from .example_memory import place

# Facts of a kind of thing by the image tower's classifier of ImageNet: its patches of highest probability, the photo.
KIND_FACTS = (*(f"kind {share}" for share in BEST_SHARES), "kind of the photo")
# Facts that are compared with their values in photos without what a known word names.
COMPARED_FACTS = (*(fact for fact in WORD_FACTS if not fact.startswith("competing")), *KIND_FACTS)
# Facts of a named category, in order. Those of its words mean more if the network has learned them from masks.
NAMED_FACTS = (*WORD_FACTS, "known word", *(f"unusual {fact}" for fact in COMPARED_FACTS))
# Facts of a taught category, in order: those of a named one, then these.
EXAMPLE_FACTS = (
    *(f"stands out {share}" for share in BEST_SHARES),
    *(f"ratio {share}" for share in BEST_SHARES),
    "words inside the example",
    "words outside the example",
    "example area",
)

# Share of what a known word alone says in the log-odds of a taught category. At none, more of VOC's animals are missed;
# at a half, it is the same (training/NOTEBOOK.md, sections 15 and 18).
_KNOWN_WORD = 1 / 3
# The spread of the bank's photos above their median is measured here: a normal distribution's deviation.
UPPER_QUANTILE = 0.84
# A smaller probability of a kind counts as this.
_LEAST_SEEN = 1e-6
_KNOWN = NAMED_FACTS.index("known word")
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


@dataclass(frozen=True)
class KnownWords:
    """Words that the network has learned from many masks, and usual facts in photos without what they name.

    The last row of the tensors stands for all other words.

    Attributes:
        row: Row of each word, in lower case.
        members: 1 for each class of ImageNet that is of a kind.
        kind: Kind of each word; any for a word that names none.
        median: Usual value of each of `COMPARED_FACTS`.
        spread: How far above that it usually goes; infinite where nothing is known, so that nothing is unusual.
    """

    row: Mapping[str, int]
    members: Float[Tensor, "kind imagenet_class"]
    kind: Int[Tensor, "word"]
    median: Float[Tensor, "word compared"]
    spread: Float[Tensor, "word compared"]

    def rows(self, categories: Sequence[Sequence[str]]) -> list[int]:
        """Row of the first known word of each category, or the last."""
        in_lower_case = (map(str.casefold, words) for words in categories)
        return [next((self.row[word] for word in words if word in self.row), len(self.row)) for words in in_lower_case]

    def unusual(
        self, rows: Sequence[int], facts: Float[Tensor, "category word_fact"], kinds: Float[Tensor, "kind kind_fact"]
    ) -> Float[Tensor, "category compared"]:
        """How unusual `COMPARED_FACTS` are for photos without the category, in spreads."""
        alone = facts[:, : len(COMPARED_FACTS) - len(KIND_FACTS)]
        compared = torch.cat([alone, kinds[self.kind[rows]].to(facts)], dim=1)
        return (compared - self.median[rows]) / self.spread[rows]


class Presence:
    """See `app.method.backbone.PresenceModel`.

    Of a known word, the log-odds of a taught category are partly those of the word alone: one unlucky example does not
    outweigh what was learned from many.

    Args:
        weights: Of the mask decoder.
        bank: Photos to stand out from.
        known: Words that the network has learned from many masks.
        named: Model of `NAMED_FACTS`.
        taught: Model of `NAMED_FACTS` and `EXAMPLE_FACTS`.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        bank: Bank,
        known: KnownWords,
        named: LogisticModel,
        taught: LogisticModel,
    ) -> None:
        self._weights, self._bank, self.known, self._named, self._taught = weights, bank, known, named, taught
        # No photo changes what the bank gives for a memory, which is nearly all there is to compute.
        self._in_bank: WeakKeyDictionary[ExampleMemory, Tensor] = WeakKeyDictionary()

    @staticmethod
    def load(file: Path, weights: Mapping[str, Tensor], *, revision: str) -> "Presence | None":
        """Read a file of `training.presence`; None if it was made with other weights than this revision's."""
        with safe_open(file, "pt") as stored:
            if stored.metadata()["revision"] != revision:
                return None
            words = stored.metadata()["known words"].splitlines()
            device = weights["example.bias"].device
            tensors = {name: stored.get_tensor(name).to(device) for name in stored.keys()}  # noqa: SIM118
        bank, known, named, taught = (
            {
                name.removeprefix(prefix): tensor if name == "known.kind" else tensor.float()
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            for prefix in ("bank.", "known.", "named.", "taught.")
        )
        rows = {word: row for row, word in enumerate(words)}
        return Presence(
            weights, Bank(**bank), KnownWords(rows, **known), LogisticModel(**named), LogisticModel(**taught)
        )

    def knows(self, words: Sequence[str]) -> bool:
        """See `app.method.backbone.PresenceModel`."""
        return any(word.casefold() in self.known.row for word in words)

    def __call__(
        self,
        scores: Float[Tensor, "class patch"],
        match_score: Float[Tensor, "category"],
        patch_features: Float[Tensor, "patch feature"],
        image: EncodedImage,
        words: Sequence[Sequence[str]],
        memories: Sequence[ExampleMemory | None],
    ) -> Float[Tensor, "category"]:
        """See `app.method.backbone.PresenceModel`."""
        assert image.kinds is not None
        facts = named_facts(scores, match_score, image.kinds, self.known, words)
        known = facts[:, _KNOWN] > 0
        named = self._named.logit(facts)
        presence = named.sigmoid()
        rows = [row for row, memory in enumerate(memories) if memory]
        if rows:
            examples = self._example_facts(patch_features, [memory for memory in memories if memory])
            taught = self._taught.logit(torch.cat([facts[rows], examples], dim=1))
            presence[rows] = torch.where(known[rows], taught.lerp(named[rows], _KNOWN_WORD), taught).sigmoid()
        return presence

    def _example_facts(
        self, patch_features: Float[Tensor, "patch feature"], memories: Sequence[ExampleMemory]
    ) -> Float[Tensor, "category fact"]:
        places, sharpness = place(self._weights, patch_features), self._weights["example.sharpness"].exp()
        new = [memory for memory in memories if memory not in self._in_bank]
        for some in _passes(new):
            likeness = likeness_in_bank(self._bank, _stacked(some, places), sharpness)
            self._in_bank.update(zip(some, likeness.unbind(), strict=True))
        everywhere = density(places, self._bank.centroids, self._bank.share, sharpness)
        parts = []
        for some in _passes(memories):
            in_bank = torch.stack([self._in_bank[memory] for memory in some])
            parts.append(example_facts(in_bank, everywhere, places, _stacked(some, places), sharpness))
        return torch.cat(parts)


def named_facts(
    scores: Float[Tensor, "class patch"],
    match_score: Float[Tensor, "category"],
    kinds: Float[Tensor, "kind kind_fact"],
    known: KnownWords,
    words: Sequence[Sequence[str]],
) -> Float[Tensor, "category fact"]:
    """`NAMED_FACTS` of each category.

    Args:
        scores: By the words, the background first.
        match_score: Image-text scores.
        kinds: By `kind_facts`.
        known: Words that the network has learned from many masks.
        words: Per category its name and synonyms.
    """
    facts, rows = word_facts(scores, match_score), known.rows(words)
    is_known = facts.new_tensor([[row < len(known.row)] for row in rows])
    return torch.cat([facts, is_known, known.unusual(rows, facts, kinds)], dim=1)


def kind_facts(
    members: Float[Tensor, "kind imagenet_class"], classes: Float[Tensor, "image_token imagenet_class"]
) -> Float[Tensor, "kind kind_fact"]:
    """`KIND_FACTS` of each kind.

    Args:
        members: 1 for each class that is of the kind.
        classes: Probabilities by the image tower's classifier, those of the whole photo first.
    """
    seen = (members @ classes.T).clamp_min(_LEAST_SEEN).log()
    return torch.cat([best_means(seen[:, 1:]), seen[:, :1]], dim=1)


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


def likeness_in_bank(bank: Bank, memories: ExampleMemory, sharpness: Float[Tensor, ""]) -> Float[Tensor, "category 2"]:
    """Likeness to each category's examples in the bank: its median over the photos, and a usual value above that.

    Args:
        bank: Photos of many things.
        memories: Stacked over categories.
        sharpness: Of the kernels.
    """
    likeness = density(bank.directions.flatten(0, 1), memories.inside, memories.inside_share, sharpness)
    best = (likeness - bank.density.flatten()).view(-1, *bank.density.shape).amax(dim=2)
    return best.quantile(torch.tensor([0.5, UPPER_QUANTILE]).to(best), dim=1).T


def example_facts(
    in_bank: Float[Tensor, "category 2"],
    everywhere: Float[Tensor, "patch"],
    places: Float[Tensor, "patch space"],
    memories: ExampleMemory,
    sharpness: Float[Tensor, ""],
) -> Float[Tensor, "category fact"]:
    """`EXAMPLE_FACTS` of each taught category.

    The ratio of a place is the logarithm of the density of the examples' inside over that of all photos or, if it is
    larger, of the photos that are known to lack the category.

    Args:
        in_bank: By `likeness_in_bank`.
        everywhere: Density of all photos at each place.
        places: Of the photo's patches in the mask decoder's space.
        memories: Stacked over categories.
        sharpness: Of the kernels.
    """
    elsewhere = everywhere
    if memories.absent_share.any():
        elsewhere = density(places, memories.absent, memories.absent_share, sharpness).maximum(everywhere)
    ratio = best_means(density(places, memories.inside, memories.inside_share, sharpness) - elsewhere)
    median, upper = in_bank[:, :1], in_bank[:, 1:]
    stands_out = (ratio - median) / (upper - median).clamp_min(_MIN_SPREAD)
    return torch.cat([stands_out, ratio, memories.facts], dim=1)


def _passes(memories: Sequence[ExampleMemory]) -> Iterator[Sequence[ExampleMemory]]:
    return (memories[start : start + _CATEGORIES_PER_PASS] for start in range(0, len(memories), _CATEGORIES_PER_PASS))


def _stacked(memories: Sequence[ExampleMemory], like: Tensor) -> ExampleMemory:
    return ExampleMemory.stack(memories).map(lambda tensor: tensor.to(like))
