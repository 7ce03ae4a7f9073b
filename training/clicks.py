"""Fit the logistic functions that find a clicked object: `python -m training.clicks --data DIR`.

Objects of the COCO photos that are not held out are clicked: once in the middle, and with more clicks inside and
around. The loss is the soft IoU with a share of the cross entropy, so that small objects count as much as large ones.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from app.backbones.embedded import model as embedded
from app.masks import Mask
from app.method.backbone import Backbone
from app.method.clicks import FACT_RANGE, GRID, WEIGHTS, Click, Logistic, place_facts, scene_of
from app.method.pipeline import FramedImage, Pipeline
from app.research.clicks import Thing, innermost, things_of
from app.research.layouts import read_dataset

HELD_OUT = Path(__file__).parent / "held_out.json"
_OBJECTS_PER_PHOTO = 2
_STEPS, _BATCH, _RATE, _DECAY = 400, 32, 0.04, 0.99
_CROSS_ENTROPY, _WEIGHT_DECAY = 0.5, 1e-4
# Every other row and column of places is enough to fit some dozens of numbers.
_STRIDE = 2


def clicks_of(thing: Thing, rng: random.Random) -> list[list[Click]]:
    """Clicks of an object: one in its middle, and one with others inside and just outside."""
    first = Click(*innermost(thing.mask)[0])
    more = [first] + [Click(*_somewhere(thing.mask, rng)) for _ in range(rng.randint(0, 3))]
    if (around := _around(thing.mask)).any():
        more += [Click(*_somewhere(around, rng), inside=False) for _ in range(rng.randint(len(more) == 1, 3))]
    return [[first], more]


def _somewhere(mask: Mask, rng: random.Random) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    at = rng.randrange(len(rows))
    return columns[at] + 0.5, rows[at] + 0.5


def _around(mask: Mask) -> Mask:
    """A margin around an object, as wide as half the side of a square of its area."""
    reach = max(4, round(0.5 * float(np.sqrt(mask.sum()))))
    grown = torch.from_numpy(mask.astype(np.float32))[None, None]
    for kernel, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        grown = F.max_pool2d(grown, kernel, 1, padding)
    return np.asarray(grown[0, 0].numpy() > 0) & ~mask


def fit(
    names: Sequence[str], facts: Float[Tensor, "lesson fact place"], inside: Float[Tensor, "lesson place"]
) -> Logistic:
    """Fit a logistic function.

    Args:
        names: Of the facts.
        facts: Of every place.
        inside: Share of each place that the object covers.
    """
    generator = torch.Generator().manual_seed(0)
    mean = facts.float().mean(dim=(0, 2))
    deviation = torch.stack([facts[:, fact].float().std() for fact in range(len(names))]).clamp_min(1e-3)
    weight = torch.zeros(len(names), requires_grad=True)
    bias = torch.tensor(-1.5, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=_RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, _DECAY)
    for _ in range(_STEPS):
        some = torch.randint(len(inside), (_BATCH,), generator=generator)
        standardised = ((facts[some].float().mT - mean) / deviation).clamp(-FACT_RANGE, FACT_RANGE)
        log_odds = standardised @ weight + bias
        p, y = log_odds.sigmoid(), inside[some]
        both = (p * y).sum(dim=1)
        loss = (1 - both / (p.sum(dim=1) + y.sum(dim=1) - both)).mean()
        loss = loss + _CROSS_ENTROPY * F.binary_cross_entropy_with_logits(log_odds, y)
        loss = loss + _WEIGHT_DECAY * weight.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    print(f"  loss of the last lessons {loss.item():.3f}", flush=True)
    rows = torch.stack([mean, deviation, weight.detach()], dim=1).tolist()
    return Logistic(bias.item(), {name: tuple(row) for name, row in zip(names, rows, strict=True)})


def _strided(facts: Float[Tensor, "*lesson_and_fact place"]) -> Float[Tensor, "*lesson_and_fact some"]:
    grid = facts.view(*facts.shape[:-1], GRID, GRID)
    return grid[..., _STRIDE // 2 :: _STRIDE, ::_STRIDE].flatten(-2)


def _share(mask: Mask) -> Float[Tensor, "place"]:
    """Share of each place that a mask covers."""
    area = F.interpolate(torch.from_numpy(mask.astype(np.float32))[None, None], size=(GRID, GRID), mode="area")
    return area.flatten()


@dataclass(frozen=True)
class Lesson:
    """An object that was clicked."""

    image: FramedImage
    clicks: list[Click]
    inside: Float[Tensor, "place"]


def lessons(backbone: Backbone, data: Path) -> list[Lesson]:
    """Objects of the photos that are not held out, with their clicks."""
    held_out = set(json.loads(HELD_OUT.read_text())["coco"])
    pipeline, rng = Pipeline(backbone), random.Random(0)
    made = []
    for photo in read_dataset(data / "coco_mini_dev", split=None, ids=None, limit=None).photos:
        if photo.id in held_out or not (things := things_of(photo)):
            continue
        image = pipeline.see(photo.read())
        for thing in rng.sample(things, min(_OBJECTS_PER_PHOTO, len(things))):
            made += [Lesson(image, clicks, _share(thing.mask)) for clicks in clicks_of(thing, rng)]
    return made


def fitted(backbone: Backbone, made: Sequence[Lesson], *, use_mask_decoder: bool) -> Logistic:
    """The logistic function of these lessons."""
    with torch.no_grad():
        scenes = {id(one.image): scene_of(backbone, one.image, use_mask_decoder=use_mask_decoder) for one in made}
        rows = []
        for one in made:
            facts = place_facts(scenes[id(one.image)], one.clicks)
            rows.append(_strided(torch.stack(list(facts.values()))).half())
        inside = _strided(torch.stack([one.inside for one in made]))
    return fit(list(facts), torch.stack(rows), inside)


def main() -> None:
    """Fit one for models with a mask decoder and one for those without, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the photo collections")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    backbone = embedded.load("", device="cpu", dtype="float32")
    made = lessons(backbone, options.data)
    print(f"{len(made)} lessons", flush=True)
    stored = {}
    for name, use_mask_decoder in (("decoder", True), ("patches", False)):
        print(name, flush=True)
        stored[name] = _rounded(fitted(backbone, made, use_mask_decoder=use_mask_decoder))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


def _rounded(one: Logistic) -> dict[str, Any]:
    facts = {name: [round(value, 4) for value in values] for name, values in one.facts.items()}
    return {"bias": round(one.bias, 4), "facts": facts}


if __name__ == "__main__":
    main()
