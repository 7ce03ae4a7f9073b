"""The loaded backbones: each with its lane, and the layers that are read on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from app.errors import InvalidInputError
from app.method.backbone import Backbone
from app.method.infoscore import LayerScores, best_layers, infoscore
from app.method.segment import Query, class_map, encode
from app.metrics import Metrics
from app.services.lane import Lane
from app.storage.layers import LayerStore

ChosenBy = Literal["InfoScore", "setting", "default"]


@dataclass
class Model:
    """A backbone, the lane that owns it, and whether it has answered its warm-up."""

    backbone: Backbone
    lane: Lane
    warm: bool = False


@dataclass(frozen=True)
class LayerChoice:
    """Which layers are read, why, and what InfoScore says of each if it was asked."""

    layers: tuple[int, ...]
    chosen_by: ChosenBy
    scores: LayerScores | None
    images: int


class Models:
    """The models of this process, the default first.

    Args:
        models: At least one.
        layer_store: Where rankings are kept.
        layers: Layers set by hand; they win over every ranking.
        metrics: Where warmth and memory are recorded.
    """

    def __init__(
        self, models: Sequence[Model], *, layer_store: LayerStore, layers: tuple[int, ...] | None, metrics: Metrics
    ) -> None:
        self._models = {model.backbone.name: model for model in models}
        self.default = models[0]
        self._layer_store = layer_store
        self._layers = layers
        self._metrics = metrics

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str | None) -> Model:
        """The model of that name, or the default.

        Raises:
            InvalidInputError: If it isn't loaded.
        """
        if name is None:
            return self.default
        if name not in self._models:
            raise InvalidInputError(
                f"The backbone {name!r} is not loaded: ask for one of {', '.join(self._models)}, or for none.",
                field="backbone",
            )
        return self._models[name]

    async def warm_up(self) -> None:
        """Run each model once, so that no caller pays for its first use."""
        for model in self:
            backbone = model.backbone
            self._metrics.backbone_memory.labels(backbone.name, backbone.device).set(backbone.memory_bytes)
            await model.lane.run(partial(_run_once, backbone), kind="rank")
            model.warm = True
            self._metrics.backbone_warm.labels(backbone.name, backbone.revision).set(1)

    async def layers_of(self, model: Model) -> LayerChoice:
        """The layers read on a model: set by hand, else InfoScore's if it was ranked, else the backbone's default."""
        stored = await self._layer_store.get(model.backbone.revision)
        scores = infoscore(stored.statistics) if stored else None
        images = stored.statistics.images if stored else 0
        if self._layers is not None:
            return LayerChoice(self._layers, "setting", scores, images)
        if scores is not None:
            return LayerChoice(best_layers(scores.infoscore), "InfoScore", scores, images)
        return LayerChoice(model.backbone.default_layers, "default", scores, images)


def check_layers(backbone: Backbone, layers: tuple[int, ...] | None) -> None:
    """Refuse layers that the backbone doesn't have.

    Raises:
        InvalidInputError: If one is out of range.
    """
    if layers and max(layers) >= backbone.layer_count:
        raise InvalidInputError(
            f"EXEMPLAR_LAYERS names layer {max(layers)}: {backbone.name} has layers 0 to {backbone.layer_count - 1}."
        )


def _run_once(backbone: Backbone) -> None:
    photo = np.zeros((backbone.input_size, backbone.input_size, 3), np.uint8)
    with torch.inference_mode():
        rgb, _ = backbone.preprocess(photo)
        class_map(backbone, encode(backbone, rgb), [Query(("object",))])
