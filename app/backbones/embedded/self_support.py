"""Self-support: patches like those in which a class is sure belong to the class too.

The words' map finds a class where it is typical and misses the rest of it. The mean of the patches where it is sure,
the class's prototype in this very photo, finds that rest: self-support matching (Fan et al. 2022,
https://arxiv.org/abs/2207.11549). Here the patches are compared in a space that was trained for it, and how likely a
class is to be in the photo at all is read off its map by a small network, so that absent names among eighty asked for
do not spread. It is the first half of the mask decoder.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from app.method.scores import normalise

# Patches weigh by this power of their class's probability: only the sure ones make the prototype.
_SHARPNESS = 3
# Facts of a class that its presence is read off are divided by these to be near one.
_FACT_SCALES = (4.0, 4.0, 2.0, 1.0)
_LEAST = 1e-9
# Beyond what was ever measured, more names make no class less likely.
_MOST_COMPETING = 80


def logits(
    weights: Mapping[str, Tensor],
    scores: Float[Tensor, "class patch"],
    features: Float[Tensor, "patch feature"],
) -> Float[Tensor, "class patch"]:
    """Logits of each class by its words and by likeness to its own sure patches.

    Args:
        weights: `projection.weight` [space, feature] and `projection.bias` of the space in which patches are compared;
            `likeness` and `words`, by which likeness and the words' log-probability count; `presence.0` and
            `presence.1`, the layers that say how likely a class is there; `background`, the same of the background.
        scores: Of the words, the background first.
        features: Of the patches, as `Backbone.patch_features` gives them.
    """
    probability = normalise(scores)
    sure = sure_places(probability)
    place = F.linear(features.float(), weights["projection.weight"], weights["projection.bias"])
    likeness = likeness_to(sure, place)
    own = (sure * likeness).sum(dim=1)
    presence = _presence(weights, probability, own)
    log_probability = probability.clamp_min(_LEAST).log()
    return weights["words"] * log_probability + weights["likeness"] * likeness + presence[:, None]


def sure_places(probability: Float[Tensor, "class place"]) -> Float[Tensor, "class place"]:
    """Weight of each place in a class's prototype; sum 1, or less if the class is nowhere."""
    sure = probability**_SHARPNESS
    return sure / sure.sum(dim=1, keepdim=True).clamp_min(_LEAST)


def likeness_to(
    sure: Float[Tensor, "class place"], features: Float[Tensor, "place space"]
) -> Float[Tensor, "class place"]:
    """Cosine of each place with the class's prototype, the mean of the places where it is sure."""
    unit = F.normalize(features, dim=1)
    return F.normalize(sure @ unit, dim=1) @ unit.T


def _presence(
    weights: Mapping[str, Tensor], probability: Float[Tensor, "class patch"], own: Float[Tensor, "class"]
) -> Float[Tensor, "class"]:
    """Presence logit per class, from its area, its best probability, the number of classes, and its self-likeness."""
    facts = torch.stack(
        [
            probability.mean(dim=1).clamp_min(_LEAST).log(),
            probability.amax(dim=1).clamp_min(_LEAST).log(),
            torch.full_like(own, math.log(min(max(1, len(own) - 1), _MOST_COMPETING))),
            own,
        ],
        dim=1,
    ) / torch.tensor(_FACT_SCALES).to(own)
    hidden = F.gelu(F.linear(facts, weights["presence.0.weight"], weights["presence.0.bias"]))
    presence = F.linear(hidden, weights["presence.1.weight"], weights["presence.1.bias"])[:, 0]
    return torch.cat([weights["background"].reshape(1), presence[1:]])
