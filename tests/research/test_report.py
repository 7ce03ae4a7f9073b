"""The pictures that `evaluate` draws."""

from __future__ import annotations

import numpy as np

from app.method.backbone import Backbone
from app.research.dataset import Dataset
from app.research.evaluation import Case, Evaluation
from app.research.report import as_picture
from app.research.subject import Options


def test_cases_are_drawn_a_row_each(dataset: Dataset, embedded: Backbone) -> None:
    evaluation = Evaluation(embedded, dataset, Options(crf=False), lambda step, steps, activity: None)
    evaluation.run()
    sheet = as_picture(evaluation.cases(3), dataset.classes, height=101)
    assert sheet.height == 3 * 101
    assert sheet.width > 3 * 101 * 0.6, "the photo, the truth and what the words found beside each other"


def test_a_photo_as_thin_as_a_line_is_drawn() -> None:
    thin = np.zeros((10_000, 20, 3), np.uint8)
    sheet = as_picture([Case(thin, 0.5, {"truth": np.zeros((10_000, 20), np.uint8)})], ("background", "rope"))
    assert sheet.size == (2, 240)
