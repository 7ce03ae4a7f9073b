"""The backbones of this process: each with its lane, loaded or unloaded, and the layers that are read on it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import numpy as np

from app.errors import InvalidInputError, UnavailableError
from app.method.backbone import Backbone, ImageTextScore
from app.method.infoscore import LayerScores, best_layers
from app.method.pipeline import Pipeline
from app.method.prompts import Query
from app.metrics import Metrics
from app.services.lane import Lane
from app.services.memory import give_back
from app.storage.layers import LayerStore, StoredRanking

ChosenBy = Literal["InfoScore", "setting", "default"]


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a model, loaded or unloaded."""

    name: str
    family: str
    revision: str
    device: str
    dtype: str
    memory_bytes: int
    layer_count: int
    default_layers: tuple[int, ...]
    patch_grid_hw: tuple[int, int]
    image_text_score: ImageTextScore

    @classmethod
    def of(cls, backbone: Backbone) -> ModelInfo:
        """The facts of a loaded model."""
        return cls(**{part.name: getattr(backbone, part.name) for part in fields(cls)})


class Model:
    """Backbone with its lane and its warm-up state.

    It is unloaded while its weights are not in memory; `Models.loaded` loads them again.

    Args:
        backbone: Loaded backbone.
        lane: Lane of this backbone alone.
        load: Loads the backbone again.
    """

    def __init__(self, backbone: Backbone, lane: Lane, load: Callable[[], Backbone]) -> None:
        self.info = ModelInfo.of(backbone)
        self.lane = lane
        self.load = load
        self.warm = False
        self.loading = asyncio.Lock()
        self._backbone: Backbone | None = backbone

    @property
    def unloaded(self) -> bool:
        """True if its weights are not in memory."""
        return self._backbone is None

    @property
    def backbone(self) -> Backbone:
        """The loaded model.

        Raises:
            ValueError: If it is unloaded.
        """
        if self._backbone is None:
            raise ValueError(f"expected {self.info.name} to be loaded")
        return self._backbone

    def put_back(self, backbone: Backbone) -> None:
        """Use a backbone that was loaded again.

        Raises:
            UnavailableError: If its weights are not those that were unloaded.
        """
        if backbone.revision != self.info.revision:
            raise UnavailableError(
                f"The weights of {self.info.name} were changed while it was unloaded: restart the service to use them."
            )
        self._backbone = backbone

    def unload(self) -> None:
        """Release the weights; calls in the lane's queue hold them until they are answered."""
        self._backbone, self.warm = None, False


@dataclass(frozen=True)
class LayerChoice:
    """Layers that are read on a model.

    Attributes:
        layers: Their numbers.
        chosen_by: Source of the choice.
        scores: InfoScore of every layer, or None if the model was never ranked.
        images: Number of photos behind the scores.
    """

    layers: tuple[int, ...]
    chosen_by: ChosenBy
    scores: LayerScores | None
    images: int


