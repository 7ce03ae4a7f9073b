"""`make bench`: times and ratios of one run, printed as tables and written to benchmarks/results.json.

A ratio compares a path of the service with the plain path beside it, on the same machine in the same run. All times
are medians.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from app import backbones
from app.client import Client
from app.demo import EXAMPLES, running_service
from app.method.adapter import Adapter
from app.method.backbone import Backbone
from app.method.crf import CrfParameters, conv_crf, neighbour_weights, pass_messages
from app.method.evidence import prompt_evidence
from app.method.frame import imagenet_normalise, labels_to_input
from app.method.prompts import BACKGROUND_WORDS, prompt_set
from app.method.segment import Query, encode
from app.method.tuning import CategoryTuning, JointTuning, Recipe, shot

RESULTS = Path(__file__).parent / "results.json"
PHOTO = EXAMPLES / "dog.jpg"  # 640 × 480

_COUNTS = (1, 10, 100)
_REQUESTS = 9


def main() -> None:
    """Run all benches."""
    console = Console(width=140)
    torch.set_num_threads(os.cpu_count() or 1)
    backbone = backbones.load("embedded", device="cpu", dtype="float32")
    results: dict[str, Any] = {"cores": os.cpu_count(), "torch": torch.__version__}
    results["segment"] = bench_segment(console)
    results["ratios"] = [
        adapters_batched(backbone),
        crf_by_shifts(),
        independent_step(backbone),
    ]
    console.print(_ratio_table(results["ratios"]))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"Written to {RESULTS.name}.")


def bench_segment(console: Console) -> list[dict[str, Any]]:
    """p50 of POST /segment over HTTP, for so many categories, named and taught, and where the time goes."""
    rows: list[dict[str, Any]] = []
    with running_service(console) as url, Client(url) as client:
        for _ in client.follow(client.teach("taught 0", EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png")["id"]):
            pass
        adapter = httpx.get(f"{url}/categories/taught 0/adapter").content
        for number in range(1, max(_COUNTS)):
            httpx.put(f"{url}/categories/taught {number}/adapter", content=adapter).raise_for_status()
        for kind in ("named", "taught"):
            for count in _COUNTS:
                names = [f"{kind} {number}" for number in range(count)]
                rows.append({"kind": kind, "categories": count, **_time_requests(client, names, f"{count} {kind}")})
    stages = list(rows[0]["stages_ms"])
    table = Table("categories", "p50 ms", *stages, title="POST /segment, 640 × 480, CRF on; milliseconds")
    for row in rows:
        values = (f"{row['stages_ms'][stage]:.0f}" for stage in stages)
        table.add_row(f"{row['categories']} {row['kind']}", f"{row['p50_ms']:.0f}", *values)
    console.print(table)
    return rows


def _time_requests(client: Client, names: list[str], what: str) -> dict[str, Any]:
    client.segment(PHOTO, names)  # the first use of an adapter reads it from the store
    times, stages = [], []
    for _ in track(range(_REQUESTS), description=what, transient=True):
        started = time.perf_counter()
        answer = client.segment(PHOTO, names)
        times.append(1000 * (time.perf_counter() - started))
        stages.append(answer["timings_ms"])
    return {
        "p50_ms": statistics.median(times),
        "stages_ms": {name: statistics.median(stage[name] for stage in stages) for name in stages[0]},
    }


def adapters_batched(backbone: Backbone, count: int = 10) -> dict[str, Any]:
    """Ten adapters in one pass, against one pass each."""
    tokens = encode(backbone, backbone.preprocess(_photo())[0])
    adapters = [_random_adapter(backbone, f"thing {number}") for number in range(count)]
    queries = [Query(a.prompts, a) for a in adapters]
    layers = backbone.default_layers
    with torch.inference_mode():
        plain = _median_ms(lambda: [prompt_evidence(backbone, tokens, [query], layers) for query in queries])
        fast = _median_ms(lambda: prompt_evidence(backbone, tokens, queries, layers))
    return _ratio(f"{count} adapters: one pass each → one batched pass", plain, fast)


def crf_by_shifts(classes: int = 11, side: int = 384) -> dict[str, Any]:
    """The CRF's message passing by shifts, against `unfold`, which copies every neighbourhood."""
    probabilities = torch.rand(classes, side, side).softmax(dim=0)
    colours = imagenet_normalise(torch.rand(3, side, side))
    parameters = CrfParameters()
    weights = neighbour_weights(colours, parameters)
    coarse = probabilities[:, ::4, ::4].contiguous()

    def unfolded() -> torch.Tensor:
        columns = F.unfold(coarse[:, None], parameters.filter_size, padding=parameters.filter_size // 2)
        return torch.einsum("cnp,np->cp", columns, weights.flatten(1))

    plain = _median_ms(unfolded)
    fast = _median_ms(lambda: pass_messages(coarse, weights))
    whole = _median_ms(lambda: conv_crf(probabilities, colours, parameters), repeats=3)
    return _ratio(f"CRF message, {classes} classes: unfold → shifts", plain, fast) | {"whole_crf_ms": whole}


def independent_step(backbone: Backbone, classes: int = 21) -> dict[str, Any]:
    """A tuning step of one category, against a step of the authors' joint tuning over 21 classes."""
    rgb, frame = backbone.preprocess(_photo())
    tokens = encode(backbone, rgb)
    with Image.open(EXAMPLES / "dog_mask.png") as image:
        mask = (np.array(image.convert("L")) > 0).astype(np.uint8)
    labels = torch.from_numpy(labels_to_input(mask, frame, outside=255)).long()
    names = [f"thing {number}" for number in range(classes - 1)]
    prompts = prompt_set(BACKGROUND_WORDS, [[name] for name in names])
    layers, recipe = backbone.default_layers, Recipe()
    joint = JointTuning(
        backbone,
        [tokens, tokens],
        [labels, labels],
        text=backbone.tokenize(prompts.words),
        prompts=prompts,
        layers=layers,
    )
    own = CategoryTuning(
        backbone,
        [shot(backbone, tokens, labels, label_scale=recipe.label_scale)],
        ["dog"],
        background=BACKGROUND_WORDS,
        others=names[1:],
        layers=layers,
        recipe=recipe,
    )
    plain = _median_ms(lambda: list(joint.epoch()), repeats=3)
    return _ratio(f"tuning step, {classes} classes: joint (2 supports) → one category", plain, _median_ms(own.step))


def _random_adapter(backbone: Backbone, name: str) -> Adapter:
    tensors = backbone.trainable(backbone.default_layers, backbone.tokenize([name]))
    count = len(backbone.default_layers)
    return Adapter(
        backbone=backbone.name,
        revision=backbone.revision,
        category=name,
        version=1,
        prompts=(name,),
        layers=backbone.default_layers,
        ensemble=(1 / count,) * count,
        tensors=tensors,
        example_iou=0.0,
        zero_shot_example_iou=0.0,
        created_at="",
    )


def _photo() -> np.ndarray:
    with Image.open(PHOTO) as image:
        return np.array(image.convert("RGB"))


def _median_ms(call: Callable[[], object], repeats: int = 7) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def _ratio(what: str, plain_ms: float, fast_ms: float) -> dict[str, Any]:
    return {"what": what, "plain_ms": plain_ms, "fast_ms": fast_ms, "ratio": plain_ms / fast_ms}


def _ratio_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("what", "plain ms", "ours ms", "ratio", title="Ratios")
    for row in rows:
        table.add_row(row["what"], f"{row['plain_ms']:.0f}", f"{row['fast_ms']:.0f}", f"{row['ratio']:.1f} ×")
    return table


if __name__ == "__main__":
    main()
