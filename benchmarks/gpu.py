"""Benchmark on a GPU: `python -m benchmarks.gpu` prints its tables in at most six minutes.

`--device cpu --quick` tries the script where there is no GPU: the same calls once each, with a small model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from transformers import BertTokenizer, BlipForImageTextRetrieval

from app import backbones
from app.backbones.blip import Blip
from app.backbones.embedded import VOCABULARY
from app.client import Client
from app.demo import running_service
from app.method.backbone import Backbone
from app.method.frame import imagenet_normalise
from app.method.pieces import finished
from app.method.pipeline import Pipeline, Rgb, encode_one
from app.method.prediction import Prediction
from app.method.prompts import Prompts, Query
from app.method.refinement import crf
from app.method.selection import select
from app.method.shot import Shot
from app.method.tuning import TUNED, CategoryTuning
from app.settings import Settings

from . import plain
from .measure import matmul_flops, percentile, seconds, text_ms, wait_for
from .method import LAYERS, VOC, blip_large, blip_small, photo, tower_operations
from .presence import taught_copies
from .service import photos_of_a_camera, words

_SIZE = 512
_MANY = 1000
_CLIENTS = (1, 16, 64)
# Requests of each client, and at least of all clients of a case together: the 95th percentile of few is their slowest.
_REQUESTS_EACH, _LEAST_REQUESTS = 6, 40
# A tower that reaches less of the peak of matrix products wastes the device.
_TOWER_SHARE = 0.4

Line = tuple[str, str, str]


@dataclass(frozen=True)
class Setting:
    """Where and how much is measured.

    Attributes:
        device: A torch device.
        dtype: Of the models.
        repeats: Of each call; the median counts.
        large: Builds the large random model.
        clients: Numbers of clients at a time.
    """

    device: str
    dtype: torch.dtype
    repeats: int
    large: Callable[[], BlipForImageTextRetrieval]
    clients: Sequence[int]

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time of a call, its work on the device included."""

        def waited() -> None:
            call()
            wait_for(self.device)

        return seconds(waited, repeats=self.repeats)


def main() -> int:
    """Print the tables; exit status 1 without the device, or where the labels are not those of the CPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="a torch device")
    parser.add_argument("--quick", action="store_true", help="every call once, with a small model")
    given = parser.parse_args()
    if _is_cuda(given.device) and not torch.cuda.is_available():
        print("No GPU that torch can use: run it where one is, or with --device cpu --quick.", file=sys.stderr)
        return 1
    setting = Setting(
        given.device, torch.bfloat16, 1 if given.quick else 9, blip_small if given.quick else blip_large,
        _CLIENTS[:1] if given.quick else _CLIENTS,
    )  # fmt: skip
    console = Console(width=140)
    name = torch.cuda.get_device_name(given.device) if _is_cuda(given.device) else "the CPU"
    agreed = True
    for title, lines in (
        ("The embedded model", embedded_lines(setting)),
        ("BLIP-large, random", large_lines(setting)),
        ("The service, ten named categories", service_lines(setting, console)),
    ):
        table = Table("what", "measured", "note", title=f"{title}, bfloat16, on {name}")
        with console.status(title):
            for line in lines:
                table.add_row(*line)
                agreed = agreed and not line[2].startswith("DIFFERENT")
        console.print(table)
    return 0 if agreed else 1


def embedded_lines(setting: Setting) -> Iterator[Line]:
    """Speed, labels, tuning and adapters of the embedded model."""
    backbone = backbones.load("embedded", device=setting.device, dtype=_name(setting.dtype))
    on_cpu = backbones.load("embedded", device="cpu", dtype="float32")
    rgb = photo()
    for count in (len(VOC), _MANY):
        queries = [Query((word,)) for word in (VOC if count == len(VOC) else words(count))]
        spent = setting.seconds(partial(_pipeline(backbone).run, rgb, queries))
        before = seconds(partial(_pipeline(on_cpu).run, rgb, queries), repeats=1)
        yield (
            f"a photo, {count} named categories, CRF", f"{1 / spent:.1f} photos / s",
            f"{before / spent:.1f} × this machine's CPU in float32 ({text_ms(before)})",
        )  # fmt: skip
    queries = [Query((word,)) for word in VOC]
    # Of all names, also of those that presence finds absent.
    yield _agreement(
        Pipeline(backbone, refinement=crf).run(rgb, queries), Pipeline(on_cpu, refinement=crf).run(rgb, queries)
    )
    taught = taught_copies(backbone)
    spent = setting.seconds(partial(_pipeline(backbone).run, rgb, taught))
    yield f"a photo, {len(taught)} taught categories, CRF", f"{1 / spent:.1f} photos / s", ""
    yield "teaching of one category, 20 steps and the choice", text_ms(_tuned(setting, backbone, rgb)), ""
    many = taught_copies(backbone, words(_MANY))
    adapter_bytes = sum(query.adapter.nbytes for query in many if query.adapter)
    if _is_cuda(setting.device):
        torch.cuda.reset_peak_memory_stats(setting.device)
    spent = setting.seconds(partial(_pipeline(backbone).run, rgb, many))
    most = torch.cuda.max_memory_allocated(setting.device) / 2**20 if _is_cuda(setting.device) else 0.0
    yield (
        f"a photo, {_MANY} taught categories, CRF", f"{1 / spent:.1f} photos / s",
        f"adapters {adapter_bytes / 2**20:.0f} MiB; most memory of the device {most:.0f} MiB",
    )  # fmt: skip


def large_lines(setting: Setting) -> Iterator[Line]:
    """Speed of the large model beside the authors' way on the same device."""
    model = setting.large()
    backbone = Blip(
        model, BertTokenizer(vocab=str(VOCABULARY)), input_size=_SIZE, device=setting.device, dtype=setting.dtype
    )
    rgb = photo()
    pixels = F.interpolate(torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255, size=(_SIZE, _SIZE))[0]
    pixels = pixels.to(setting.device, setting.dtype)
    queries = [Query((name,)) for name in VOC]
    pipeline = Pipeline(backbone, layers=LAYERS, refinement=crf, min_relative_score=0.0)
    prompts = Prompts.of(queries)
    text = backbone.tokenize(prompts.words)
    normalised = imagenet_normalise(pixels)

    @torch.no_grad()
    def theirs() -> None:
        found = plain.class_map(model, normalised, text, prompts.spans, LAYERS)
        plain.crf(found.float(), normalised.float())

    before = setting.seconds(theirs)
    spent = setting.seconds(partial(pipeline.run, rgb, queries))
    yield (
        f"a photo, {_SIZE} px, {len(prompts.words)} prompts, CRF", f"{1 / spent:.1f} photos / s",
        f"{before / spent:.1f} × the authors' way ({text_ms(before)})",
    )  # fmt: skip
    many = [Query((word,)) for word in words(_MANY)]
    spent = setting.seconds(partial(pipeline.run, rgb, many))
    yield f"a photo, {_SIZE} px, {_MANY} named categories, CRF", f"{1 / spent:.1f} photos / s", ""
    peak = matmul_flops(setting.dtype, 8192 if setting.repeats > 1 else 1024, setting.device)
    tower = setting.seconds(partial(encode_one, backbone, pixels))
    share = tower_operations(model, _SIZE) / tower / peak
    yield (
        "the image tower, of the peak of a matrix product", f"{share:.0%}",
        f"{text_ms(tower)}, peak {peak / 1e12:.1f} TFLOP/s; target ≥ {_TOWER_SHARE:.0%}",
    )  # fmt: skip
    yield "teaching of one category, 20 steps and the choice", text_ms(_tuned(setting, backbone, rgb)), ""


