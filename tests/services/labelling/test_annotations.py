"""Annotations that can't be taught: what they taught before is only deleted where it has to make room."""

from __future__ import annotations

import base64
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np
import pytest

from app.errors import ConflictError, FullCategoryError
from app.masks.brush import mask_to_brush
from app.services.labelling.annotations import Annotations, Marked
from app.services.teaching import NewExample
from app.storage.jobs import Job
from app.wiring import Service
from tests.images.cases import COLOURED, HW, file_of
from tests.services.conftest import Wire

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">'
    '<Label value="cat"/><Label value="dog"/></BrushLabels></View>'
)
PHOTO = "data:image/png;base64," + base64.b64encode(file_of(COLOURED)).decode()


def marked(labels: Collection[str], *, side_px: int) -> Marked:
    """An annotation with a square of each label."""
    mask = np.zeros(HW, bool)
    mask[:side_px, :side_px] = True
    regions = [
        {"from_name": "brush", "value": {"rle": mask_to_brush(mask), "brushlabels": [label]}} for label in labels
    ]
    time = f"2026-01-01T00:00:{side_px:02}Z"
    return Marked(id=1, task=1, data={"image": PHOTO}, regions=regions, config=CONFIG, updated_at=time)


def annotations_of(live: Service) -> Annotations:
    return live.label_changes._annotations


async def areas(live: Service, name: str) -> list[int]:
    return [info.area for info in await live.teaching._categories.example_infos(name)]


def refusing(live: Service, error: ConflictError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cats can't be taught from now on."""
    teach = live.teaching.teach

    async def refused(an_example: NewExample, **options: Any) -> Any:
        if an_example.name.text == "cat":
            raise error
        return await teach(an_example, **options)

    monkeypatch.setattr(live.teaching, "teach", refused)


def without_worker(wire: Wire, **settings: Any) -> AbstractAsyncContextManager[Service]:
    return wire(worker=False, **settings)


async def test_a_category_that_is_full_has_the_correction_in_the_place_of_what_it_corrects(wire: Wire) -> None:
    async with without_worker(wire, max_examples=1) as live:
        await annotations_of(live).learn(marked(["cat"], side_px=3))
        await annotations_of(live).learn(marked(["cat"], side_px=5))
        assert await areas(live, "cat") == [25]


async def test_a_correction_that_marks_all_of_the_photo_is_told(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    async with without_worker(wire) as live:
        await annotations_of(live).learn(marked(["cat"], side_px=3))
        await annotations_of(live).learn(marked(["cat"], side_px=max(HW)))
        assert await areas(live, "cat") == []
    assert "the regions of the label cat are no example: they mark all of the photo" in caplog.text


async def test_a_category_that_cannot_be_read_keeps_its_examples_and_no_other_label_waiting(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with without_worker(wire) as live:
        await annotations_of(live).learn(marked(["cat"], side_px=3))
        with monkeypatch.context() as until_it_is_mended:
            refusing(live, ConflictError("What is stored of the category 'cat' can't be read."), until_it_is_mended)
            await annotations_of(live).learn(marked(["cat", "dog"], side_px=5))
        assert (await areas(live, "cat"), await areas(live, "dog")) == ([9], [25])
        assert "the label cat of an annotation is not taught: What is stored" in caplog.text
        await annotations_of(live).learn(marked(["cat", "dog"], side_px=7))
        assert (await areas(live, "cat"), await areas(live, "dog")) == ([49], [49])


async def test_a_category_that_is_deleted_while_a_correction_is_taught_stays_deleted(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with without_worker(wire) as live:
        await annotations_of(live).learn(marked(["cat"], side_px=3))
        add = live.engine.add
        deleted = []

        async def deletes_the_category(job: Job) -> None:
            await add(job)
            if not deleted:
                deleted.append(await live.teaching._categories.delete("cat"))

        monkeypatch.setattr(live.engine, "add", deletes_the_category)
        await annotations_of(live).learn(marked(["cat"], side_px=5))
        assert deleted
        assert await areas(live, "cat") == []
        await annotations_of(live).forget(1)


def test_a_full_category_is_a_conflict_for_everybody_else() -> None:
    error = FullCategoryError("full")
    assert isinstance(error, ConflictError)
    assert (error.status, error.title) == (ConflictError.status, ConflictError.title)
