"""`python -m training.many_taught --data DIR`: masks when only the likeliest of many taught categories are read.

Every category of every set is taught several times, from one photo each, under a name of its own: so each has
look-alikes, as the articles of a shop have. All of them are requested in photos that nothing was taught from or fitted
on. The masks are compared with those of a request that reads all of them.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.backbones import embedded
from app.method.adapter import Adapter
from app.method.pipeline import Pipeline
from app.method.prompts import Query
from app.method.refinement import crf
from app.settings import Settings

from .presence import HELD_OUT, SUPPORT_AREA, Scene, fitted_entries, memory_of, scenes

# Photos that teach a category, at most.
_TIMES = 25
# Categories read of all.
_READ = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Agreement:
    """One photo, with some of the categories read, beside all read.

    Attributes:
        pixels: Share of the pixels with the same label.
        lost: Categories that are marked only if all are read.
        marked: Categories that are marked if all are read.
    """

    pixels: float
    lost: int
    marked: int


def taught(backbone: embedded.Embedded, seen: Sequence[Scene], rng: random.Random) -> list[Query]:
    """Categories, each taught from one photo by its memory alone."""
    weights = dict(backbone.mask_decoder.weights)
    supports: dict[str, list[Scene]] = {}
    for scene in seen:
        for name, share in scene.share.items():
            if share.mean() >= SUPPORT_AREA:
                supports.setdefault(name, []).append(scene)
    queries = []
    for name, having in sorted(supports.items()):
        for number, scene in enumerate(rng.sample(having, min(_TIMES, len(having))), 1):
            words = (f"{name} {number}",)
            adapter = Adapter(
                backbone.name, backbone.revision, words[0], 1, words, backbone.default_layers, (0.5, 0.5), 0.0, 0.0, "",
                memory=memory_of(weights, name, scene, rng),
            )  # fmt: skip
            queries.append(Query(words, adapter))
    return queries


def compare(pipeline: Pipeline, photo: np.ndarray, queries: Sequence[Query]) -> dict[int, Agreement]:
    """Per number of categories read, the agreement with all read."""
    every, _ = replace(pipeline, most_read=len(queries)).run(photo, queries).labels()
    marked = set(np.unique(every).tolist()) - {0}
    found = {}
    for count in _READ:
        labels, _ = replace(pipeline, most_read=count).run(photo, queries).labels()
        lost = marked - set(np.unique(labels).tolist())
        found[count] = Agreement(float((labels == every).mean()), len(lost), len(marked))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.many_taught", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collections of photos")
    parser.add_argument("--photos", type=int, default=64, help="photos that are asked")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console, rng = Console(), random.Random(arguments.seed)
    backbone = embedded.load("", device="cpu", dtype="float32")
    seen = track(scenes(backbone, fitted_entries(arguments.data)), description="encoding", console=console)
    queries = taught(backbone, list(seen), rng)
    pipeline = Pipeline(backbone, refinement=crf, min_presence=Settings().min_presence)
    asked = json.loads(HELD_OUT.read_text())["coco"][1::2][: arguments.photos]
    found = []
    for photo in track(asked, description=f"{len(queries)} categories", console=console):
        with Image.open(arguments.data / "coco_mini_dev" / "images" / f"{photo}.jpg") as file:
            found.append(compare(pipeline, np.array(file.convert("RGB")), queries))
    table = Table("read", "photos with the same masks", "pixels with the same label", "categories lost")
    for count in _READ:
        photos = [each[count] for each in found]
        same = sum(each.pixels >= 0.999 for each in photos) / len(photos)
        pixels = sum(each.pixels for each in photos) / len(photos)
        lost, marked = sum(each.lost for each in photos), sum(each.marked for each in photos)
        table.add_row(str(count), f"{same:.1%}", f"{pixels:.2%}", f"{lost} of {marked}")
    console.print(table)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
