"""Protocol `one-shot`: an adapter per class, each tuned alone from its supports, as the service does."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from app.method.adapter import Adapter
from app.method.pieces import finished
from app.method.prompts import Prompts, Query
from app.method.selection import may_keep_parameters, select
from app.method.tuning import COMPETING_CATEGORIES, CategoryTuning

from .dataset import LabelledPhoto
from .subject import Predict, Subject


def one_shot(subject: Subject, supports: Mapping[int, Sequence[LabelledPhoto]]) -> Predict:
    """Prediction with every class of the supports taught."""
    taught = adapters(subject, supports)
    return lambda photo, asked: subject.predict(photo, asked, taught)


def adapters(subject: Subject, supports: Mapping[int, Sequence[LabelledPhoto]]) -> dict[int, Adapter]:
    """An adapter per class."""
    tuned: dict[int, Adapter] = {}
    for step, (number, photos) in enumerate(supports.items()):
        subject.progress(step, len(supports), "tuning")
        tuned[number] = _tune(subject, number, photos)
    return tuned


def _tune(subject: Subject, number: int, photos: Sequence[LabelledPhoto]) -> Adapter:
    classes, recipe = subject.dataset.classes, subject.options.recipe
    names = [other for index, other in enumerate(classes) if index not in (0, number)]
    competing = random.Random(number).sample(names, min(COMPETING_CATEGORIES, len(names)))
    tuning = CategoryTuning(
        subject.backbone,
        [subject.shot(photo, number) for photo in photos],
        [classes[number]],
        others=Prompts.of([Query((name,)) for name in competing], subject.options.background, taken=[classes[number]]),
        layers=subject.layers,
        recipe=recipe,
    )
    for _ in range(recipe.steps if may_keep_parameters(tuning) else 0):
        tuning.step()
    return finished(select(tuning)).adapter(tuning, classes[number], version=1, created_at="")
