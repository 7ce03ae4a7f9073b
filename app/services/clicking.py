"""Proposal of one object's mask from clicks, on the model's lane."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Float

from app.images.photo import Photo
from app.images.points import Point
from app.masks import Mask
from app.method.backbone import Backbone
from app.method.clicks import Click, probability_of
from app.method.pipeline import Pipeline
from app.method.refinement import REFINEMENTS
from app.metrics import Metrics
from app.services.clock import Clock
from app.services.image_cache import ImageCache
from app.services.models import Models


@dataclass(frozen=True)
class Clicked:
    """A proposed object.

    Attributes:
        backbone: The model that made it.
        mask: `[height, width]` of the photo.
        mean_probability: Over the mask's pixels; 0 for an empty mask.
        timings_ms: Time of each stage in milliseconds.
    """

    backbone: Backbone
    mask: Mask = field(repr=False)
    mean_probability: float
    timings_ms: dict[str, float]


class Clicking:
    """Proposes masks of clicked objects.

    Args:
        models: The loaded backbones.
        images: Cache of encoded photos, so that the next click on a photo does not encode it again.
        use_mask_decoder: As in `Pipeline`.
        metrics: Records the time of each stage.
    """

    def __init__(self, models: Models, images: ImageCache, *, use_mask_decoder: bool, metrics: Metrics) -> None:
        self._models = models
        self._images = images
        self._use_mask_decoder = use_mask_decoder
        self._metrics = metrics

    def admit(self, backbone: str | None = None) -> None:
        """Refuse a request before its photo is read.

        Raises:
            InvalidInputError: If the backbone is not known.
            OverloadedError: If too many requests wait for the model.
        """
        self._models.get(backbone).lane.admit()

    async def propose(
        self, photo: Photo, points: Sequence[Point], *, refine: str = "crf", backbone: str | None = None
    ) -> Clicked:
        """Propose the mask of the object that some points are on and others are not.

        Args:
            photo: The photo.
            points: At least one of them on the object.
            refine: Name of a refinement (`app.method.refinement`).
            backbone: Name of a loaded model; None for the default.

        Raises:
            InvalidInputError: If the backbone is not known.
            OverloadedError: If too many requests wait for the model.
        """
        model = self._models.get(backbone)
        clock = Clock()
        with clock.stage("load"):
            loaded = await self._models.loaded(model)
        probability = await clock.on_lane(model.lane, partial(self._probability, loaded, photo, points, refine))
        with clock.stage("masks"):
            mask, mean = await asyncio.to_thread(_mask_of, probability)
        clock.record(self._metrics, loaded.name)
        return Clicked(loaded, mask, mean, clock.rounded())

    def _probability(
        self, backbone: Backbone, photo: Photo, points: Sequence[Point], refine: str, clock: Clock
    ) -> Float[np.ndarray, "height width"]:
        """Run the method, on the lane, and time its stages."""
        encode = self._images.encoder(backbone, photo)
        image = Pipeline(backbone).see(photo.rgb, encode=encode, stage=clock.stage)
        with clock.stage("clicks"):
            probability = probability_of(
                backbone,
                image,
                [Click(*point) for point in points],
                refinement=REFINEMENTS[refine],
                use_mask_decoder=self._use_mask_decoder,
            )
        return probability.numpy()


def _mask_of(probability: Float[np.ndarray, "height width"]) -> tuple[Mask, float]:
    mask = probability >= 0.5
    return mask, float(probability[mask].mean()) if mask.any() else 0.0
