"""Data sets in the layouts in which they are published and exported: our own, COCO instances, and PASCAL VOC."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from app.coco import Coco, CocoAnnotation, CocoImage, find_photos, read_coco
from app.errors import InvalidInputError
from app.masks import MalformedMaskError
from app.method.shot import IGNORE
from app.research.dataset import Dataset, LabelledPhoto, read_photo

BACKGROUND = "background"

VOC_CLASSES = (
    BACKGROUND,
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True)
class Selection:
    """Which photos of a data set are kept.

    Attributes:
        split: Only those of this split; None for all.
        ids: Only those with these ids; None for all.
        limit: Most photos; None for all.
    """

    split: str | None = None
    ids: frozenset[str] | None = None
    limit: int | None = None

    def keeps(self, id: object) -> bool:
        """True unless other ids are asked for."""
        return self.ids is None or str(id) in self.ids


def read_dataset(
    data: Path, *, split: str | None, ids: Path | None, limit: int | None, images: Path | None = None
) -> Dataset:
    """Read a data set.

    Args:
        data: One of: a folder with `index.json`, `images/<id>.jpg` and `masks/<id>.png`; a COCO instances file, or a
            folder with one in `annotations/`; a folder with `JPEGImages` and `SegmentationClass`, as VOC.
        split: Only photos of this split; None for all.
        ids: A JSON list of photo ids to keep; None for all.
        limit: Most photos.
        images: Folder with the photos of a COCO file; None to look where they usually lie.

    Raises:
        InvalidInputError: If the data set is in no such layout, or nothing is left of it.
    """
    selection = Selection(split, None if ids is None else _ids_in(ids), limit)
    if not data.is_dir():
        dataset = _read_coco(data, images, selection)
    elif (data / "SegmentationClass").is_dir():
        dataset = _read_voc(data, selection)
    elif (data / "annotations").is_dir() and not (data / "index.json").exists():
        dataset = _read_coco(_instances_in(data / "annotations", split), images, selection)
    else:
        dataset = _read_own(data, selection)
    if not dataset.photos:
        raise InvalidInputError(f"No photo is left of {data}: check --split and --ids.")
    return Dataset(dataset.classes, dataset.photos[:limit])


def _ids_in(file: Path) -> frozenset[str]:
    try:
        return frozenset(str(item) for item in json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInputError(f"{file} is not a JSON list of photo ids ({error}).") from error


def _read_own(folder: Path, selection: Selection) -> Dataset:
    """Read a folder with an index."""
    try:
        index = json.loads((folder / "index.json").read_text())
        photos = [
            LabelledPhoto(
                id=item["id"],
                image=folder / "images" / f"{item['id']}.jpg",
                labels=partial(_stored_labels, folder / "masks" / f"{item['id']}.png"),
                classes=tuple(item["classes"]),
            )
            for item in index["images"]
            if (selection.split is None or item.get("split") == selection.split) and selection.keeps(item["id"])
        ]
        classes = tuple(str(name) for name in index["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{folder} is not a data set: it needs index.json with classes and images, images/<id>.jpg and "
            f"masks/<id>.png; or annotations/*.json as COCO; or JPEGImages and SegmentationClass as VOC "
            f"({type(error).__name__}: {error})."
        ) from error
    return Dataset(classes, tuple(photos))


def _stored_labels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        labels: np.ndarray = np.array(image)
        return labels


def _instances_in(folder: Path, split: str | None) -> Path:
    """The COCO instances file in a folder, which may also have captions and the files of other splits."""
    files = sorted(folder.glob("*.json"))
    files = [file for file in files if file.name.startswith("instances")] or files
    if split:
        files = [file for file in files if file.stem.endswith(split)] or files
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InvalidInputError(
            f"{folder} has to have one COCO instances file, it has {found}: choose with --split or --data FILE."
        )
    return files[0]


def _read_coco(file: Path, images: Path | None, selection: Selection) -> Dataset:
    """Read a COCO instances file. Every photo of it that is there counts, also one without annotations."""
    coco = read_coco(file)
    names = tuple(dict.fromkeys(coco.categories.values()))
    if len(names) >= IGNORE:
        raise InvalidInputError(f"{file} has {len(names)} categories, at most {IGNORE - 1} can be told apart.")
    numbers = {id: names.index(name) + 1 for id, name in coco.categories.items()}
    files = find_photos(coco, [images] if images else coco.folders())
    photos = [
        _coco_photo(coco, image, photo, numbers)
        for image in coco.images.values()
        if selection.keeps(image.id) and (photo := files[image.id])
    ]
    if coco.images and not photos and selection.ids is None:
        first = next(iter(coco.images.values())).file_name
        raise InvalidInputError(
            f"None of the photos of {file} is found, such as {first}: name their folder with --images."
        )
    return Dataset((BACKGROUND, *names), tuple(photos))


def _coco_photo(coco: Coco, image: CocoImage, file: Path, numbers: dict[int | str, int]) -> LabelledPhoto:
    annotations = coco.annotations.get(image.id, ())
    height, width = image.hw or read_photo(file).shape[:2]
    hw = height, width
    return LabelledPhoto(
        id=str(image.id),
        image=file,
        labels=partial(_drawn_labels, file.name, annotations, numbers, hw),
        # Of a crowd nothing is measured, so it is not asked for.
        classes=tuple(sorted({numbers[one.category] for one in annotations if not one.is_crowd})),
        crowds=tuple(sorted({numbers[one.category] for one in annotations if one.is_crowd})),
        hw=hw,
    )


def _drawn_labels(
    name: str, annotations: Sequence[CocoAnnotation], numbers: dict[int | str, int], hw: tuple[int, int]
) -> np.ndarray:
    """Draw annotations, the largest first, so that an object on another one is seen; crowds are left open."""
    labels = np.zeros(hw, np.uint8)
    try:
        for one in sorted(annotations, key=lambda one: (not one.is_crowd, -one.area)):
            labels[one.mask(hw)] = IGNORE if one.is_crowd else numbers[one.category]
    except MalformedMaskError as error:
        raise InvalidInputError(f"An annotation of {name} can't be drawn: {error}.") from error
    return labels


def _read_voc(folder: Path, selection: Selection) -> Dataset:
    """Read VOC's layout, with VOC's classes or those of `labelmap.txt`, which labelling tools write."""
    listing = folder / "labelmap.txt"
    colours = _voc_colours(listing) if listing.exists() else None
    classes = tuple(colours) if colours else VOC_CLASSES
    read = partial(_coloured_labels, colours=tuple(colours.values())) if colours else _stored_labels
    masks = [mask for mask in _voc_masks(folder, selection.split) if selection.keeps(mask.stem)]
    photos = (_voc_photo(folder, mask, read) for mask in masks[: selection.limit])
    return Dataset(classes, tuple(photos))


def _voc_masks(folder: Path, split: str | None) -> list[Path]:
    if split is None:
        return sorted((folder / "SegmentationClass").rglob("*.png"))
    listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        names = listing.read_text().split()
    except OSError as error:
        raise InvalidInputError(f"{listing} can't be read: {error.strerror}; correct --split.") from error
    return [folder / "SegmentationClass" / f"{name}.png" for name in names]


def _voc_photo(folder: Path, mask: Path, read: Callable[[Path], np.ndarray]) -> LabelledPhoto:
    inside = mask.relative_to(folder / "SegmentationClass").with_suffix("")
    photos = [folder / "JPEGImages" / f"{inside}{ending}" for ending in (".jpg", ".jpeg", ".JPG", ".png")]
    read_labels = partial(_read_or_refuse, mask, read)
    labels = read_labels()
    return LabelledPhoto(
        id=inside.as_posix(),
        image=next((photo for photo in photos if photo.is_file()), photos[0]),
        labels=read_labels,
        classes=tuple(int(number) for number in np.unique(labels) if 0 < number < IGNORE),
        hw=(labels.shape[0], labels.shape[1]),
    )


def _read_or_refuse(file: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    try:
        labels = read(file)
    except OSError as error:
        raise InvalidInputError(f"{file} can't be read: {error}.") from error
    if labels.ndim != 2:
        raise InvalidInputError(f"{file} has colours instead of class numbers: put labelmap.txt into the folder.")
    return labels


def _voc_colours(file: Path) -> dict[str, tuple[int, int, int]]:
    """The colour of each class, the background first: lines `name:red,green,blue:parts:actions`."""
    colours = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                name, levels = line.split(":")[:2]
                red, green, blue = map(int, levels.split(","))
                colours[name] = (red, green, blue)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{file} can't be read: a line is name:red,green,blue ({error}).") from error
    if len(colours) > IGNORE:
        raise InvalidInputError(f"{file} has {len(colours)} classes, at most {IGNORE} can be told apart.")
    return {BACKGROUND: colours.pop(BACKGROUND, (0, 0, 0))} | colours


def _coloured_labels(file: Path, *, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Labels of a mask in colours; a colour that is none of a class is left open, as VOC's edges are."""
    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB"))
    labels = np.full(pixels.shape[:2], IGNORE, np.uint8)
    for number, colour in enumerate(colours):
        labels[(pixels == colour).all(axis=2)] = number
    return labels
