"""The embedded model in the service's configuration, and categories taught to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from app import backbones
from app.method.adapter import Adapter
from app.method.pipeline import Pipeline
from app.method.prompts import Prompts, Query
from app.method.refinement import crf
from app.method.selection import finished, select
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
def marked(pipeline: Pipeline) -> Callable[..., np.ndarray]:
    """Pixels of a photo that belong to the first of some queries."""

    def mark(name: str, *queries: Query) -> np.ndarray:
        labels, _ = pipeline.run(photo(name), queries).labels(None)
        return labels == 1

    return mark


@pytest.fixture(scope="session")
def taught(pipeline: Pipeline) -> Callable[[str, str], Query]:
    """A category taught from one photo."""
    made: dict[tuple[str, str], Adapter] = {}

    def teach(category: str, name: str) -> Query:
        if (category, name) not in made:
            made[category, name] = tune(pipeline, category, name)
        return Query((category,), made[category, name])

    return teach


def tune(pipeline: Pipeline, category: str, name: str) -> Adapter:
    backbone = pipeline.backbone
    shot = make_shot(backbone, photo(name), mask(name))
    others = Prompts.of((), taken=[category])
    tuning = CategoryTuning(backbone, [shot], [category], others=others, layers=backbone.default_layers, recipe=TUNED)
    for _ in range(TUNED.steps):
        tuning.step()
    return finished(select(tuning)).adapter(tuning, category, version=1, created_at="2026-01-02T03:04:05Z")
