"""The whole method on one screen: a photo and the categories to look for, to a probability per class and pixel.

`segment` names the steps in order and each step is a file: `frame` (photo to input and back), the backbone (image
tokens, attention), `prompts`, `class_map`, `ensemble`, `mask_decoder`, `crf`. `tuning` makes the adapters,
`infoscore` chooses the layers, `masks` gives the result its outside form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .backbone import Backbone
from .class_map import upsample
from .crf import THREE_ROUNDS, CrfParameters, conv_crf
from .ensemble import layer_weights, weighted_scores
from .evidence import Query, prompt_evidence
from .frame import imagenet_normalise, to_photo
from .mask_decoder import finest_scores
from .prompts import BACKGROUND_WORDS, free_background


@dataclass(frozen=True)
class ClassMap:
    """Result of the network for one photo.

    Attributes:
        classes: Numbers of the classes that are in `probabilities`: 0 is the background, 1 the first query.
        probabilities: Per class and input pixel; sum 1 over classes, but for what the classes left out have.
        match_score: Per query the best image-text score of its prompts, in [0, 1].
        layers: The layers that were read.
    """

    classes: tuple[int, ...]
    probabilities: Float[Tensor, "class size size"]
    match_score: Float[Tensor, "category"]
    layers: tuple[int, ...]


def segment(
    backbone: Backbone,
    photo: UInt8[np.ndarray, "height width 3"],
    queries: Sequence[Query],
    *,
    layers: Sequence[int] | None = None,
    background: Sequence[str] = BACKGROUND_WORDS,
    crf: CrfParameters | None = None,
) -> Float[Tensor, "class height width"]:
    """Segment a photo into the background and the categories asked for.

    Args:
        backbone: A loaded model.
        photo: RGB, 0 … 255.
        queries: The categories, taught ones and merely named ones alike.
        layers: Layers read for categories without an adapter; the backbone's default if None.
        background: Words for "none of them"; those that name a category in play are left out.
        crf: Parameters of the refinement; None leaves it out.

    Returns:
        Probabilities at the photo's own size, `[1 + category, height, width]`.
    """
    # 1. Photo to network input.
    rgb, frame = backbone.preprocess(photo)
    # 2. Image tokens, once for all prompts.
    image_tokens = encode(backbone, rgb)
    # 3. Attention of every prompt, to a map per class.
    found = class_map(backbone, image_tokens, queries, layers=layers, background=background)
    # 4. Edges.
    probabilities = refine(found.probabilities, rgb, crf) if crf else found.probabilities
    # 5. Back to the photo.
    return to_photo(probabilities, frame)


@torch.no_grad()
def encode(backbone: Backbone, rgb: Float[Tensor, "3 size size"]) -> Float[Tensor, "image_token width"]:
    """Image tokens of one input."""
    return backbone.encode_image(rgb[None])[0]


@torch.no_grad()
def class_map(
    backbone: Backbone,
    image_tokens: Float[Tensor, "image_token width"],
    queries: Sequence[Query],
    *,
    layers: Sequence[int] | None = None,
    background: Sequence[str] = BACKGROUND_WORDS,
    least: float = 0.0,
    second_look: bool = True,
) -> ClassMap:
    """The classes' probabilities on the network's input, before refinement (METHOD steps 1 to 6).

    Args:
        least: A category that has less than this share of the best class's score at every patch is left out, since it
            is not in the photo: of a thousand categories few are, and only those cost upsampling and refinement. Below
            1/4 no pixel's best class changes: interpolation is a mean of four patches.
        second_look: Whether the mask decoder looks at the photo again, if the backbone has one.
    """
    words = [word for query in queries for word in query.words]
    groups = [Query(free_background(background, words)), *queries]
    weights = layer_weights([query.adapter for query in groups], layers or backbone.default_layers)
    evidence = prompt_evidence(backbone, image_tokens, groups, weights.layers)
    adapters = [group.adapter.tensors if group.adapter else None for group in groups]
    scores, grid_hw, corners = finest_scores(
        backbone, image_tokens, weighted_scores(evidence, weights), adapters, second_look=second_look
    )
    kept = (scores >= least * scores.amax(dim=0)).any(dim=1)
    kept[0] = True
    classes = kept.nonzero().flatten()
    both = torch.cat([scores[classes], scores.sum(dim=0, keepdim=True)])
    *_, total = maps = upsample(both, grid_hw, (backbone.input_size,) * 2, corners=corners)
    probabilities = maps[:-1] / total.clamp_min(torch.finfo(maps.dtype).tiny)
    # The best of each category's prompts; the background, first, has no score of its own.
    best = torch.stack([evidence.match_score[start:stop].amax() for start, stop in evidence.spans])
    return ClassMap(tuple(classes.tolist()), probabilities, match_score=best[1:], layers=weights.layers)


def crf_of(backbone: Backbone, *, second_look: bool = True) -> CrfParameters:
    """The refinement that suits a backbone's masks: those of a mask decoder have edges already.

    Args:
        second_look: As of `class_map`.
    """
    return THREE_ROUNDS if second_look and backbone.mask_decoder else CrfParameters()


def refine(
    probabilities: Float[Tensor, "class size size"], rgb: Float[Tensor, "3 size size"], crf: CrfParameters
) -> Float[Tensor, "class size size"]:
    """ConvCRF on the network's input, so that its cost doesn't grow with the photo."""
    return conv_crf(probabilities, imagenet_normalise(rgb).to(probabilities.device), crf)
