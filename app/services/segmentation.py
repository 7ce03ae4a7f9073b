"""Segmentation of a photo into categories, taught or only named: look-up, pipeline on the lane, labels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from app.errors import InvalidInputError
from app.images.photo import Photo
from app.method.adapter import Adapter
from app.method.backbone import Backbone, EncodedImage
from app.method.pipeline import MIN_RELATIVE_SCORE, Pipeline, default_min_presence, encode_one
from app.method.prediction import Prediction
from app.method.prompts import Query
from app.method.refinement import REFINEMENTS
from app.metrics import Metrics
from app.services.adapter_cache import AdapterCache
from app.services.categories import UNREADABLE_ADAPTER
from app.services.clock import Clock
from app.services.image_cache import ImageCache
from app.services.models import Models
from app.services.prediction import Asked, CategoryPrediction, PhotoPrediction
from app.storage.categories import CategoryRecord, CategoryStore
from app.storage.names import CategoryName


@dataclass(frozen=True)
class Request:
    """Options of a segmentation.

    Attributes:
        categories: Names; empty for every category taught.
        background: Words for "none of them"; empty for the service's own.
        threshold: Least probability of a category's pixels; None: a pixel belongs to its most probable class.
        min_presence: Least presence of a category that gets a mask; None for the service's own bound.
        refine: Name of a refinement (`app.method.refinement`).
        adapters: True if taught categories run under their adapters; False for the words alone.
        backbone: Name of a loaded model; None for the default.
    """

    categories: tuple[CategoryName, ...] = ()
    background: tuple[str, ...] = ()
    threshold: float | None = None
    min_presence: float | None = None
    refine: str = "crf"
    adapters: bool = True
    backbone: str | None = None


@dataclass(frozen=True)
class Segmented:
    """Result of a segmentation.

    Attributes:
        backbone: The model that made it.
        photo: Labels and probabilities.
        categories: Every requested category, in order.
        timings_ms: Time of each stage in milliseconds.
    """

    backbone: Backbone
    photo: PhotoPrediction
    categories: list[CategoryPrediction]
    timings_ms: dict[str, float]


class Segmentation:
    """Segments photos.

    Args:
        models: The loaded backbones.
        store: Store of categories.
        cache: Cache of adapters.
        images: Cache of encoded photos.
        background: Background words of requests that bring none.
        max_categories: Largest number of categories in a request.
        min_presence: Least presence of a category that gets a mask, for requests that name none. It is not applied to
            a model without calibrated presence.
        use_mask_decoder: As in `Pipeline`.
        use_tiles: As in `Pipeline`.
        metrics: Records the time of each stage.
    """

    def __init__(
        self,
        models: Models,
        store: CategoryStore,
        cache: AdapterCache,
        images: ImageCache,
        *,
        background: tuple[str, ...],
        max_categories: int,
        min_presence: float,
        use_mask_decoder: bool,
        use_tiles: bool,
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._store = store
        self._cache = cache
        self._images = images
        self._background = background
        self._max_categories = max_categories
        self._min_presence = min_presence
        self._use_mask_decoder = use_mask_decoder
        self._use_tiles = use_tiles
        self._metrics = metrics

    def admit(self, request: Request) -> None:
        """Refuse a request before its photo is read.

        Raises:
            InvalidInputError: If the backbone is not known.
            OverloadedError: If too many requests wait for the model.
        """
        self._models.get(request.backbone).lane.admit()

    async def segment(self, photo: Photo, request: Request) -> Segmented:
        """Segment a photo.

        Raises:
            InvalidInputError: If the backbone is not known, or the request names no categories and more are taught than
                one request may have.
            OverloadedError: If too many requests wait for the model.
        """
        model = self._models.get(request.backbone)
        clock = Clock()
        with clock.stage("load"):
            backbone = await self._models.loaded(model)
            asked = await self._look_up(request, backbone)
            layers = (await self._models.layers_of(model)).layers
        pipeline = self._pipeline(backbone, request, layers)
        asked_at = time.perf_counter()
        prediction, spent = await model.lane.run(partial(self._predict, pipeline, photo, asked), kind="segment")
        clock.ms["queue"] = max(0.0, (time.perf_counter() - asked_at) * 1000 - sum(spent.values()))
        clock.ms.update(spent)
        with clock.stage("resize"):
            on_photo = await asyncio.to_thread(PhotoPrediction.of, prediction, request.threshold)
        with clock.stage("masks"):
            categories = await asyncio.to_thread(on_photo.categories, asked)
        clock.record(self._metrics, backbone.name)
        return Segmented(backbone, on_photo, categories, clock.rounded())

    async def _look_up(self, request: Request, backbone: Backbone) -> list[Asked]:
        """The requested categories, each with its adapter if this backbone can use it."""
        records: list[CategoryRecord | None]
        if request.categories:
            records = await self._store.get_many([name.id for name in request.categories])
            names = tuple(name.text for name in request.categories)
        else:
            taught = await self._store.count()
            if taught > self._max_categories:
                raise InvalidInputError(
                    f"{taught} categories are taught, at most {self._max_categories} can be asked for in one "
                    "request (EXEMPLAR_MAX_CATEGORIES): name those you want.",
                    field="categories",
                )
            records = list(await self._store.all())
            names = tuple(record.name for record in records if record)
        self._metrics.asked_for(record.name for record in records if record)
        adapters: list[Adapter | None] = [None] * len(records)
        if request.adapters:
            adapters = await self._cache.get_many(records)
        return [
            _asked(name, record, adapter, backbone, adapters=request.adapters)
            for name, record, adapter in zip(names, records, adapters, strict=True)
        ]

    def _pipeline(self, backbone: Backbone, request: Request, layers: tuple[int, ...]) -> Pipeline:
        threshold, min_presence = request.threshold, request.min_presence
        if min_presence is None:
            min_presence = default_min_presence(backbone, self._min_presence)
        return Pipeline(
            backbone,
            layers=layers,
            background=request.background or self._background,
            use_mask_decoder=self._use_mask_decoder,
            use_tiles=self._use_tiles,
            refinement=REFINEMENTS[request.refine],
            # No category with a probability above the threshold may be dropped.
            min_relative_score=MIN_RELATIVE_SCORE if threshold is None else min(MIN_RELATIVE_SCORE, threshold),
            min_presence=min_presence,
        )

    def _predict(self, pipeline: Pipeline, photo: Photo, asked: Sequence[Asked]) -> tuple[Prediction, dict[str, float]]:
        """Run the pipeline, on the lane, and time its stages."""
        clock = Clock()

        def encode(rgb: Float[Tensor, "3 size size"], number: int) -> EncodedImage:
            backbone = pipeline.backbone
            return self._images.get(backbone.revision, f"{photo.sha256}/{number}", partial(encode_one, backbone, rgb))

        prediction = pipeline.run(photo.rgb, [one.query for one in asked], encode=encode, stage=clock.stage)
        return prediction, clock.ms


def _asked(
    name: str, record: CategoryRecord | None, adapter: Adapter | None, backbone: Backbone, *, adapters: bool
) -> Asked:
    if record is None:
        return Asked(name, Query((name,)))
    if adapter and adapter.fits(backbone):
        return Asked(record.name, Query(adapter.prompts, adapter))
    problem = _adapter_problem(record, adapter, backbone) if adapters else None
    return Asked(record.name, Query(record.words), problem)


def _adapter_problem(record: CategoryRecord, adapter: Adapter | None, backbone: Backbone) -> str | None:
    """Why the words alone are used for a category, told to the caller; None if it has no adapter."""
    if adapter:
        return (
            f"its adapter was tuned on {adapter.backbone} ({adapter.revision}), this is {backbone.name} "
            f"({backbone.revision}); teach the category on this model."
        )
    return UNREADABLE_ADAPTER if record.adapter or record.adapter_problem else None
