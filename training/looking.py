"""What the trained network sees in photos with exact masks: all that the mask decoder learns from."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from app.method.backbone import Backbone
from app.method.evidence import prompt_evidence
from app.method.prompts import Prompts, Query

from .photos import SIZE, UNKNOWN, Photo, Sample, load, vary, whole

# Cells of a target from side to side, and the pixels in each.
CELLS = 96
PIXELS = (SIZE // CELLS) ** 2

# Names that are not in the photo and may compete.
_OTHERS = 24
# A region must have so much of the photo to be asked for.
_LEAST_AREA = 0.001
# Of the collection of few photos each is shown whole and in so many varied forms.
_VARIED = 4


@dataclass(frozen=True)
class Seen:
    """A photo, as the network sees it.

    Attributes:
        photo: What tells it from others, the same of all its forms.
        names: Those that are there, then some that aren't.
        scores: Of the background and the names, by each layer.
        features: Of its patches.
        edges: The image tower's.
        target: Pixels of each cell that the background and each name that is there cover.
    """

    photo: str
    names: list[str]
    scores: Float[Tensor, "layer class patch"]
    features: Float[Tensor, "patch feature"]
    edges: Float[Tensor, "channel y x"]
    target: UInt8[Tensor, "present cell_y cell_x"]

    def read(self, layers: Sequence[int]) -> Float[Tensor, "class patch"]:
        """The scores by some layers: their mean."""
        return self.scores[list(layers)].mean(dim=0)

    @property
    def shares(self) -> Float[Tensor, "present cell_y cell_x"]:
        """Share of each cell that the background and each name cover."""
        return self.target.float() / PIXELS

    def patch_shares(self, patches: int) -> Float[Tensor, "present patch"]:
        """The same of each patch, of a grid of so many from side to side."""
        return F.avg_pool2d(self.shares, CELLS // patches).flatten(1)


def look(
    model: Backbone, few: Sequence[Photo], many: Sequence[Photo], *, seed: int, remembered: Path
) -> tuple[list[Seen], list[Seen]]:
    """Show the network every photo.

    Args:
        model: With all that comes before trained.
        few: Photos that are shown whole and in varied forms.
        many: Photos that are shown whole.
        seed: Of everything random.
        remembered: File of an earlier run, since this takes half an hour; made if it isn't there.
    """
    if not remembered.exists():
        rng = random.Random(seed)
        names = sorted({region.names[0] for photo in few for region in photo.regions.values()})
        shown = [(photo, view) for view in range(1 + _VARIED) for photo in few], [(photo, 0) for photo in many]
        with tqdm(total=len(shown[0]) + len(shown[1]), desc="looking", unit="photo", mininterval=20) as bar:
            found = [[asdict(seen) for one in part if (seen := _look(model, *one, names, rng, bar))] for part in shown]
        with whole_file(remembered) as unfinished:
            torch.save(found, unfinished)
    few_seen, many_seen = ([Seen(**one) for one in part] for part in torch.load(remembered, weights_only=True))
    return few_seen, many_seen


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is written: one cut short would pass for whole in the next run."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        yield file
    unfinished.replace(path)


@torch.no_grad()
def _look(
    model: Backbone, photo: Photo, view: int, names: Sequence[str], rng: random.Random, bar: "tqdm[object]"
) -> Seen | None:
    """What the network sees in a photo, or in a varied form of it; None if nothing known is in it."""
    bar.update()
    sample = load(photo)
    sample = vary(sample, rng) if view else whole(sample)
    present, target = cells_of(sample)
    if not present:
        return None
    possible = [name for name in names if name not in {*sample.related, *present}]
    words = [*present, *rng.sample(possible, min(_OTHERS, len(possible)))]
    image = model.encode_image(torch.from_numpy(sample.rgb.copy()).permute(2, 0, 1)[None].float() / 255)[0]
    prompts = Prompts.of([Query((word,)) for word in words])
    scores = torch.stack(prompt_evidence(model, image, prompts, range(model.layer_count)).by_layer())
    if image.fine_features is None:
        raise ValueError(f"expected a model with fine features, got {model.name}")
    features, edges = model.patch_features(image).half(), image.fine_features.half()
    return Seen(photo.image.stem, words, scores, features.clone(), edges.clone(), target)


def cells_of(sample: Sample) -> tuple[list[str], UInt8[Tensor, "present cell_y cell_x"]]:
    """Names in the photo, and the pixels of each cell that the background and each of them cover."""
    labels = torch.from_numpy(sample.labels.copy()).long()
    present = [
        value
        for value in range(1, len(sample.regions) + 1)
        if (labels == value).sum() >= _LEAST_AREA * (labels != UNKNOWN).sum()
    ]
    maps = torch.stack([labels == value for value in (0, *present)]).float()
    pixels = (F.avg_pool2d(maps, SIZE // CELLS) * PIXELS).round().to(torch.uint8)
    return [sample.regions[value - 1].names[0] for value in present], pixels
