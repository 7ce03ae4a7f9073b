"""Benchmark of presence: time of a photo with ten taught categories, with presence and its bound over without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from app import backbones
from app.demo import EXAMPLES
from app.method.adapter import Adapter
from app.method.backbone import Backbone
from app.method.pieces import finished
from app.method.pipeline import Pipeline
from app.method.prompts import Prompts, Query
from app.method.refinement import crf
from app.method.selection import select
from app.method.tuning import TUNED, CategoryTuning
from app.services.tuning_job import make_shot
from app.settings import Settings

from .measure import Row, seconds, text_ms

NAMES = ("cat", "dog", "giraffe", "cup", "person", "sofa", "tree", "car", "horse", "chair")


def presence_row() -> Row:
    """Time of the whole pipeline, image tower and CRF included."""
    without, backbone = (backbones.load("embedded", device="cpu", dtype="float32") for _ in range(2))
    without.presence = None
    queries = taught_copies(backbone)
    rgb = _rgb("dog.jpg")
    pipelines = (
        Pipeline(without, refinement=crf),
        Pipeline(backbone, refinement=crf, min_presence=Settings().min_presence),
    )
    times: list[list[float]] = [[], []]
    for _ in range(5):  # by turns, so that a change of the machine's pace meets both
        for one, spent in zip(pipelines, times, strict=True):
            spent.append(seconds(lambda one=one: one.run(rgb, queries), repeats=3))
    before, after = (float(np.median(spent)) for spent in times)
    return Row(
        "a photo, ten taught categories: with presence over without", text_ms(before), text_ms(after), after / before,
        "≤ 1.15",
    )  # fmt: skip


def taught_copies(backbone: Backbone) -> list[Query]:
    """Ten categories under copies of one adapter."""
    adapter = _taught(backbone)
    return [Query((name,), replace(adapter, category=name, prompts=(name,))) for name in NAMES]


def _taught(backbone: Backbone) -> Adapter:
    """The cat of the kitten's photo."""
    mask = _rgb("kitten_mask.png").any(axis=2)
    tuning = CategoryTuning(
        backbone,
        [make_shot(backbone, _rgb("kitten.jpg"), mask)],
        ["cat"],
        others=Prompts.of((), taken=["cat"]),
        layers=backbone.default_layers,
        recipe=TUNED,
    )
    tuning.step()
    return finished(select(tuning)).adapter(tuning, "cat", version=1, created_at="")


def _rgb(name: str) -> np.ndarray:
    with Image.open(EXAMPLES / name) as file:
        return np.array(file.convert("RGB"))
