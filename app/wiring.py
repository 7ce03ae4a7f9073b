"""Construction of the running service from the settings, for the HTTP server and the worker. No other file does it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import app
from app import backbones
from app.backbones.shared.family import Family
from app.errors import InvalidInputError
from app.method.backbone import Backbone
from app.method.crf import IS_COMPILED
from app.method.prompts import BACKGROUND_WORDS
from app.method.tuning import PAPER, TUNED, Recipe
from app.metrics import Metrics
from app.services.adapter_cache import AdapterCache
from app.services.categories import Categories
from app.services.category_lookup import CategoryLookup
from app.services.clicking import Clicking
from app.services.health import Health
from app.services.idempotency import Idempotency
from app.services.image_cache import ImageCache
from app.services.job_engine import JobEngine
from app.services.labelling.annotations import Annotations
from app.services.labelling.changes import Changes
from app.services.labelling.label_studio import LabelStudio
from app.services.labelling.photos import LabelStudioClient
from app.services.lane import Lane
from app.services.memory import give_back_now_and_then
from app.services.models import Model, Models, check_layers
from app.services.photo_memory import PhotoMemory
from app.services.photo_reader import PhotoReader
from app.services.ranking import Ranking
from app.services.segmentation import Segmentation
from app.services.teaching import Teaching
from app.services.tuning_job import TuningJob
from app.settings import Settings
from app.storage.annotation_changes import AnnotationChanges
from app.storage.annotations import AnnotationStore
from app.storage.categories import CategoryStore
from app.storage.connection import Client, StoreError, connect, connect_with_breaker, patience
from app.storage.idempotency import IdempotencyStore
from app.storage.jobs import MAX_STREAMS, JobStore
from app.storage.layers import LayerStore
from app.storage.queue import JobQueue
from app.storage.rankings import RankingStore
from app.storage.rate_limits import RateLimits, rate_limits
from app.storage.server import EmbeddedServer
from app.storage.unreadable import RECORD_KINDS, Unreadable

# Pause before a failed worker is restarted, so that an error that recurs at once does not fill the log.
_WORKER_PAUSE_S = 1.0

# Changes of annotations that wait to be learnt; those that came together count as one.
_MOST_CHANGES, _MOST_CHANGES_BYTES = 1000, 64 * 2**20

# An event stream outlives the restart of a killed embedded server, but does not wait for a store that is away.
_STREAMS_RESTART_S = 1.0

# Pause before the memory is filled again, if the store was away.
_FILL_PAUSE_S = 2.0

# Time after which a task that was cancelled and goes on is cancelled again; giving a job back takes less.
_SWALLOWED_S = 30.0

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """The parts of the running service: those that routes call, and those that a test looks into."""

    settings: Settings
    metrics: Metrics
    redis: Client
    models: Models
    categories: Categories
    jobs: JobStore
    engine: JobEngine
    segmentation: Segmentation
    clicking: Clicking
    teaching: Teaching
    tuning_job: TuningJob
    ranking: Ranking
    health: Health
    photos: PhotoReader
    idempotency: Idempotency
    rate_limits: RateLimits | None
    label_studio: LabelStudio
    label_changes: Changes


@asynccontextmanager
async def service(settings: Settings, *, loaded: Sequence[Backbone] | None = None) -> AsyncIterator[Service]:
    """Start the parts of the service in order, and stop them in reverse order.

    Args:
        settings: Settings of this process.
        loaded: Backbones to use instead of those named in the settings, for programs that have already loaded them.

    Raises:
        AppError: If a part can't be started; the sentence says what to do.
    """
    metrics = Metrics(categories=settings.metrics_categories)
    metrics.build_info.labels(app.__version__).set(1)
    async with AsyncExitStack() as stack:
        url = settings.redis_url or await _embedded_server(settings, stack)
        outages = _Outages(metrics)
        client = await stack.enter_async_context(connect_with_breaker(url, on_change=outages.note))
        streams = await stack.enter_async_context(connect(url, connections=MAX_STREAMS, restart_s=_STREAMS_RESTART_S))
        queue = await stack.enter_async_context(
            JobQueue(url, record_ttl_s=settings.job_ttl_s, on_drop=metrics.dropped_messages.inc)
        )
        # Only the lanes' threads compute in parallel; all other threads of the process compute alone. A new thread gets
        # the number that was set last. OpenMP keeps a team for every thread that computes in parallel; if all teams
        # together have more members than there are cores, the members sleep between operations: 1,800 times per photo,
        # which took a third more time.
        torch.set_num_threads(1)
        for kind in RECORD_KINDS:
            metrics.unreadable.labels(kind)
        unreadable = Unreadable(lambda kind, number: metrics.unreadable.labels(kind).set(number))
        layer_store = LayerStore(client, unreadable=unreadable)
        models = Models(
            layer_store=layer_store,
            layers=settings.layer_numbers,
            max_bytes=settings.backbone_memory_bytes,
            metrics=metrics,
        )
        for load in [partial(_itself, backbone) for backbone in loaded or ()] or backbone_loaders(settings):
            backbone = await asyncio.to_thread(load)
            lane = stack.enter_context(_lane(backbone, settings, metrics))
            models.add(Model(backbone, lane, load))
            if backbone.device.startswith("cuda"):
                _watch_gpu(backbone.device, metrics)
            del backbone  # no other reference, so that unloading the model frees its memory
        torch.set_num_threads(1)
        jobs = JobStore(client, streams, ttl_s=settings.job_ttl_s, unreadable=unreadable)
        store = CategoryStore(
            client,
            versions_kept=settings.versions_kept,
            max_examples=settings.max_examples,
            max_prompts=settings.max_prompts,
            job_ttl_s=settings.job_ttl_s,
            unreadable=unreadable,
        )
        engine = JobEngine(
            queue,
            jobs,
            concurrency=settings.job_concurrency,
            redelivery_s=settings.job_redelivery_s,
            metrics=metrics,
            guard=client.guard,
        )
        recipe = recipe_of(settings)
        background = settings.background_words or BACKGROUND_WORDS
        lookup = CategoryLookup(store, most=settings.max_categories, metrics=metrics)
        cache = AdapterCache(store, max_bytes=settings.adapter_cache_bytes, metrics=metrics)
        images = ImageCache(max_bytes=settings.image_cache_bytes, metrics=metrics)
        segmentation = Segmentation(
            models,
            lookup,
            cache,
            images,
            background=background,
            min_presence=settings.min_presence,
            use_mask_decoder=uses_mask_decoder(settings),
            use_tiles=settings.tiles,
            metrics=metrics,
        )
        clicking = Clicking(models, images, use_mask_decoder=uses_mask_decoder(settings), metrics=metrics)
        teaching = Teaching(store, jobs, engine, steps=recipe.steps)
        photos = PhotoReader(
            PhotoMemory(max_bytes=settings.photo_memory_bytes, metrics=metrics),
            max_pixels=settings.max_image_pixels,
            side_by_side=_cores(),
        )
        label_studio = LabelStudioClient(
            url=settings.label_studio_url,
            token=settings.label_studio_token,
            hosts=settings.label_studio_photo_hosts,
            max_bytes=settings.max_upload_bytes,
        )
        stack.push_async_callback(label_studio.close)
        live = Service(
            settings=settings,
            metrics=metrics,
            redis=client,
            models=models,
            categories=Categories(store, engine, models, max_prompts=settings.max_prompts),
            jobs=jobs,
            engine=engine,
            segmentation=segmentation,
            clicking=clicking,
            teaching=teaching,
            tuning_job=TuningJob(
                models,
                store,
                engine,
                recipe=recipe,
                background=background,
                max_pixels=settings.max_image_pixels,
                metrics=metrics,
            ),
            ranking=Ranking(
                models,
                store,
                jobs,
                engine,
                layer_store,
                RankingStore(client),
                photos,
                background=background,
                max_categories=settings.max_categories,
            ),
            health=Health(client, models, metrics, unreadable),
            photos=photos,
            idempotency=Idempotency(IdempotencyStore(client)),
            rate_limits=await stack.enter_async_context(rate_limits(url, settings.rate_limit)),
            label_studio=LabelStudio(
                segmentation,
                clicking,
                lookup,
                models,
                label_studio,
                photos,
                min_presence=settings.min_presence,
            ),
            label_changes=Changes(
                AnnotationChanges(client, most=_MOST_CHANGES, most_bytes=_MOST_CHANGES_BYTES),
                Annotations(AnnotationStore(client), store, teaching, label_studio, photos),
                label_studio,
            ),
        )
        await stack.enter_async_context(_in_background(models.warm_up(), "warm-up"))
        await stack.enter_async_context(_in_background(_fill_memory(lookup, models), "memory"))
        await stack.enter_async_context(_in_background(live.health.watch(), "health"))
        await stack.enter_async_context(_in_background(give_back_now_and_then(), "memory-give-back"))
        await stack.enter_async_context(_in_background(_recover_after(outages, engine), "recovery"))
        await stack.enter_async_context(
            _in_background(_unending(live.label_changes.work, "label-studio"), "label-studio")
        )
        with patience():
            try:
                await engine.recover()
            except StoreError as error:  # it went away after the start: the worker's sweep finds those jobs
                _log.warning("jobs that were not queued are looked for later: %s", error)
            if settings.worker:
                await stack.enter_async_context(_in_background(_unending(engine.work, "worker"), "worker"))
        yield live


def backbone_loaders(settings: Settings) -> list[Callable[[], Backbone]]:
    """Functions that load the backbones named in the settings, the default first.

    A loader raises InvalidInputError if its model can't be loaded or lacks a layer named in the settings.

    Raises:
        InvalidInputError: If no backbone is named, or the device can't be used.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not settings.backbone_specs:
        raise InvalidInputError(f"EXEMPLAR_BACKBONE is empty: set it to one of {', '.join(backbones.families())}.")
    try:
        torch.empty(0, device=device)
        dtype = fastest_dtype(device) if settings.dtype == "auto" else settings.dtype
    except (RuntimeError, AssertionError) as error:  # no such device; a build without CUDA
        raise _unusable(settings, error) from error
    if device == "cpu" and not IS_COMPILED:
        _log.warning("ConvCRF is not compiled and takes several times as long: install g++ and then Exemplar again")
    return [partial(_load, spec, settings, device, dtype) for spec in settings.backbone_specs]


