"""Method `prototype`, the baseline that tuning must beat: masked-average prototypes of the frozen patch features.

A photo over 4:1 is seen whole here, and in pieces by the words beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from app.method.prediction import ClassMap
from app.method.scores import ScoreMap
from app.method.shot import Shot
from app.method.visual_prompt import mean_features

from .dataset import LabelledPhoto
from .subject import Predict, Subject

_TEMPERATURE = 0.05


def prototype(subject: Subject, supports: Mapping[int, Sequence[LabelledPhoto]]) -> Predict:
    """Prediction by cosine similarity with the prototypes of the taught classes."""
    grid, side = subject.backbone.patch_grid_hw, subject.backbone.input_size
    rows = {
        number: prototypes([subject.shot(photo, number) for photo in photos], grid)
        for number, photos in supports.items()
    }

    def predict(photo: LabelledPhoto, asked: Sequence[int]) -> ClassMap:
        taught = tuple(number for number in asked if number in rows)
        match = torch.ones(len(taught))
        if not taught:
            return ClassMap((0,), torch.ones(1, side, side), match, match, ())
        features = subject.backbone.patch_features(subject.see(photo).encoded)
        found = prototype_map(features, [rows[n] for n in taught], grid_hw=grid, size_hw=(side, side))
        return ClassMap((0, *taught), found, match, match, ())

    return predict


def prototypes(shots: Sequence[Shot], grid_hw: tuple[int, int]) -> Float[Tensor, "2 width"]:
    """Mean patch feature outside (row 0) and inside (row 1) the masks of one category's examples, of unit length."""
    inside, outside = zip(*(shot.sides(grid_hw) for shot in shots), strict=True)
    return mean_features([shot.features for shot in shots], inside, outside)


def prototype_map(
    features: Float[Tensor, "patch width"],
    categories: Sequence[Float[Tensor, "2 width"]],
    *,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> Float[Tensor, "class y x"]:
    """Class probabilities by cosine similarity; the background's is that of its nearest "outside" prototype."""
    tokens = F.normalize(features.float(), dim=1)
    similarity = torch.stack([tokens @ rows.T for rows in categories])  # [category, patch, 2]
    maps = torch.cat([similarity[:, :, 0].amax(dim=0, keepdim=True), similarity[:, :, 1]])
    return ScoreMap(maps / _TEMPERATURE, grid_hw, align_corners=True).at(size_hw).softmax(dim=0)
