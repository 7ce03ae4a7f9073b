"""Segment a photo into categories, taught or merely named: look them up, run on the lane, measure the masks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt16
from torch import Tensor

from app.errors import InvalidInputError
from app.images.photo import Photo
from app.masks.boxes import bbox_of
from app.method.adapter import Adapter
from app.method.backbone import Backbone
from app.method.evidence import Query
from app.method.frame import Frame, to_photo
from app.method.segment import class_map, crf_of, encode, refine
from app.method.tiles import look_closer, see_tiles
from app.metrics import Metrics
from app.services.adapter_cache import AdapterCache
from app.services.image_cache import ImageCache
from app.services.models import Models
from app.storage import keys
from app.storage.categories import CategoryRecord, CategoryStore
from app.telemetry import tracer

# A category with less than this share of the best class's score everywhere is not in the photo. Of a hundred names
# asked for in two of the examples' photos four are kept, and 99.8 % of the refined labels are those of all hundred.
LEAST = 0.2


@dataclass(frozen=True)
class Request:
    """What is asked of a photo.

    Attributes:
        categories: Names; empty for every category taught.
        background: Words for "none of them"; empty for the service's own.
        threshold: A pixel belongs to a category whose probability is at least this; None: to the most probable class.
        refine: Whether edges are refined by the CRF.
        adapters: Whether taught categories use what they learned; otherwise all are segmented from words alone.
        backbone: Name of a loaded model; None for the default.
    """

    categories: tuple[str, ...] = ()
    background: tuple[str, ...] = ()
    threshold: float | None = None
    refine: bool = True
    adapters: bool = True
    backbone: str | None = None


class PhotoMaps:
    """Class probabilities at the photo's size, one class at a time.

    All at once they don't fit: 1,000 categories on a photo of 12 megapixels are 48 GB.

    Args:
        maps: On the network's input, the background first.
        frame: Where the photo lies in the input.
        classes: Numbers of the maps' classes; any other is nowhere.
        threshold: As `Request.threshold`.
    """

    def __init__(
        self,
        maps: Float[Tensor, "class size size"],
        frame: Frame,
        *,
        classes: Sequence[int],
        threshold: float | None,
    ) -> None:
        self._maps = {number: maps[row : row + 1] for row, number in enumerate(classes)}
        self._frame = frame
        self.threshold = threshold
        # Interpolation keeps order and bounds: what is nowhere above the background (or the threshold) on the input is
        # nowhere above it on the photo. Most of a thousand categories are not in a photo and cost nothing more.
        bound = maps[:1] if threshold is None else torch.tensor(threshold)
        above = maps > bound if threshold is None else maps >= bound
        self.may_be_found = frozenset(np.array(classes)[above.flatten(1).any(dim=1).numpy()].tolist()) - {0}

    def __contains__(self, number: int) -> bool:
        """Whether a class may be anywhere; otherwise its probability is 0 at every pixel."""
        return number in self._maps

    def probability(self, number: int) -> Float[np.ndarray, "height width"]:
        """Probability of one class."""
        if number not in self:
            return np.zeros(self._frame.photo_hw, np.float32)
        probability: np.ndarray = to_photo(self._maps[number], self._frame)[0].numpy()
        return probability

    def best(self) -> tuple[UInt16[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
        """The class of each pixel and its probability; below the threshold, if there is one, it is the background."""
        labels = np.zeros(self._frame.photo_hw, np.uint16)
        best = self.probability(0).copy() if self.threshold is None else np.full(labels.shape, -1, np.float32)
        for number in sorted(self.may_be_found):
            probability = self.probability(number)
            better = probability > best
            np.copyto(best, probability, where=better)
            np.copyto(labels, np.uint16(number), where=better)
        if self.threshold is not None:
            labels[best < self.threshold] = 0
        return labels, best


@dataclass(frozen=True)
class Found:
    """One category in one photo.

    Attributes:
        name: As stored, or as asked for if it isn't.
        adapted: Whether it ran under a tuned adapter.
        adapter_version: Which.
        match_score: How well the words describe the whole photo, in [0, 1].
        mean_probability: Over the mask's pixels; 0 for an empty mask.
        number: Its class in `maps` and `labels`.
        maps: Probabilities of all classes.
        labels: The most probable class of each pixel.
    """

    name: str
    adapted: bool
    adapter_version: int | None
    match_score: float
    mean_probability: float
    area: int
    bbox: list[int]
    number: int
    maps: PhotoMaps = field(repr=False)
    labels: UInt16[np.ndarray, "height width"] = field(repr=False)

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Its pixels; made anew at every call, since the masks of all categories at once don't fit into memory."""
        if not self.area:
            # One row stands for all: a thousand empty masks take no memory, and a row in one piece is quick to look at.
            return np.broadcast_to(np.zeros(self.labels.shape[1], bool), self.labels.shape)
        if self.maps.threshold is None:
            return np.asarray(self.labels == self.number)
        return np.asarray(self.probability >= self.maps.threshold)

    @property
    def is_nowhere(self) -> bool:
        """Whether its probability is 0 at every pixel."""
        return self.number not in self.maps

    @property
    def probability(self) -> Float[np.ndarray, "height width"]:
        """Its probability at each pixel; made anew at every call."""
        return self.maps.probability(self.number)