def family_list() -> list[Family]:
    """Descriptions of all backbone families."""
    return [backbones.about(family) for family in backbones.families()]


def _load(spec: str, settings: Settings, device: str, dtype: str) -> Backbone:
    _log.info("loading %s on %s in %s", spec, device, dtype)
    try:
        backbone = backbones.load(spec, device=device, dtype=dtype)
    except RuntimeError as error:  # of the device: what is wrong with the model is an InvalidInputError
        raise _unusable(settings, error) from error
    check_layers(backbone, settings.layer_numbers)
    return backbone


def _unusable(settings: Settings, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"EXEMPLAR_DEVICE={settings.device} can't be used: {str(error).splitlines()[0]}")


def _itself(backbone: Backbone) -> Backbone:
    return backbone


def fastest_dtype(device: str) -> str:
    """bfloat16 where the device multiplies matrices of it in hardware, else float32.

    The flags decide, not a measurement: replicas on machines of one kind must give the same masks, under load too.
    """
    if torch.device(device).type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = torch.cpu.get_capabilities()
        has = any(flags.get(flag, False) for flag in ("amx_bf16", "avx512_bf16"))
    chosen = "bfloat16" if has else "float32"
    _log.info("%s: %s %s bfloat16 in hardware", chosen, device, "multiplies" if has else "does not multiply")
    return chosen