class Models:
    """Models of this process. The first is the default, which is never unloaded.

    Args:
        layer_store: Store of rankings.
        layers: Layers of the settings, which take precedence over rankings; None if they are not set.
        max_bytes: Memory for the weights of all models; 0 for no limit.
        metrics: Records warm-up, memory and loading.
    """

    def __init__(
        self, *, layer_store: LayerStore, layers: tuple[int, ...] | None, max_bytes: int, metrics: Metrics
    ) -> None:
        self._models: OrderedDict[str, Model] = OrderedDict()  # least recently used first
        self._listed: list[Model] = []
        self._layer_store = layer_store
        self._layers = layers
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._last_rankings: dict[str, StoredRanking | None] = {}  # by revision

    def __iter__(self) -> Iterator[Model]:
        return iter(self._listed)

    @property
    def default(self) -> Model:
        """The model of requests that name none."""
        return self._listed[0]

    def add(self, model: Model) -> None:
        """Add a model; the first is the default. Others may be unloaded to make room.

        Raises:
            InvalidInputError: If there is a model of that name already.
        """
        if model.info.name in self._models:
            raise InvalidInputError(
                f"EXEMPLAR_BACKBONE names two models that are both called {model.info.name!r}: rename one's folder."
            )
        self._listed.append(model)
        self._models[model.info.name] = model
        self._show(model)
        self._make_room(model)

    def get(self, name: str | None) -> Model:
        """The model of that name, or the default for None.

        Raises:
            InvalidInputError: If there is no model of that name.
        """
        if name is None:
            return self.default
        if name not in self._models:
            known = ", ".join(model.info.name for model in self)
            raise InvalidInputError(
                f"The backbone {name!r} is not loaded: ask for one of {known}, or for none.", field="backbone"
            )
        return self._models[name]

    async def loaded(self, model: Model) -> Backbone:
        """The model's backbone, loaded again if it was unloaded, which takes as long as at the start.

        Raises:
            UnavailableError: If it can't be loaded, or its weights were changed.
        """
        self._models.move_to_end(model.info.name)
        async with model.loading:
            if not model.unloaded:
                return model.backbone
            self._make_room(model)
            started = time.perf_counter()
            backbone = await model.lane.run(partial(_load_again, model), kind="rank")
            self._metrics.backbone_load_duration.labels(model.info.name).observe(time.perf_counter() - started)
            model.put_back(backbone)
            self._make_room(model)  # another one may have been loaded meanwhile
            # Another model may evict it during the warm-up; this call uses it nevertheless.
            await self._warm(model, backbone)
            return backbone

    async def warm_up(self) -> None:
        """Run each model once, so that no request pays for its first use."""
        for model in self:
            if not model.unloaded:
                await self._warm(model, model.backbone)

    async def _warm(self, model: Model, backbone: Backbone) -> None:
        await model.lane.run(partial(_run_once, backbone), kind="rank")
        await asyncio.to_thread(give_back)  # what loading has freed: some tens of megabytes
        model.warm = not model.unloaded
        self._show(model)

    def _make_room(self, for_model: Model) -> None:
        """Unload models, the least recently used first, until a loaded or expected one fits beside the others."""
        for model in list(self._models.values()):
            used = sum(other.info.memory_bytes for other in self if other is for_model or not other.unloaded)
            if not self._max_bytes or used <= self._max_bytes:
                return
            if model not in (for_model, self.default) and not model.unloaded:
                model.unload()
                self._metrics.backbone_evictions.inc()
                self._show(model)

    def _show(self, model: Model) -> None:
        info = model.info
        self._metrics.backbone_memory.labels(info.name, info.device).set(0 if model.unloaded else info.memory_bytes)
        self._metrics.backbone_warm.labels(info.name, info.revision).set(model.warm)

    async def layers_of(self, model: Model) -> LayerChoice:
        """Layers read on a model: those of the settings, else the best by InfoScore, else the backbone's default."""
        ranking = await self._layer_store.ranking(model.info.revision)
        if ranking and len(ranking.scores.infoscore) != model.info.layer_count:
            ranking = None  # what is stored is not of this model
        self._last_rankings[model.info.revision] = ranking
        return self._choice(model, ranking)

    def last_layers_of(self, model: Model) -> LayerChoice:
        """The same by the ranking that was read last, for requests while the store is away."""
        return self._choice(model, self._last_rankings.get(model.info.revision))

    def _choice(self, model: Model, ranking: StoredRanking | None) -> LayerChoice:
        scores, images = (ranking.scores, ranking.images) if ranking else (None, 0)
        if self._layers is not None:
            return LayerChoice(self._layers, "setting", scores, images)
        # With one photo every score is 0, since it has no deviation.
        if scores is not None and images > 1:
            return LayerChoice(best_layers(scores.infoscore), "InfoScore", scores, images)
        return LayerChoice(model.info.default_layers, "default", scores, images)


def check_layers(backbone: Backbone, layers: tuple[int, ...] | None) -> None:
    """Refuse layers that the backbone does not have.

    Raises:
        InvalidInputError: If one is out of range.
    """
    if layers and max(layers) >= backbone.layer_count:
        raise InvalidInputError(
            f"EXEMPLAR_LAYERS names layer {max(layers)}: {backbone.name} has layers 0 to {backbone.layer_count - 1}."
        )


def _load_again(model: Model) -> Backbone:
    try:
        return model.load()
    except InvalidInputError as error:  # at the start a setting was wrong, but now no caller is at fault
        raise UnavailableError(f"The model {model.info.name} can't be loaded again: {error.detail}") from error


def _run_once(backbone: Backbone) -> None:
    photo = np.zeros((backbone.input_size, backbone.input_size, 3), np.uint8)
    Pipeline(backbone).run(photo, [Query(("object",))])