@dataclass(frozen=True)
class Segmented:
    """Every category asked for, in order, the class of each pixel, and the time of each stage in milliseconds."""

    backbone: Backbone
    layers: tuple[int, ...]
    found: list[Found]
    labels: UInt16[np.ndarray, "height width"]
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class _Asked:
    name: str
    words: tuple[str, ...]
    adapter: Adapter | None


class Segmentation:
    """The service's main verb.

    Args:
        models: The loaded backbones.
        store: Categories.
        cache: Their adapters.
        images: Photos encoded lately.
        background: Background words if a request brings none.
        max_categories: Most categories in one request.
        second_look: As of `class_map`.
        tiles: Whether each photo is seen in parts too (`app.method.tiles`).
        metrics: Where stages are timed.
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
        second_look: bool,
        tiles: bool,
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._store = store
        self._cache = cache
        self._images = images
        self._background = background
        self._max_categories = max_categories
        self._second_look = second_look
        self._tiles = tiles
        self._metrics = metrics

    def admit(self, request: Request) -> None:
        """Refuse at once what would be refused after the photo was read.

        Raises:
            InvalidInputError: If the backbone isn't loaded.
            OverloadedError: If too many requests wait for the model.
        """
        self._models.get(request.backbone).lane.admit()

    async def segment(self, photo: Photo, request: Request) -> Segmented:
        """Segment a photo.

        Raises:
            InvalidInputError: If the backbone isn't loaded, or no names are given and more than may be asked for are
                taught.
            OverloadedError: If too many requests wait for the model.
        """
        model = self._models.get(request.backbone)
        clock = Clock()
        with clock.stage("load"):
            backbone = await self._models.awake(model)
            asked = await self._asked(request, backbone)
            chosen = (await self._models.layers_of(model)).layers
        predict = partial(self._predict, backbone, photo, request, asked, chosen)
        asked_at = time.perf_counter()
        maps, match, layers, spent = await model.lane.run(predict, kind="segment")
        clock.ms["queue"] = max(0.0, (time.perf_counter() - asked_at) * 1000 - sum(spent.values()))
        clock.ms.update(spent)
        with clock.stage("resize"):
            labels, best = await asyncio.to_thread(maps.best)
        with clock.stage("masks"):
            found = await asyncio.to_thread(_measure, maps, labels, best, match, asked)
        clock.record(self._metrics, backbone.name)
        return Segmented(backbone, layers, found, labels, clock.rounded())

    async def _asked(self, request: Request, backbone: Backbone) -> list[_Asked]:
        records: list[CategoryRecord | None]
        if request.categories:
            records = await self._store.get_many([keys.category_id(name) for name in request.categories])
            names = request.categories
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
            _Asked(
                name=record.name if record else name,
                words=record.words if record else (name,),
                adapter=adapter if adapter and adapter.tensors and fits(adapter, backbone) else None,
            )
            for name, record, adapter in zip(names, records, adapters, strict=True)
        ]

    def _predict(
        self, backbone: Backbone, photo: Photo, request: Request, asked: Sequence[_Asked], chosen: tuple[int, ...]
    ) -> tuple[PhotoMaps, list[float], tuple[int, ...], dict[str, float]]:
        """All that runs on the lane: photo to probabilities on the network's input."""
        clock = Clock()
        queries = [Query(one.adapter.prompts if one.adapter else one.words, one.adapter) for one in asked]
        background = request.background or self._background

        def encode_tile(number: int, rgb: Tensor) -> Tensor:
            return self._images.get(backbone.revision, f"{photo.sha256}/{number}", partial(encode, backbone, rgb))

        with torch.inference_mode():
            with clock.stage("preprocess"):
                rgb, frame = backbone.preprocess(photo.rgb)
            with clock.stage("encode_image"):
                tokens = self._images.get(backbone.revision, photo.sha256, partial(encode, backbone, rgb))
            with clock.stage("attend"):
                found = class_map(
                    backbone,
                    tokens,
                    queries,
                    layers=chosen,
                    background=background,
                    least=LEAST if request.threshold is None else min(LEAST, request.threshold),
                    second_look=self._second_look,
                )
            if self._tiles:
                with clock.stage("tiles"):
                    found = look_closer(
                        backbone,
                        found,
                        frame,
                        lambda: see_tiles(backbone, photo.rgb, encode_tile),
                        queries,
                        layers=chosen,
                        background=background,
                        second_look=self._second_look,
                    )
            maps = found.probabilities
            if request.refine:
                with clock.stage("refine"):
                    maps = refine(maps, rgb, crf_of(backbone, second_look=self._second_look))
            on_photo = PhotoMaps(maps.cpu(), frame, classes=found.classes, threshold=request.threshold)
        return on_photo, found.match_score.tolist(), found.layers, clock.ms