def service_lines(setting: Setting, console: Console) -> Iterator[Line]:
    """Latency of `POST /segment` by the number of clients at a time."""
    names = words(10)
    with (
        photos_of_a_camera() as photos,
        running_service(console, device=setting.device, dtype=_name(setting.dtype), queue_limit="256") as service,
        Client(service.url) as client,
    ):
        client.segment(next(photos), names)
        for clients in setting.clients:
            files = [next(photos) for _ in range(max(_LEAST_REQUESTS, clients * _REQUESTS_EACH))]
            with ThreadPoolExecutor(clients) as pool:
                started = time.perf_counter()
                times = list(
                    pool.map(
                        lambda file: seconds(partial(client.segment, file, names), repeats=1, warm_up=False), files
                    )
                )
                per_s = len(files) / (time.perf_counter() - started)
            p50, p95 = (text_ms(percentile(times, share)) for share in (0.5, 0.95))
            yield f"{clients} clients at a time", f"p50 {p50}, p95 {p95}", f"{per_s:.1f} requests / s"


def _pipeline(backbone: Backbone) -> Pipeline:
    """The pipeline of the service."""
    return Pipeline(backbone, refinement=crf, min_presence=Settings().min_presence)


def _tuned(setting: Setting, backbone: Backbone, rgb: Rgb) -> float:
    """Seconds of the tuning of one category on one photo."""
    size = backbone.input_size
    network_rgb, _ = backbone.preprocess(rgb)
    mask = torch.zeros(size, size)
    mask[size // 4 : size // 2, size // 4 : size // 2] = 1
    shot = Shot.of(backbone, encode_one(backbone, network_rgb), mask)
    others = Prompts.of([Query((name,)) for name in VOC[:16]], taken=["gribble"])

    def tune() -> None:
        tuning = CategoryTuning(backbone, [shot], ["gribble"], others=others, layers=backbone.default_layers)
        for _ in range(TUNED.steps):
            tuning.step()
        finished(select(tuning))

    return setting.seconds(tune)


def _agreement(found: Prediction, expected: Prediction) -> Line:
    """Share of equal labels of a photo; a line that begins with DIFFERENT if it is too small."""
    equal = float((found.labels()[0] == expected.labels()[0]).mean())
    return "labels equal to those of the CPU in float32", f"{100 * equal:.2f} %", "" if equal > 0.98 else "DIFFERENT"


def _is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
