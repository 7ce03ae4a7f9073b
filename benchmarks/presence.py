"""Benchmark of presence: time of a photo with ten taught categories, with presence and its bound over without."""

from __future__ import annotations

from collections.abc import Sequence

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
from app.storage.adapter_file import adapter_from_bytes, adapter_to_bytes
from app.storage.jobs import now

from .copies import varied
from .measure import Row, seconds, text_ms

NAMES = ("cat", "dog", "giraffe", "cup", "person", "sofa", "tree", "car", "horse", "chair")
# The network does not know this word, so that the adapter keeps parameters as well as a memory for the masks.
_WORD = "taught"


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


def taught_copies(backbone: Backbone, names: Sequence[str] = NAMES) -> list[Query]:
    """Categories under adapters as the service reads them: each with its own tensors, on the CPU."""
    adapter = _taught(backbone)
    files = [adapter_to_bytes(varied(adapter, name, seed)) for seed, name in enumerate(names)]
    return [Query((name,), adapter_from_bytes(raw)) for name, raw in zip(names, files, strict=True)]


def _taught(backbone: Backbone) -> Adapter:
    """The cat of the kitten's photo, taught as the service teaches it."""
    mask = _rgb("kitten_mask.png").any(axis=2)
    tuning = CategoryTuning(
        backbone,
        [make_shot(backbone, _rgb("kitten.jpg"), mask)],
        [_WORD],
        others=Prompts.of((), taken=[_WORD]),
        layers=backbone.default_layers,
        recipe=TUNED,
    )
    for _ in range(TUNED.steps):
        tuning.step()
    adapter = finished(select(tuning)).adapter(tuning, _WORD, version=1, created_at=now())
    assert adapter.parameters, "without parameters no low-rank attention is measured"
    assert adapter.mask_memory, "without it no memory is measured"
    return adapter


def _rgb(name: str) -> np.ndarray:
    with Image.open(EXAMPLES / name) as file:
        return np.array(file.convert("RGB"))
