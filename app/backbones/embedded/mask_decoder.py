"""The embedded model's mask decoder: class scores on the patch grid to masks at twice its resolution.

One small convolutional network runs class by class with the same weights, so it works for categories that it never saw.
Per class it reads the words' scores, self-support (`self_support`), the likeness to the examples (`example_memory`),
the competing classes, and the photo's fine features. It was trained on photos with exact masks
(docs/embedded-model.md).

`MaskDecoder` holds the weights; the functions below it take them as an argument, since `training` learns them.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from app.method.backbone import EncodedImage
from app.method.parameters import ExampleMemory
from app.method.scores import ScoreMap, normalise

from . import self_support
from .example_memory import LOG_ODDS_RANGE, empty_memory, remember, resemblance

# Prefix of these tensors in the model's weights.
PREFIX = "mask_decoder."

# Share of the patches in which the words or an example must put a class first, or it counts as absent. With it a name
# that is not in the photo marks something in a third of the photos, without it in nearly all (training/NOTEBOOK.md).
_MIN_AREA = 0.005
# Lower bounds of logarithms of probabilities, and of the words' scores.
_MIN_LOG, _MIN_SCORE = -12.0, 1e-5
# Inputs are divided by this, so that they are near one.
_SCALE = 4.0
# Spaces in which patches are compared, and the layers that lead into them.
_PATCH_SPACES = {"example": "example", "support": "projection"}
# Patches whose mean likeness tells how sure an example's category is of itself at best.
_BEST_PATCHES = 12


class MaskDecoder:
    """See `app.method.backbone.MaskDecoder`.

    Args:
        weights: Tensors by name, without `PREFIX`; float32.
        grid_hw: Rows and columns of patches.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, grid_hw: tuple[int, int]) -> None:
        self.weights, self.grid_hw = weights, grid_hw

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    def decode_masks(
        self,
        scores: Float[Tensor, "class patch"],
        patch_features: Float[Tensor, "patch feature"],
        image: EncodedImage,
        memories: Sequence[ExampleMemory | None],
    ) -> ScoreMap:
        """See `app.method.backbone.MaskDecoder`.

        Raises:
            ValueError: If the image was encoded without fine features.
        """
        if image.fine_features is None:
            raise ValueError("expected an image encoded with fine features")
        taught = [row for row, memory in enumerate(memories) if memory]
        stacked = ExampleMemory.stack([memory for memory in memories if memory]) if taught else None
        maps = decode(
            self.weights,
            scores,
            patch_features,
            image.fine_features,
            grid_hw=self.grid_hw,
            taught=taught,
            memories=stacked,
        )
        # The decoder was trained with every place in the middle of its cell.
        return ScoreMap(maps.flatten(1), (maps.shape[1], maps.shape[2]), align_corners=False)

    def comparison_spaces(
        self, patch_features: Float[Tensor, "patch feature"], image: EncodedImage
    ) -> dict[str, Float[Tensor, "_feature _y _x"]]:
        """See `app.method.backbone.MaskDecoder`.

        Raises:
            ValueError: If the image was encoded without fine features.
        """
        if image.fine_features is None:
            raise ValueError("expected an image encoded with fine features")
        features = patch_features.float()
        patches = {name: _linear(self.weights, layer, features) for name, layer in _PATCH_SPACES.items()}
        joined = image_features(self.weights, features, image.fine_features, grid_hw=self.grid_hw)
        return {name: space.T.reshape(-1, *self.grid_hw) for name, space in patches.items()} | {"image": joined[0]}

    def remember(
        self,
        features: Sequence[Float[Tensor, "patch feature"]],
        inside: Sequence[Float[Tensor, "patch"]],
        outside: Sequence[Float[Tensor, "patch"]],
        log_odds: Sequence[Float[Tensor, "patch"]],
    ) -> ExampleMemory:
        """See `app.method.backbone.MaskDecoder`."""
        return remember(self.weights, features, inside, outside, log_odds)

    def empty_memory(self) -> ExampleMemory:
        """See `app.method.backbone.MaskDecoder`."""
        return empty_memory(self.weights)


