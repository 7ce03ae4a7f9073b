"""Outputs of the trained network on photos with exact masks: the training data of the mask decoder."""

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

# Cells along one side of a target, and pixels per cell.
CELLS = 96
PIXELS = (SIZE // CELLS) ** 2

# Maximum number of absent names that are scored as competitors, and of the photo's rivals among them, which come first.
_OTHERS, _RIVALS = 24, 16
# Minimum share of the labelled pixels that a region needs to be used.
_LEAST_AREA = 0.001
# Augmented forms of each photo of the small collection, in addition to the photo itself.
_VARIED = 4


@dataclass(frozen=True)
class Seen:
    """Outputs of the network on one photo.

    Attributes:
        photo: Id of the photo, the same for all its augmented forms.
        names: Names that are present, then some that are absent, those of look-alikes first.
        scores: Scores of the background and the names, by layer.
        features: Features of the patches.
        edges: Edge map of the image tower.
        target: Number of pixels of each cell that the background and each present name cover.
    """

    photo: str
    names: list[str]
    scores: Float[Tensor, "layer class patch"]
    features: Float[Tensor, "patch feature"]
    edges: Float[Tensor, "channel y x"]
    target: UInt8[Tensor, "present cell_y cell_x"]

    def read(self, layers: Sequence[int]) -> Float[Tensor, "class patch"]:
        """Mean of the scores of some layers."""
        return self.scores[list(layers)].mean(dim=0)

    @property
    def shares(self) -> Float[Tensor, "present cell_y cell_x"]:
        """Share of each cell that the background and each present name cover."""
        return self.target.float() / PIXELS

    def patch_shares(self, patches: int) -> Float[Tensor, "present patch"]:
        """The same share per patch of a grid with this many patches along one side."""
        return F.avg_pool2d(self.shares, CELLS // patches).flatten(1)


def look(
    model: Backbone, few: Sequence[Photo], many: Sequence[Photo], *, seed: int, remembered: Path
) -> tuple[list[Seen], list[Seen]]:
    """Run the network on every photo.

    Args:
        model: The model; everything but its mask decoder is trained.
        few: Photos that are used as they are and in augmented forms.
        many: Photos that are used as they are.
        seed: Seed of all random choices.
        remembered: Cache file, since this takes half an hour; it is written if it does not exist.

    Returns:
        The outputs for `few` and for `many`; photos without a known name are left out.
    """
    if not remembered.exists():
        rng = random.Random(seed)
        names = sorted({region.names[0] for photo in few for region in photo.regions.values()})
        shown = [(photo, view) for view in range(1 + _VARIED) for photo in few], [(photo, 0) for photo in many]
        with tqdm(total=len(shown[0]) + len(shown[1]), desc="encoding photos", unit="photo", mininterval=20) as bar:
            found = [[asdict(seen) for one in part if (seen := _look(model, *one, names, rng, bar))] for part in shown]
        with whole_file(remembered) as unfinished:
            torch.save(found, unfinished)
    few_seen, many_seen = ([Seen(**one) for one in part] for part in torch.load(remembered, weights_only=True))
    return few_seen, many_seen


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is renamed to its path when it is complete, so that the next run finds no truncated file."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        yield file
    unfinished.replace(path)


@torch.no_grad()
def _look(
    model: Backbone, photo: Photo, view: int, names: Sequence[str], rng: random.Random, bar: "tqdm[object]"
) -> Seen | None:
    """Outputs on a photo (view 0) or on an augmented form of it; None if the photo shows no known name."""
    bar.update()
    sample = load(photo)
    sample = vary(sample, rng) if view else whole(sample)
    present, target = cells_of(sample)
    if not present:
        return None
    known = {*sample.related, *present}
    rivals = [name for name in photo.rivals if name in names and name not in known]
    rivals = rng.sample(rivals, min(_RIVALS, len(rivals)))
    possible = [name for name in names if name not in {*known, *rivals}]
    words = [*present, *rivals, *rng.sample(possible, min(_OTHERS - len(rivals), len(possible)))]
    image = model.encode_image(torch.from_numpy(sample.rgb.copy()).permute(2, 0, 1)[None].float() / 255)[0]
    prompts = Prompts.of([Query((word,)) for word in words])
    scores = torch.stack(prompt_evidence(model, image, prompts, range(model.layer_count)).by_layer())
    if image.fine_features is None:
        raise ValueError(f"expected a model with fine features, got {model.name}")
    features, edges = model.patch_features(image).half(), image.fine_features.half()
    return Seen(photo.image.stem, words, scores, features.clone(), edges.clone(), target)


def cells_of(sample: Sample) -> tuple[list[str], UInt8[Tensor, "present cell_y cell_x"]]:
    """Names in the photo, and the number of pixels of each cell that the background and each of them cover."""
    labels = torch.from_numpy(sample.labels.copy()).long()
    present = [
        value
        for value in range(1, len(sample.regions) + 1)
        if (labels == value).sum() >= _LEAST_AREA * (labels != UNKNOWN).sum()
    ]
    maps = torch.stack([labels == value for value in (0, *present)]).float()
    pixels = (F.avg_pool2d(maps, SIZE // CELLS) * PIXELS).round().to(torch.uint8)
    return [sample.regions[value - 1].names[0] for value in present], pixels
