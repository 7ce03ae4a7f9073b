"""The embedded model in the service's configuration, and categories taught to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from torch import Tensor

from app import backbones
from app.method.adapter import Adapter
from app.method.backbone import EncodedImage
from app.method.pieces import finished
from app.method.pipeline import Pipeline, encode_one
from app.method.prediction import Prediction
from app.method.prompts import Prompts, Query
from app.method.refinement import crf
from app.method.selection import select
from app.method.tuning import TUNED, CategoryTuning
from app.services.tuning_job import make_shot
from app.settings import Settings
from tests.quality.photos import mask, photo


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """As the service runs it: presence, mask decoder, CRF."""
    backbone = backbones.load("embedded", device="cpu", dtype="float32")
    return Pipeline(backbone, refinement=crf, min_presence=Settings().min_presence)


@pytest.fixture(scope="session")
def found(pipeline: Pipeline) -> Callable[..., Prediction]:
    """What the pipeline finds in a photo, which is encoded once."""
    kept: dict[tuple[str, int], EncodedImage] = {}

    def find(name: str, *queries: Query) -> Prediction:
        def encode(rgb: Tensor, number: int) -> EncodedImage:
            if (name, number) not in kept:
                kept[name, number] = encode_one(pipeline.backbone, rgb)
            return kept[name, number]

        return pipeline.run(photo(name), queries, encode=encode)

    return find


@pytest.fixture(scope="session")
def marked(found: Callable[..., Prediction]) -> Callable[..., np.ndarray]:
    """Pixels of a photo that belong to the first of some queries."""

    def mark(name: str, *queries: Query) -> np.ndarray:
        labels, _ = found(name, *queries).labels(None)
        return labels == 1

    return mark


@pytest.fixture(scope="session")
def taught(pipeline: Pipeline) -> Callable[..., Query]:
    """A category taught from one photo that shows it, and perhaps from others that do not."""
    made: dict[tuple[str, ...], Adapter] = {}

    def teach(category: str, name: str, *absent: str) -> Query:
        key = (category, name, *absent)
        if key not in made:
            made[key] = tune(pipeline, category, name, absent)
        return Query((category,), made[key])

    return teach


def tune(pipeline: Pipeline, category: str, name: str, absent: Sequence[str]) -> Adapter:
    backbone = pipeline.backbone
    masks = {name: mask(name)} | {other: np.zeros(photo(other).shape[:2], bool) for other in absent}
    shots = [make_shot(backbone, photo(shown), marked) for shown, marked in masks.items()]
    others = Prompts.of((), taken=[category])
    tuning = CategoryTuning(backbone, shots, [category], others=others, layers=backbone.default_layers, recipe=TUNED)
    for _ in range(TUNED.steps):
        tuning.step()
    return finished(select(tuning)).adapter(tuning, category, version=1, created_at="2026-01-02T03:04:05Z")
