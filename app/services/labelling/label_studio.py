"""Label Studio's ML backend: predictions for its tasks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from app.errors import AppError, InvalidInputError
from app.masks import MalformedMaskError
from app.services.batch import as_ready, patiently
from app.services.category_lookup import CategoryLookup
from app.services.clicking import Clicking
from app.services.models import Models
from app.services.photo_reader import PhotoReader
from app.services.segmentation import Segmentation, SegmentationRequest, Segmented

from .config import Control, categories_of, controls_of
from .interactive import drawn_in, prompts_of
from .photos import LabelStudioClient
from .regions import Json, regions_of

# Label Studio waits 100 seconds for the predictions of all tasks that it sends. After this time only the first one is
# answered: Label Studio then asks for each task alone.
_ANSWER_S = 45.0

_AT_ONCE = 2

_log = logging.getLogger(__name__)


class LabelStudio:
    """Answers Label Studio's calls.

    Args:
        segmentation: Segments photos.
        clicking: Proposes what a person points at.
        lookup: Looks categories up.
        models: The loaded backbones.
        client: Reads photos.
        photos: Decodes photos.
        min_presence: As in `Segmentation`; predictions depend on it.
    """

    def __init__(
        self,
        segmentation: Segmentation,
        clicking: Clicking,
        lookup: CategoryLookup,
        models: Models,
        client: LabelStudioClient,
        photos: PhotoReader,
        *,
        min_presence: float,
    ) -> None:
        self._segmentation = segmentation
        self._clicking = clicking
        self._lookup = lookup
        self._models = models
        self._client = client
        self._photos = photos
        self._min_presence = min_presence
        self._config = "<View/>"  # of the project that was set up last

    async def set_up(self, config: str, *, hostname: str, token: str) -> str:
        """Get to know a project; return the version of its predictions.

        Raises:
            InvalidInputError: If the config can't be used.
        """
        version = await self.version(controls_of(config))
        self._config = config
        self._client.meet(hostname, token)
        return version

    async def versions(self) -> list[str]:
        """Version of the predictions for the project that was set up last."""
        return [await self.version(controls_of(self._config))]

    async def version(self, controls: tuple[Control, ...]) -> str:
        """Version of the predictions: it changes with the model and with every adapter of these controls.

        Raises:
            InvalidInputError: If they have more labels than one request may have categories.
        """
        names = categories_of(controls)
        found = await self._lookup.named([name.id for name in names], field="label_config")
        adapters = [
            (name.id, *((record.adapter.version, record.adapter_sha256) if record and record.adapter else ()))
            for name, record in zip(names, found.records, strict=True)
        ]
        facts = json.dumps([self._models.default.info.revision, self._min_presence, sorted(adapters)])
        return f"exemplar-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

    async def predict(
        self, tasks: Sequence[Mapping[str, Any]], config: str, params: Mapping[str, Any] | None = None
    ) -> list[Json | list[Json]]:
        """Predictions for some tasks, in order: what was found in their photos, under all controls that mark areas.

        A task whose photo can't be read has no prediction. If they take too long, there is only the first.

        Args:
            tasks: Each with its `data`.
            config: Label config of their project.
            params: With what a person drew on the photo of the only task, if the prediction is to follow that.

        Raises:
            InvalidInputError: If the config can't be used.
            AppError: If no task has a photo that can be read.
        """
        controls = controls_of(config)
        version = await self.version(controls)
        self._segmentation.admit(SegmentationRequest())
        drawn = drawn_in(params)
        results: dict[int, Json | list[Json]] = {}
        problems: list[AppError] = []

        async def one(index: int, task: Mapping[str, Any]) -> None:
            try:
                predict = partial(self._proposal, drawn) if drawn else self._prediction
                results[index] = await predict(task, controls, version)
            except AppError as error:
                _log.warning("task %s has no prediction: %s", task.get("id"), error)
                problems.append(error)
                results[index] = []  # Label Studio stores nothing for it, and asks again

        started = time.monotonic()
        calls = (partial(one, index, task) for index, task in enumerate(tasks))
        async with aclosing(as_ready(calls, at_once=_AT_ONCE)) as ready:
            async for _ in ready:
                if time.monotonic() - started > _ANSWER_S and 0 in results:
                    break
        if problems and len(problems) == len(tasks):
            raise problems[0]
        return [results[index] for index in range(len(tasks))] if len(results) == len(tasks) else [results[0]]

    async def _prediction(self, task: Mapping[str, Any], controls: tuple[Control, ...], version: str) -> Json:
        regions: list[Json] = []
        scores = [0.0]
        for address, of_photo in _by_address(task, controls).items():
            segmented = await self._segment(address, tuple(of_photo))
            regions += await asyncio.to_thread(_regions, segmented, of_photo)
            scores += [round(found.presence, 4) for found in segmented.categories]
        return {"result": regions, "score": max(scores), "model_version": version}

    async def _proposal(
        self, drawn: Sequence[Mapping[str, Any]], task: Mapping[str, Any], controls: tuple[Control, ...], version: str
    ) -> Json:
        """What a person points at in a task's photo, instead of what is found in it."""
        regions: list[Json] = []
        for address, of_photo in _by_address(task, controls).items():
            regions += await patiently(partial(self._propose, await self._client.photo(address), drawn, of_photo))
        scores = [0.0, *(region["score"] for region in regions)]
        return {"result": regions, "score": max(scores), "model_version": version}

    async def _propose(self, raw: bytes, drawn: Sequence[Mapping[str, Any]], controls: Sequence[Control]) -> list[Json]:
        with self._photos.request() as reader:
            photo = await reader.photo(raw, field="tasks")
            try:
                photo_hw = (photo.rgb.shape[0], photo.rgb.shape[1])
                prompts = await asyncio.to_thread(prompts_of, drawn, controls, photo_hw)
            except MalformedMaskError as error:
                raise InvalidInputError(f"What was drawn can't be used: {error}.", field="params") from error
            regions = []
            for prompt in prompts:
                clicked = await self._clicking.propose(photo, prompt.points)
                if (mask := prompt.cut(clicked.mask)).any():
                    score = round(clicked.mean_probability, 4)
                    write = partial(regions_of, prompt.control, prompt.label, mask, score=score)
                    regions += await asyncio.to_thread(write)
            return regions

    async def _segment(self, address: str, controls: tuple[Control, ...]) -> Segmented:
        raw = await self._client.photo(address)
        request = SegmentationRequest(categories=categories_of(controls))

        async def once() -> Segmented:
            with self._photos.request() as reader:
                return await self._segmentation.segment(await reader.photo(raw, field="tasks"), request)

        return await patiently(once)


def _by_address(task: Mapping[str, Any], controls: Sequence[Control]) -> dict[str, list[Control]]:
    """The controls by the address of the photo that they mark."""
    data = task.get("data")
    found: dict[str, list[Control]] = {}
    for control in controls:
        if isinstance(data, Mapping) and (address := control.address(data)):
            found.setdefault(address, []).append(control)
    return found


def _regions(segmented: Segmented, controls: Sequence[Control]) -> list[Json]:
    regions = []
    names = {name: found for name, found in zip(categories_of(tuple(controls)), segmented.categories, strict=True)}
    for control in controls:
        for label in control.labels:
            found = names[label.name]
            if found.area:
                regions += regions_of(control, label, found.mask, score=round(found.presence, 4))
    return regions
