"""Training photos with label maps: their sources and their augmentation.

Every photo is RGB with a label map: 0 background, 1 … k its regions, 255 unknown. Each region has the names that apply
to it.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from .vocabulary import CALTECH_KINDS, KINDS, PLACES, excluded_with, names_of, rivals_of

SIZE = 384
# Patches along one side.
GRID = SIZE // 16
UNKNOWN = 255

Rgb = UInt8[np.ndarray, "height width 3"]
Labels = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class Region:
    """Meaning of one label value of a photo.

    Attributes:
        names: Names that apply to the region.
        related: Names that are not used as negatives for photos with this region.
    """

    names: tuple[str, ...]
    related: frozenset[str]


@dataclass(frozen=True)
class Photo:
    """One training photo.

    Attributes:
        image: Image file.
        labels: Mask file; None if the label map is in `Material.guessed`: the pseudo-label of a photo with only a
            class, or the mask of any photo to which a detector has added regions (`detected`).
        regions: Regions by their value in the mask file.
        uncertain: Names of things that may be in the photo without a label.
        guess: For a photo without a mask: ImageNet classes that it may show; empty for the most probable classes.
        rivals: Names of things that look like those of the photo.
    """

    image: Path
    labels: Path | None
    regions: dict[int, Region]
    uncertain: frozenset[str] = frozenset()
    guess: tuple[int, ...] = ()
    rivals: tuple[str, ...] = ()


@dataclass
class Sample:
    """A photo with its label map, as loaded or augmented.

    Attributes:
        rgb: `[height, width, 3]`; `[SIZE, SIZE, 3]` after `whole` and `vary`.
        labels: `[height, width]`: 0 background, 1 … k regions, 255 unknown.
        regions: Regions of the values 1 … k.
        uncertain: Names of things that may be in the photo without a label.
    """

    rgb: Rgb
    labels: Labels
    regions: list[Region]
    uncertain: set[str] = field(default_factory=set)

    @property
    def related(self) -> set[str]:
        """Names that are not used as negatives for this photo."""
        return self.uncertain.union(*(region.related for region in self.regions))


def imagenet_names(data: Path) -> list[str]:
    """Names of the 1,000 ImageNet classes in the order of the classifier's outputs."""
    images = json.loads((data / "imagenet_samples" / "labels.json").read_text())["images"]
    return [image["name"].lower() for image in sorted(images, key=lambda image: image["wnid"])]


def masked_photos(
    data: Path, collection: str, *, held_out: set[str], imagenet: list[str], without: set[str]
) -> list[Photo]:
    """Photos of `coco_mini_dev` or `voc_animals_dev`.

    Args:
        data: Folder of the collections.
        collection: Name of the collection.
        held_out: Ids of photos that are left out for measurements.
        imagenet: Names of the ImageNet classes.
        without: Names of categories that are excluded from training: photos that show them are left out.
    """
    folder = data / collection
    index = json.loads((folder / "index.json").read_text())
    regions = {
        value: Region(names_of(name), frozenset(excluded_with(name, imagenet)))
        for value, name in enumerate(index["classes"])
        if value
    }
    return [
        Photo(
            image=folder / "images" / f"{image['id']}.jpg",
            labels=folder / "masks" / f"{image['id']}.png",
            regions={value: regions[value] for value in image["classes"]},
            rivals=rivals_of(index["classes"][value] for value in image["classes"]),
        )
        for image in index["images"]
        if image["id"] not in held_out and not without & {index["classes"][value] for value in image["classes"]}
    ]


def named_photos(data: Path, *, imagenet: list[str], without: set[str]) -> list[Photo]:
    """All photos of the ImageNet samples and every second one of Caltech-101; they have a class but no mask.

    Args:
        data: Folder of the collections.
        imagenet: Names of the ImageNet classes.
        without: Names that are excluded from training, including those related to an excluded category.
    """
    kind_of = {index: category for category, indices in KINDS.items() for index in indices}
    photos = []
    folder = data / "imagenet_samples"
    images = json.loads((folder / "labels.json").read_text())["images"]
    # By index, not by name: "crane" is both a bird and a machine.
    for index, image in enumerate(sorted(images, key=lambda image: image["wnid"])):
        photo = folder / "images" / image["file"]
        if imagenet[index] in PLACES:
            continue
        category = kind_of.get(index)
        guess = KINDS[category] if category else (index,)
        photos.append(_named(photo, imagenet[index], category, guess, imagenet))
    folder = data / "caltech_part"
    labels = json.loads((folder / "labels.json").read_text())
    for image in labels["images"][::2]:
        name = labels["text"][image["cls"]]
        if name and name != "face":
            photos.append(_named(folder / "images" / image["file"], name, CALTECH_KINDS.get(name), (), imagenet))
    return [photo for photo in photos if not without & set(photo.regions[1].names)]


