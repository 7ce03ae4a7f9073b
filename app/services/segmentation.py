"""Segment one photo into categories, taught or merely named: decode, run on the lane, give the masks their form."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from app.method.adapter import Adapter
from app.method.backbone import Backbone
from app.method.crf import CrfParameters
from app.method.frame import to_photo
from app.method.masks import bbox_of
from app.method.segment import Query, class_map, encode, refine
from app.metrics import Metrics
from app.services.adapter_cache import AdapterCache
from app.services.decode import Photo
from app.services.models import Model, Models
from app.storage import keys
from app.storage.categories import CategoryRecord, CategoryStore


@dataclass(frozen=True)
class Request:
    """What is asked of a photo.

    Attributes:
        photo: Decoded.
        categories: Names; empty for every category taught.
        background: Words for "none of them"; empty for the service's own.
        threshold: A pixel belongs to a category whose probability is at least this; None: to the most probable class.
        refine: Whether edges are refined by the CRF.
        adapters: Whether taught categories use what they learned; otherwise all are segmented from words alone.
        backbone: Name of a loaded model; None for the default.
    """

    photo: Photo
    categories: tuple[str, ...] = ()
    background: tuple[str, ...] = ()
    threshold: float | None = None
    refine: bool = True
    adapters: bool = True
    backbone: str | None = None


@dataclass(frozen=True)
class Found:
    """One category in one photo.

    Attributes:
        name: As stored, or as asked for if it isn't.
        adapted: Whether it ran under a tuned adapter.
        adapter_version: Which.
        match_score: How well the words describe the whole photo, in [0, 1].
        mean_probability: Over the mask's pixels; 0 for an empty mask.
        mask: `[height, width]`, at the photo's size.
        probability: `[height, width]`.
    """

    name: str
    adapted: bool
    adapter_version: int | None
    match_score: float
    mean_probability: float
    area: int
    bbox: list[int]
    mask: np.ndarray = field(repr=False)
    probability: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Segmented:
    """Every category asked for, in order, and the time of each stage in milliseconds."""

    backbone: Backbone
    layers: tuple[int, ...]
    found: list[Found]
    labels: np.ndarray
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
        background: Background words if a request brings none.
        metrics: Where stages are timed.
    """

    def __init__(
        self,
        models: Models,
        store: CategoryStore,
        cache: AdapterCache,
        *,
        background: tuple[str, ...],
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._store = store
        self._cache = cache
        self._background = background
        self._metrics = metrics

    async def segment(self, request: Request) -> Segmented:
        """Segment a photo.

        Raises:
            InvalidInputError: If the backbone isn't loaded.
            OverloadedError: If too many requests wait for the model.
        """
        model = self._models.get(request.backbone)
        clock = _Clock()
        with clock.stage("load"):
            asked = await self._asked(request, model)
            chosen = (await self._models.layers_of(model)).layers
        with clock.stage("queue"):  # waiting and computing; the lane's own stages are taken off below
            maps, match, layers, spent = await model.lane.run(
                lambda: self._predict(model.backbone, request, asked, chosen), kind="segment"
            )
        clock.ms["queue"] = max(0.0, clock.ms["queue"] - sum(spent.values()))
        clock.ms.update(spent)
        with clock.stage("masks"):
            found, labels = await asyncio.to_thread(_measure, maps, match, asked, request.threshold)
        for stage, ms in clock.ms.items():
            self._metrics.stage_duration.labels(model.backbone.name, stage).observe(ms / 1000)
        return Segmented(model.backbone, layers, found, labels, clock.rounded())

    async def _asked(self, request: Request, model: Model) -> list[_Asked]:
        records: list[CategoryRecord | None]
        if request.categories:
            records = await self._store.get_many([keys.category_id(name) for name in request.categories])
            names = request.categories
        else:
            records = list(await self._store.all())
            names = tuple(record.name for record in records if record)
        adapters: list[Adapter | None] = [None] * len(records)
        if request.adapters:
            adapters = await self._cache.get_many(records)
        return [
            _Asked(
                name=record.name if record else name,
                words=record.words if record else (name,),
                adapter=adapter if adapter and adapter.tensors and fits(adapter, model.backbone) else None,
            )
            for name, record, adapter in zip(names, records, adapters, strict=True)
        ]

    def _predict(
        self, backbone: Backbone, request: Request, asked: Sequence[_Asked], chosen: tuple[int, ...]
    ) -> tuple[torch.Tensor, list[float], tuple[int, ...], dict[str, float]]:
        """All that runs on the lane: photo to probabilities at the photo's size."""
        clock = _Clock()
        queries = [Query(one.adapter.prompts if one.adapter else one.words, one.adapter) for one in asked]
        with torch.inference_mode():
            with clock.stage("preprocess"):
                rgb, frame = backbone.preprocess(request.photo.rgb)
            with clock.stage("encode_image"):
                tokens = encode(backbone, rgb)
            with clock.stage("attend"):
                found = class_map(
                    backbone, tokens, queries, layers=chosen, background=request.background or self._background
                )
            maps = found.probabilities
            if request.refine:
                with clock.stage("refine"):
                    maps = refine(maps, rgb, CrfParameters())
            with clock.stage("resize"):
                maps = to_photo(maps, frame).cpu()
        return maps, found.match_score.tolist(), found.layers, clock.ms


def fits(adapter: Adapter, backbone: Backbone) -> bool:
    """Whether an adapter was tuned on these very weights."""
    return (adapter.backbone, adapter.revision) == (backbone.name, backbone.revision)


def _measure(
    maps: torch.Tensor, match: Sequence[float], asked: Sequence[_Asked], threshold: float | None
) -> tuple[list[Found], np.ndarray]:
    """Masks and what is told of them; and the label map, in which a pixel has one class."""
    best, labels = maps.max(dim=0)
    if threshold is not None:
        best, labels = maps[1:].max(dim=0) if len(maps) > 1 else (best, labels)
        labels = torch.where(best >= threshold, labels + 1, 0) if len(maps) > 1 else labels
    found = []
    for number, (one, score) in enumerate(zip(asked, match, strict=True), 1):
        probability = maps[number].numpy()
        mask = (labels == number).numpy() if threshold is None else probability >= threshold
        area = int(mask.sum())
        found.append(
            Found(
                name=one.name,
                adapted=one.adapter is not None,
                adapter_version=one.adapter.version if one.adapter else None,
                match_score=score,
                mean_probability=float(probability[mask].mean()) if area else 0.0,
                area=area,
                bbox=bbox_of(mask),
                mask=mask,
                probability=probability,
            )
        )
    return found, labels.numpy()


class _Clock:
    """Milliseconds per stage, in the order of the stages."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] = (time.perf_counter() - started) * 1000

    def rounded(self) -> dict[str, float]:
        return {name: round(ms, 2) for name, ms in self.ms.items()}
