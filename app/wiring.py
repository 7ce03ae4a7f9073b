"""Construction of the running service from the settings, for the HTTP server and the worker. No other file does it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from docket import Docket
from torch.utils.benchmark import Timer

import app
from app import backbones
from app.backbones.shared.family import Family
from app.errors import InvalidInputError
from app.method.backbone import Backbone
from app.method.prompts import BACKGROUND_WORDS
from app.method.tuning import PAPER, TUNED, Recipe
from app.metrics import Metrics
from app.services.adapter_cache import AdapterCache
from app.services.categories import Categories
from app.services.health import Health
from app.services.idempotency import Idempotency
from app.services.image_cache import ImageCache
from app.services.job_engine import JobEngine
from app.services.lane import Lane
from app.services.models import Model, Models, check_layers
from app.services.photo_memory import PhotoMemory
from app.services.ranking import Ranking
from app.services.segmentation import Segmentation
from app.services.teaching import Teaching
from app.services.tuning_job import TuningJob
from app.settings import Settings
from app.storage.categories import CategoryStore
from app.storage.connection import Client, connect
from app.storage.idempotency import IdempotencyStore
from app.storage.jobs import MAX_STREAMS, JobStore
from app.storage.layers import LayerStore
from app.storage.rankings import RankingStore
from app.storage.server import EmbeddedServer

# Pause before a failed worker is restarted, so that an error that recurs at once does not fill the log.
_WORKER_PAUSE_S = 1.0

# Matrix products that measure which number format is faster. They are small, because a CPU without bfloat16 takes 100
# times as long.
_TRIED_SIZE = 256
_TRIES = 3
# A smaller gain is not worth the lower precision.
_WORTHWHILE_GAIN = 1.5

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """The parts of the running service that routes may call."""

    settings: Settings
    metrics: Metrics
    redis: Client
    models: Models
    categories: Categories
    jobs: JobStore
    engine: JobEngine
    segmentation: Segmentation
    teaching: Teaching
    tuning_job: TuningJob
    ranking: Ranking
    health: Health
    photo_memory: PhotoMemory
    idempotency: Idempotency


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
        client = await stack.enter_async_context(connect(url))
        streams = await stack.enter_async_context(connect(url, connections=MAX_STREAMS))
        docket = await stack.enter_async_context(
            Docket(name="exemplar:docket", url=url, execution_ttl=timedelta(seconds=settings.job_ttl_s))
        )
        # Only the lanes' threads compute in parallel; all other threads of the process compute alone. A new thread gets
        # the number that was set last. OpenMP keeps a team for every thread that computes in parallel; if all teams
        # together have more members than there are cores, the members sleep between operations: 1,800 times per photo,
        # which took a third more time.
        torch.set_num_threads(1)
        layer_store = LayerStore(client)
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
        jobs = JobStore(client, streams, ttl_s=settings.job_ttl_s)
        store = CategoryStore(
            client,
            versions_kept=settings.versions_kept,
            max_examples=settings.max_examples,
            job_ttl_s=settings.job_ttl_s,
        )
        engine = JobEngine(
            docket,
            jobs,
            concurrency=settings.job_concurrency,
            redelivery_s=settings.job_redelivery_s,
            metrics=metrics,
        )
        recipe = recipe_of(settings)
        background = settings.background_words or BACKGROUND_WORDS
        cache = AdapterCache(store, max_bytes=settings.adapter_cache_bytes, metrics=metrics)
        live = Service(
            settings=settings,
            metrics=metrics,
            redis=client,
            models=models,
            categories=Categories(store, engine, models),
            jobs=jobs,
            engine=engine,
            segmentation=Segmentation(
                models,
                store,
                cache,
                ImageCache(max_bytes=settings.image_cache_bytes, metrics=metrics),
                background=background,
                max_categories=settings.max_categories,
                min_presence=settings.min_presence,
                use_mask_decoder=uses_mask_decoder(settings),
                use_tiles=settings.tiles,
                metrics=metrics,
            ),
            teaching=Teaching(store, jobs, engine, steps=recipe.steps),
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
                background=background,
                max_pixels=settings.max_image_pixels,
            ),
            health=Health(client, models, metrics),
            photo_memory=PhotoMemory(max_bytes=settings.photo_memory_bytes, metrics=metrics),
            idempotency=Idempotency(IdempotencyStore(client)),
        )
        await stack.enter_async_context(_in_background(models.warm_up(), "warm-up"))
        await engine.recover()
        if settings.worker:
            await stack.enter_async_context(_in_background(_unending(engine.work), "worker"))
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
    return [partial(_load, spec, settings, device, dtype) for spec in settings.backbone_specs]


def family_list() -> list[Family]:
    """Descriptions of all backbone families."""
    return [backbones.about(family) for family in backbones.families()]


def _load(spec: str, settings: Settings, device: str, dtype: str) -> Backbone:
    _log.info("loading %s on %s in %s", spec, device, dtype)
    try:
        backbone = backbones.load(spec, device=device, dtype=dtype)
    except RuntimeError as error:
        raise _unusable(settings, error) from error
    check_layers(backbone, settings.layer_numbers)
    return backbone


def _unusable(settings: Settings, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"EXEMPLAR_DEVICE={settings.device} can't be used: {str(error).splitlines()[0]}")


def _itself(backbone: Backbone) -> Backbone:
    return backbone


def fastest_dtype(device: str) -> str:
    """bfloat16 if matrix products on the device are at least 1.5 times as fast as in float32, else float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(_TRIED_SIZE, _TRIED_SIZE, device=device, dtype=dtype)
        timer = Timer("square @ square", globals={"square": square})
        seconds[dtype] = timer.timeit(_TRIES).median
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    chosen = "bfloat16" if gain >= _WORTHWHILE_GAIN else "float32"
    _log.info("%s: on %s matrix products in bfloat16 are %.2g times as fast as in float32", chosen, device, gain)
    return chosen


def compute_threads(settings: Settings) -> int:
    """Threads of one tensor operation of a model: the setting, or else the number of usable cores."""
    return settings.threads or _cores()


def _cores() -> int:
    """Number of usable cores. Unlike `os.cpu_count` it respects the CPU limit of a container (Linux cgroup 2)."""
    cores = os.cpu_count() or 1
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
    if find_spec("pynvml"):  # NVIDIA's library, in the extra `gpu`; torch.cuda.utilization needs it
        metrics.gpu_utilization.labels(device).set_function(lambda: torch.cuda.utilization(device) / 100)


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
        await asyncio.wait([task])


async def _unending(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the worker and restart it whenever it ends; otherwise jobs would wait until the service restarts."""
    while True:
        try:
            await work()
        except Exception:  # any error is logged, and the worker is restarted
            _log.exception("the worker ended and is restarted")
        await asyncio.sleep(_WORKER_PAUSE_S)


def _tell(task: asyncio.Task[None], name: str) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("%s ended: %s", name, error, exc_info=error)