def decode(
    weights: Mapping[str, Tensor],
    scores: Float[Tensor, "class patch"],
    features: Float[Tensor, "patch feature"],
    edges: Float[Tensor, "channel y x"],
    *,
    grid_hw: tuple[int, int],
    taught: Sequence[int] = (),
    memories: ExampleMemory | None = None,
) -> Float[Tensor, "class y x"]:
    """Class probabilities on the grid of the fine features; sum 1 over classes.

    A class that neither words nor examples put first in more than a handful of patches counts as absent and is not
    decoded: in training most classes asked for were present, so the network would make something of every name. A
    class that loses all its places to others is removed too, and the rest is decoded again without it.

    Args:
        weights: Of the network (see `logits` and `training.mask_decoder`).
        scores: By the words, the background first.
        features: By `Backbone.patch_features`.
        edges: The encoded image's fine features.
        grid_hw: Rows and columns of patches.
        taught: Rows of `scores` that have examples.
        memories: Their memories, stacked; None without any.
    """
    image = image_features(weights, features, edges, grid_hw=grid_hw)
    return _decoded(weights, scores, features, image, grid_hw=grid_hw, taught=taught, memories=memories)


def _decoded(
    weights: Mapping[str, Tensor],
    scores: Float[Tensor, "class patch"],
    features: Float[Tensor, "patch feature"],
    image: Float[Tensor, "1 width y x"],
    *,
    grid_hw: tuple[int, int],
    taught: Sequence[int],
    memories: ExampleMemory | None,
) -> Float[Tensor, "class y x"]:
    found, seen = fuse_appearance(weights, scores, features, taught=taught, memories=memories)
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
        memories=memories.map(lambda tensor: tensor[kept]) if memories and kept else None,
    )
    return maps


def fuse_appearance(
    weights: Mapping[str, Tensor],
    scores: Float[Tensor, "class patch"],
    features: Float[Tensor, "patch feature"],
    *,
    taught: Sequence[int] = (),
    memories: ExampleMemory | None = None,
) -> tuple[Float[Tensor, "class patch"], Float[Tensor, "class 3 patch"]]:
    """Logits on the patch grid by words, self-support and examples; and the examples' own evidence, 0 without one."""
    found = self_support.logits(weights, scores, features)
    seen = found.new_zeros(len(scores), 3, scores.shape[1])
    if memories is None:
        return found, seen
    rows = torch.tensor(taught, device=found.device)
    like = resemblance(weights, features, memories)
    p = normalise(scores)[rows].clamp(1e-9, 1 - _MIN_SCORE)
    best = like[:, 1].topk(min(_BEST_PATCHES, like.shape[2]), dim=1).values.mean(dim=1)
    whole = torch.cat([torch.stack([best, like[:, 1].mean(dim=1)], dim=1), memories.facts.to(like)], dim=1)
    facts = torch.cat(
        [
            (p.logit().clamp(*LOG_ODDS_RANGE) / _SCALE)[:, None],
            (found.log_softmax(dim=0)[rows].clamp_min(_MIN_LOG) / _SCALE)[:, None],
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
    """Logits on the grid of the fine features.

    Args:
        weights: `place`, the space in which places are compared; `class`, `layers.0`, … (convolutions, each of twice
            the dilation of the one before) and `mask`.
        scores: By the words.
        found: Logits by `fuse_appearance`.
        seen: Evidence of the examples, by `fuse_appearance`.
        image: By `image_features`.
        grid_hw: Rows and columns of patches.
    """
    # 1. All that is known on the patch grid, at twice the resolution.
    coarse = torch.stack(
        [found.log_softmax(dim=0).clamp_min(_MIN_LOG), normalise(scores).clamp_min(_MIN_SCORE).log()], dim=1
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
    """The photo's features on the grid of the fine features, the same for every class."""
    tokens = _finer(_linear(weights, "tokens", features.float()).T[None], grid_hw, edges)
    standardised = (edges.float()[None] - weights["edges.mean"]) / weights["edges.deviation"]
    joined = F.gelu(tokens + _convolve(weights, "edges", standardised))
    return F.gelu(_convolve(weights, "image", joined)) + tokens


def _first_somewhere(scores: Float[Tensor, "class place"]) -> Bool[Tensor, "class"]:
    return torch.bincount(scores.argmax(dim=0), minlength=len(scores)) >= _MIN_AREA * scores.shape[1]


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