def _named(image: Path, name: str, category: str | None, guess: tuple[int, ...], imagenet: list[str]) -> Photo:
    names = (name, *(names_of(category) if category else ()))
    related = {name, *(excluded_with(category, imagenet) if category else ())}
    # People may be in these photos without a label.
    people = {*names_of("person"), "face"}
    return Photo(image, None, {1: Region(tuple(dict.fromkeys(names)), frozenset(related))}, frozenset(people), guess)


def load(photo: Photo, labels: Labels | None = None) -> Sample:
    """Read a photo at its own size; its label values become 1 … k.

    Args:
        photo: The photo.
        labels: Label map of a photo without a mask file.
    """
    with Image.open(photo.image) as file:
        rgb = np.asarray(file.convert("RGB"))
    values = labels
    if photo.labels:
        with Image.open(photo.labels) as file:
            values = np.asarray(file)
    if values is None:
        raise ValueError(f"expected labels for {photo.image}, which has no mask file")
    out = np.full(256, UNKNOWN, np.uint8)
    out[0] = 0
    regions = []
    for value, region in photo.regions.items():
        regions.append(region)
        out[value] = len(regions)
    return Sample(rgb, out[values], regions, set(photo.uncertain))


def whole(sample: Sample) -> Sample:
    """Resize a sample to the network's size, without augmentation."""
    image = Image.fromarray(sample.rgb).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    labels = Image.fromarray(sample.labels).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    return Sample(np.asarray(image), np.asarray(labels), sample.regions, sample.uncertain)


def vary(sample: Sample, rng: random.Random) -> Sample:
    """Augment a sample by a random crop, flip and change of colour, at the network's size."""
    height, width = sample.labels.shape
    box = (0, 0, width, height)
    if rng.random() < 0.7:
        area, aspect = rng.uniform(0.25, 1.0), rng.uniform(0.75, 1.33)
        w = min(width, max(32, round(width * (area * aspect) ** 0.5)))
        h = min(height, max(32, round(height * (area / aspect) ** 0.5)))
        left, top = rng.randint(0, width - w), rng.randint(0, height - h)
        box = (left, top, left + w, top + h)
    image = Image.fromarray(sample.rgb).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
    labels = Image.fromarray(sample.labels).resize((SIZE, SIZE), Image.Resampling.NEAREST, box=box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.6:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.65, 1.35))
    return Sample(np.asarray(image), np.asarray(labels), sample.regions, sample.uncertain)


def paste(onto: Sample, source: Sample, rng: random.Random) -> Sample:
    """Paste one region of another photo onto this one (Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177)."""
    value = rng.randint(1, len(source.regions)) if source.regions else 0
    ys, xs = np.nonzero(source.labels == value)
    if not value or len(ys) < 64:
        return onto
    box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    piece = Image.fromarray(source.rgb).crop(box)
    shape = Image.fromarray((source.labels == value).astype(np.uint8) * 255).crop(box)
    height, width = onto.labels.shape
    longest = rng.uniform(0.15, 0.7) * min(height, width)
    scale = longest / max(piece.size)
    size = (max(8, round(piece.width * scale)), max(8, round(piece.height * scale)))
    piece, shape = piece.resize(size, Image.Resampling.BILINEAR), shape.resize(size, Image.Resampling.BILINEAR)
    left, top = rng.randint(0, max(0, width - size[0])), rng.randint(0, max(0, height - size[1]))
    image = Image.fromarray(onto.rgb)
    image.paste(piece, (left, top), shape)
    region = source.regions[value - 1]
    regions = list(onto.regions)
    if region in regions:
        target = regions.index(region) + 1
    else:
        regions.append(region)
        target = len(regions)
    labels = onto.labels.copy()
    part = labels[top : top + size[1], left : left + size[0]]
    part[np.asarray(shape)[: part.shape[0], : part.shape[1]] > 127] = target
    return Sample(np.asarray(image), labels, regions, onto.uncertain)


def mosaic(samples: Sequence[Sample]) -> Sample:
    """Join four photos in a square, for more and smaller objects.

    Source: Bochkovskiy et al. 2020, https://arxiv.org/abs/2004.10934.
    """
    half = SIZE // 2
    rgb, labels = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    regions: list[Region] = []
    for number, sample in enumerate(samples):
        rows, columns = (slice(half * side, half * (side + 1)) for side in divmod(number, 2))
        values = np.full(256, UNKNOWN, np.uint8)
        values[0] = 0
        for value, region in enumerate(sample.regions, start=1):
            if region not in regions:
                regions.append(region)
            values[value] = regions.index(region) + 1
        rgb[rows, columns] = Image.fromarray(sample.rgb).resize((half, half), Image.Resampling.BILINEAR)
        small = Image.fromarray(sample.labels).resize((half, half), Image.Resampling.NEAREST)
        labels[rows, columns] = values[np.asarray(small)]
    return Sample(rgb, labels, regions, set().union(*(sample.uncertain for sample in samples)))