def compute_threads(settings: Settings) -> int:
    """Threads of one tensor operation of a model: the setting, or else the number of usable cores."""
    return settings.threads or _cores()


def _cores() -> int:
    """Number of usable cores: those that this process is bound to, or fewer by a container's limit (Linux cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))


def recipe_of(settings: Settings) -> Recipe:
    """The tuning recipe: the configuration with the best measured quality, or that of the paper."""
    recipe = TUNED if settings.method == "tuned" else PAPER
    return replace(recipe, steps=settings.tune_steps) if settings.tune_steps else recipe


def uses_mask_decoder(settings: Settings) -> bool:
    """True if the mask decoder of a backbone is used; the paper has none."""
    return settings.method == "tuned"


def _lane(backbone: Backbone, settings: Settings, metrics: Metrics) -> Lane:
    threads = compute_threads(settings)
    # Two requests keep a GPU busy: the photo of one is prepared while that of the other is computed.
    side_by_side = threads if backbone.device == "cpu" else 2
    return Lane(backbone.name, limit=settings.queue_limit, threads=threads, side_by_side=side_by_side, metrics=metrics)


def _watch_gpu(device: str, metrics: Metrics) -> None:
    """Report the memory and utilisation of a GPU whenever the metrics are read."""
    metrics.gpu_memory.labels(device).set_function(partial(torch.cuda.memory_allocated, device))
    # torch.cuda.utilization needs NVIDIA's library, in the extra `gpu`; a slice of a GPU may have no utilisation.
    if find_spec("pynvml") and not math.isnan(_gpu_utilization(device)):
        metrics.gpu_utilization.labels(device).set_function(partial(_gpu_utilization, device))


def _gpu_utilization(device: str) -> float:
    """Share of the last second in which the GPU was busy; NaN if the driver does not tell it."""
    try:
        return torch.cuda.utilization(device) / 100
    except Exception as error:  # of one of three kinds; whichever it is, it must not end the reading of all metrics
        _log.debug("the utilisation of %s can't be read: %s", device, error)
        return math.nan


async def _embedded_server(settings: Settings, stack: AsyncExitStack) -> str:
    server = await asyncio.to_thread(EmbeddedServer.start, settings.data_dir)
    stack.push_async_callback(asyncio.to_thread, server.stop)
    _log.info("embedded server at %s", server.url)
    return server.url


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run a coroutine while the body runs; then cancel it and wait for its end."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda done: _tell(done, name))
    try:
        yield
    finally:
        task.cancel()
        # Once more, if a command of the store has swallowed it (see `renewing`).
        while not (await asyncio.wait([task], timeout=_SWALLOWED_S))[0]:
            task.cancel()


class _Outages:
    """Tells the metrics and the log of outages of the store, and others of their ends."""

    def __init__(self, metrics: Metrics) -> None:
        self.ended = asyncio.Event()
        self._metrics = metrics

    def note(self, reason: str | None) -> None:
        """Record that the store is away, for this reason, or back."""
        self._metrics.store_away(reason is not None)
        if reason is not None:
            _log.error("the store is away (%s): until it answers, requests do not wait for it", reason)
        else:
            _log.info("the store answers again")
            self.ended.set()


async def _recover_after(outages: _Outages, engine: JobEngine) -> None:
    """Queue what an outage kept from the queue: the store may execute a command whose caller no longer waits for it."""
    while True:
        await outages.ended.wait()
        outages.ended.clear()
        with suppress(StoreError):  # the end of the next outage brings the next try
            await engine.recover()


async def _fill_memory(lookup: CategoryLookup, models: Models) -> None:
    """Read what requests need while the store is away; if it is away already, when it is back."""
    while True:
        try:
            # More categories than one request may have can't be listed: those asked for are remembered.
            with suppress(InvalidInputError):
                await lookup.taught()
            for model in models:
                await models.layers_of(model)
        except StoreError:
            await asyncio.sleep(_FILL_PAUSE_S)
        else:
            return


async def _unending(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """Run some work and restart it whenever it ends; otherwise what waits for it would until the service restarts."""
    while True:
        try:
            await work()
        except Exception:  # any error is logged, and the work goes on
            _log.exception("%s ended and is restarted", name)
        await asyncio.sleep(_WORKER_PAUSE_S)


def _tell(task: asyncio.Task[None], name: str) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("%s ended: %s", name, error, exc_info=error)