def fits(adapter: Adapter, backbone: Backbone) -> bool:
    """Whether an adapter was tuned on these very weights."""
    return (adapter.backbone, adapter.revision) == (backbone.name, backbone.revision)


def _measure(
    maps: PhotoMaps,
    labels: UInt16[np.ndarray, "height width"],
    best: Float[np.ndarray, "height width"],
    match: Sequence[float],
    asked: Sequence[_Asked],
) -> list[Found]:
    """What is told of each category."""
    found = []
    for number, (one, score) in enumerate(zip(asked, match, strict=True), 1):
        area, mean, bbox = 0, 0.0, [0, 0, 0, 0]
        if number in maps.may_be_found:
            # Where a class is the most probable one, its probability is the best one.
            probability = best if maps.threshold is None else maps.probability(number)
            mask = labels == number if maps.threshold is None else probability >= maps.threshold
            area, bbox = int(mask.sum()), bbox_of(mask)
            mean = float(probability[mask].mean()) if area else 0.0
        found.append(
            Found(
                name=one.name,
                adapted=one.adapter is not None,
                adapter_version=one.adapter.version if one.adapter else None,
                match_score=score,
                mean_probability=mean,
                area=area,
                bbox=bbox,
                number=number,
                maps=maps,
                labels=labels,
            )
        )
    return found


class Clock:
    """Milliseconds per stage, in the order of the stages."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside, and make it a span."""
        started = time.perf_counter()
        try:
            with tracer.start_as_current_span(name):
                yield
        finally:
            self.ms[name] = (time.perf_counter() - started) * 1000

    def record(self, metrics: Metrics, backbone: str) -> None:
        """Count the stages in the metrics."""
        for stage, ms in self.ms.items():
            metrics.stage_duration.labels(backbone, stage).observe(ms / 1000)

    def rounded(self) -> dict[str, float]:
        """As an answer tells them."""
        return {name: round(ms, 2) for name, ms in self.ms.items()}
