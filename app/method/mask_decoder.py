"""From class scores on the patch grid to masks at twice its resolution: a small network that knows no class by name.

It reads what every class has in common: how sure the words are, what looks like the parts they are sure of
(`self_support`), what looks like the examples (`example_memory`), who competes, and where the photo has edges. One set
of weights serves every class, so it works for categories that it never saw; it was trained on photos with exact masks
(docs/embedded-model.md).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from . import self_support
from .backbone import Backbone
from .class_map import normalise
from .example_memory import FACTS, LOG_ODDS, memories_of, resemblance

# What a backbone's weights call these tensors.
PREFIX = "mask_decoder."

# Share of the patches in which the words or an example must put a class first. With it a name that isn't there marks
# something in a third of the photos, without it in nearly all (docs/quality.md).
_LEAST_AREA = 0.005
# Logarithms of probabilities end here, and those of the words' scores.
_LEAST_LOG, _LEAST_SCORE = -12.0, 1e-5
# Inputs are divided by this to be near one.
_SCALE = 4.0
# Patches that tell how sure an example's category is of itself at best.
_BEST_PATCHES = 12


def finest_scores(
    backbone: Backbone,
    image_tokens: Float[Tensor, "image_token width"],
    scores: Float[Tensor, "class patch"],
    adapters: Sequence[Mapping[str, Tensor] | None],
    *,
    second_look: bool = True,
) -> tuple[Float[Tensor, "class place"], tuple[int, int], bool]:
    """Class scores on the finest grid there is: the mask decoder's if the backbone has one, or the patches'.

    Args:
        adapters: As of `look_again`.
        second_look: Whether the mask decoder is asked.

    Returns:
        Scores, rows and columns of their grid, and `corners` of `class_map.upsample`: the decoder was trained with
        every place where it lies.
    """
    if not second_look or backbone.mask_decoder is None:
        return scores, backbone.patch_grid_hw, True
    maps = look_again(backbone, image_tokens, scores, adapters)
    return maps.flatten(1), (maps.shape[1], maps.shape[2]), False


def look_again(
    backbone: Backbone,
    image_tokens: Float[Tensor, "image_token width"],
    scores: Float[Tensor, "class patch"],
    adapters: Sequence[Mapping[str, Tensor] | None],
) -> Float[Tensor, "class y x"]:
    """Class probabilities on a finer grid, by a backbone's own mask decoder.

    Args:
        adapters: Per class the tensors of its adapter; what its examples look like may be among them.

    Raises:
        ValueError: If the backbone has none.
    """
    if backbone.mask_decoder is None:
        raise ValueError(f"expected a backbone with a mask decoder, got {backbone.name}")
    taught, memories = memories_of(adapters)
    return decode(
        backbone.mask_decoder,
        scores,
        backbone.patch_features(image_tokens),
        backbone.edge_features(image_tokens),
        grid_hw=backbone.patch_grid_hw,
        taught=taught,
        memories=memories,
    )


def decode(
    weights: Mapping[str, Tensor],
    scores: Float[Tensor, "class patch"],
    features: Float[Tensor, "patch feature"],
    edges: Float[Tensor, "channel y x"],
    *,
    grid_hw: tuple[int, int],
    taught: Sequence[int] = (),
    memories: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "class y x"]:
    """Class probabilities on the edges' grid; sum 1 over classes.

    A class that neither words nor examples put first in more than a handful of patches is absent: in training whatever
    is asked for is there or has something true beside it, so that something would be made of every name. Of many names
    some lose all they had to others; then the rest is decoded as if nobody had asked for them.

    Args:
        weights: Of the network (see `logits` and `training.mask_decoder`).
        scores: Of the words, the background first.
        features: Of the patches, as `Backbone.patch_features` gives them.
        edges: As `Backbone.edge_features` gives them.
        grid_hw: Rows and columns of patches.
        taught: Rows of `scores` that have examples.
        memories: What `example_memory.remember` kept of them, stacked.
    """
    image = image_features(weights, features, edges, grid_hw=grid_hw)
    return _decoded(weights, scores, features, image, grid_hw=grid_hw, taught=taught, memories=memories or {})


def _decoded(
    weights: Mapping[str, Tensor],
    scores: Float[Tensor, "class patch"],
    features: Float[Tensor, "patch feature"],
    image: Float[Tensor, "1 width y x"],
    *,
    grid_hw: tuple[int, int],
    taught: Sequence[int],
    memories: Mapping[str, Tensor],
) -> Float[Tensor, "class y x"]:
    found, seen = by_looks(weights, scores, features, taught=taught, memories=memories)
    there = _first_somewhere(scores)
    there[list(taught)] |= _first_somewhere(found)[list(taught)]
    there[0] = True
    rows = there.nonzero().flatten()
    fine = logits(weights, scores[rows], found[rows], seen[rows], image, grid_hw=grid_hw).softmax(dim=0)
    stays = _first_somewhere(fine.flatten(1))
    stays[0] = True
    maps = fine.new_zeros(len(scores), *fine.shape[1:])
    if stays.all():
        maps[rows] = fine
        return maps
    left = rows[stays]
    place_of = {row: place for place, row in enumerate(left.tolist())}
    kept = [number for number, row in enumerate(taught) if row in place_of]
    maps[left] = _decoded(
        weights,
        scores[left],
        features,
        image,
        grid_hw=grid_hw,
        taught=[place_of[taught[number]] for number in kept],
        memories={name: tensor[kept] for name, tensor in memories.items()},
    )
    return maps


def by_looks(
    weights: Mapping[str, Tensor],
    scores: Float[Tensor, "class patch"],
    features: Float[Tensor, "patch feature"],
    *,
    taught: Sequence[int] = (),
    memories: Mapping[str, Tensor] | None = None,
) -> tuple[Float[Tensor, "class patch"], Float[Tensor, "class 3 patch"]]:
    """Logits on the patch grid by words, looks and examples; and what the examples say of each patch, 0 without one."""
    found = self_support.logits(weights, scores, features)
    seen = found.new_zeros(len(scores), 3, scores.shape[1])
    if not taught or not memories:
        return found, seen
    rows = torch.tensor(taught, device=found.device)
    like = resemblance(weights, features, memories)
    p = normalise(scores)[rows].clamp(1e-9, 1 - _LEAST_SCORE)
    best = like[:, 1].topk(min(_BEST_PATCHES, like.shape[2]), dim=1).values.mean(dim=1)
    whole = torch.cat([torch.stack([best, like[:, 1].mean(dim=1)], dim=1), memories[FACTS].to(like)], dim=1)
    facts = torch.cat(
        [
            (p.logit().clamp(*LOG_ODDS) / _SCALE)[:, None],
            (found.log_softmax(dim=0)[rows].clamp_min(_LEAST_LOG) / _SCALE)[:, None],
            like,
            whole[:, :, None].expand(-1, -1, like.shape[2]),
        ],
        dim=1,
    ).mT
    for layer in range(2):
        facts = F.gelu(_linear(weights, f"example.{layer}", facts))
    said = _linear(weights, "example.2", facts)[..., 0]
    seen = seen.index_copy(0, rows, torch.cat([like, torch.ones_like(like[:, :1])], dim=1))
    return found.index_add(0, rows, said), seen


def logits(
    weights: Mapping[str, Tensor],
    scores: Float[Tensor, "class patch"],
    found: Float[Tensor, "class patch"],
    seen: Float[Tensor, "class 3 patch"],
    image: Float[Tensor, "1 width y x"],
    *,
    grid_hw: tuple[int, int],
) -> Float[Tensor, "class y x"]:
    """Logits on the edges' grid.

    Args:
        weights: `place`, the space in which places are compared; `class`, `layers.0`, … (convolutions, each of twice
            the dilation of the one before) and `mask`.
        scores: Of the words.
        found: Logits by looks.
        seen: What examples say.
        image: As `image_features` makes it.
    """
    # 1. All that is known on the patch grid, at twice the resolution.
    coarse = torch.stack(
        [found.log_softmax(dim=0).clamp_min(_LEAST_LOG), normalise(scores).clamp_min(_LEAST_SCORE).log()], dim=1
    )
    known = _finer(torch.cat([coarse, seen], dim=1), grid_hw, image[0])
    log_p, words, examples = known[:, 0], known[:, 1], known[:, 2:]
    # 2. Places that look like those where the class is sure.
    place = F.conv2d(image, weights["place.weight"], weights["place.bias"])[0]
    sure = self_support.sure_places(log_p.softmax(dim=0).flatten(1))
    like = self_support.likeness_to(sure, place.flatten(1).T).view_as(log_p)
    # 3. The class against the best of the others.
    first = log_p.topk(min(2, len(log_p)), dim=0).values
    lead = log_p - torch.where(log_p >= first[0], first[-1], first[0])
    background = torch.zeros_like(log_p)
    background[0] = 1
    of_class = torch.stack([log_p / _SCALE, lead.clamp(-8, 8) / _SCALE, words / _SCALE, like, background], dim=1)
    # 4. Class by class, the photo beside it.
    x = F.gelu(image + _convolve(weights, "class", torch.cat([of_class, examples], dim=1)))
    layer = 0
    while f"layers.{layer}.weight" in weights:
        x = x + F.gelu(_convolve(weights, f"layers.{layer}", x, dilation=2**layer))
        layer += 1
    return log_p + F.conv2d(x, weights["mask.weight"], weights["mask.bias"])[:, 0]


def image_features(
    weights: Mapping[str, Tensor],
    features: Float[Tensor, "patch feature"],
    edges: Float[Tensor, "channel y x"],
    *,
    grid_hw: tuple[int, int],
) -> Float[Tensor, "1 width y x"]:
    """The photo's own features on the edges' grid, the same for every class; by `tokens`, `edges` and `image`."""
    tokens = _finer(_linear(weights, "tokens", features.float()).T[None], grid_hw, edges)
    standardised = (edges.float()[None] - weights["edges.mean"]) / weights["edges.deviation"]
    joined = F.gelu(tokens + _convolve(weights, "edges", standardised))
    return F.gelu(_convolve(weights, "image", joined)) + tokens


def _first_somewhere(scores: Float[Tensor, "class place"]) -> Bool[Tensor, "class"]:
    return torch.bincount(scores.argmax(dim=0), minlength=len(scores)) >= _LEAST_AREA * scores.shape[1]


def _finer(
    maps: Float[Tensor, "one channel patch"], grid_hw: tuple[int, int], like: Float[Tensor, "channels y x"]
) -> Float[Tensor, "one channel y x"]:
    return F.interpolate(
        maps.reshape(*maps.shape[:2], *grid_hw), size=like.shape[1:], mode="bilinear", align_corners=False
    )


def _convolve(weights: Mapping[str, Tensor], name: str, x: Tensor, *, dilation: int = 1) -> Tensor:
    """A 3 × 3 convolution that keeps the size."""
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=dilation, dilation=dilation)


def _linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
