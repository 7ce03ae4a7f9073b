"""Segmentation of a photo into categories, taught or only named: look-up, pipeline on the lane, labels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from app.images.photo import Photo
from app.method.adapter import Adapter
from app.method.backbone import Backbone
from app.method.pipeline import MIN_RELATIVE_SCORE, Pipeline, default_min_presence
from app.method.prediction import Prediction
from app.method.prompts import Query
from app.method.refinement import REFINEMENTS
from app.metrics import Metrics
from app.services.adapter_cache import AdapterCache
from app.services.categories import UNREADABLE_ADAPTER
from app.services.category_lookup import CategoryLookup, Found
from app.services.clock import Clock
from app.services.image_cache import ImageCache
from app.services.models import Model, Models
from app.services.prediction import Asked, CategoryPrediction, PhotoPrediction
from app.storage.breaker import StoreAwayError
from app.storage.category_records import CategoryRecord
from app.storage.names import CategoryName

_ADAPTER_AWAY = "the store does not answer, and its adapter is not in memory; send the request again later."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentationRequest:
    """Options of a segmentation.

    Attributes:
        categories: Names; None for every category taught.
        background: Words for "none of them"; empty for the service's own.
        threshold: Least probability of a category's pixels; None: a pixel belongs to its most probable class.
        min_presence: Least presence of a category that gets a mask; None for the service's own bound.
        refine: Name of a refinement (`app.method.refinement`).
        adapters: True if taught categories run under their adapters; False for the words alone.
        backbone: Name of a loaded model; None for the default.
    """

    categories: tuple[CategoryName, ...] | None = None
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
        memory_age_s: Age of the categories in seconds if they came from memory, because the store was away; else None.
    """

    backbone: Backbone
    photo: PhotoPrediction
    categories: list[CategoryPrediction]
    timings_ms: dict[str, float]
    memory_age_s: float | None = None


class Segmentation:
    """Segments photos.

    Args:
        models: The loaded backbones.
        lookup: Looks the categories up.
        cache: Cache of adapters.
        images: Cache of encoded photos.
        background: Background words of requests that bring none.
        min_presence: Least presence of a category that gets a mask, for requests that name none. It is not applied to
            a model without calibrated presence.
        use_mask_decoder: As in `Pipeline`.
        use_tiles: As in `Pipeline`.
        metrics: Records the time of each stage.
    """

    def __init__(
        self,
        models: Models,
        lookup: CategoryLookup,
        cache: AdapterCache,
        images: ImageCache,
        *,
        background: tuple[str, ...],
        min_presence: float,
        use_mask_decoder: bool,
        use_tiles: bool,
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._lookup = lookup
        self._cache = cache
        self._images = images
        self._background = background
        self._min_presence = min_presence
        self._use_mask_decoder = use_mask_decoder
        self._use_tiles = use_tiles
        self._metrics = metrics

    def admit(self, request: SegmentationRequest) -> None:
        """Refuse a request before its photo is read.

        Raises:
            InvalidInputError: If the backbone is not known.
            OverloadedError: If too many requests wait for the model.
        """
        self._models.get(request.backbone).lane.admit()

    async def look_up(self, request: SegmentationRequest) -> Found:
        """The requested categories, from memory while the store is away.

        Raises:
            InvalidInputError: If the request names more categories than one request may have, or names none and more
                are taught.
            StoreAwayError: If the request names no categories, and the store is away and was never asked for all.
        """
        if request.categories is None:
            return await self._lookup.taught()
        return await self._lookup.named([name.id for name in request.categories])

    async def segment(self, photo: Photo, request: SegmentationRequest, found: Found | None = None) -> Segmented:
        """Segment a photo.

        Args:
            photo: The photo.
            request: Options.
            found: Its categories, if they were looked up already.

        Raises:
            InvalidInputError: If the backbone is not known; and as `look_up`.
            OverloadedError: If too many requests wait for the model.
            StoreAwayError: As `look_up`.
        """
        model = self._models.get(request.backbone)
        clock = Clock()
        with clock.stage("load"):
            backbone = await self._models.loaded(model)
            found = found or await self.look_up(request)
            asked, complete = await self._with_adapters(found, request, backbone)
            layers = await self._layers(model)
        pipeline = self._pipeline(backbone, request, layers)
        prediction = await clock.on_lane(model.lane, partial(self._predict, pipeline, photo, asked))
        with clock.stage("resize"):
            on_photo = await asyncio.to_thread(PhotoPrediction.of, prediction, request.threshold)
        with clock.stage("masks"):
            categories = await asyncio.to_thread(on_photo.categories, asked)
        clock.record(self._metrics, backbone.name)
        for one in categories:
            if one.unusable:
                _log.warning("%s: %s", one.name, one.adapter_problem)
        memory_age_s = found.age_s if complete else found.age_s or 0.0
        return Segmented(backbone, on_photo, categories, clock.rounded(), memory_age_s)

    async def _with_adapters(
        self, found: Found, request: SegmentationRequest, backbone: Backbone
    ) -> tuple[list[Asked], bool]:
        """The categories, each with its adapter if this backbone can use it.

        Returns:
            The categories, and False if the store was away, so that only adapters in memory could be used.
        """
        records = found.records
        self._metrics.asked_for(record.name for record in records if record)
        adapters: list[Adapter | None] = [None] * len(records)
        complete = True
        if request.adapters:
            try:
                adapters = await self._cache.get_many(records)
            except StoreAwayError:
                adapters, complete = self._cache.in_memory(records), False
        without = (UNREADABLE_ADAPTER if complete else _ADAPTER_AWAY) if request.adapters else None
        if request.categories is None:
            names = [record.name for record in records if record]
        else:
            names = [name.text for name in request.categories]
        asked = [
            _asked(name, record, adapter, backbone, without=without)
            for name, record, adapter in zip(names, records, adapters, strict=True)
        ]
        return asked, complete

    async def _layers(self, model: Model) -> tuple[int, ...]:
        try:
            return (await self._models.layers_of(model)).layers
        except StoreAwayError:
            return self._models.last_layers_of(model).layers

    def _pipeline(self, backbone: Backbone, request: SegmentationRequest, layers: tuple[int, ...]) -> Pipeline:
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

    def _predict(self, pipeline: Pipeline, photo: Photo, asked: Sequence[Asked], clock: Clock) -> Prediction:
        """Run the pipeline, on the lane, and time its stages."""
        encode = self._images.encoder(pipeline.backbone, photo)
        return pipeline.run(photo.rgb, [one.query for one in asked], encode=encode, stage=clock.stage)


def _asked(
    name: str, record: CategoryRecord | None, adapter: Adapter | None, backbone: Backbone, *, without: str | None
) -> Asked:
    """A category of a request.

    Args:
        name: As requested.
        record: The stored category.
        adapter: Its adapter, if it could be read.
        backbone: The model of the request.
        without: What to tell the caller of a category that has an adapter which could not be read.
    """
    if record is None:
        return Asked(name, Query((name,)))
    if adapter and adapter.fits(backbone):
        return Asked(record.name, Query(adapter.prompts, adapter))
    problem = None
    if adapter:
        problem = (
            f"its adapter was tuned on {adapter.backbone} ({adapter.revision}), this is {backbone.name} "
            f"({backbone.revision}); teach the category on this model."
        )
    elif record.adapter or record.adapter_problem:
        problem = without
    return Asked(record.name, Query(record.words), problem)
