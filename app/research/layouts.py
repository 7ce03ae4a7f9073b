"""Data sets in the layouts in which they are published and exported: our own, COCO instances, and PASCAL VOC."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

    def keeps(self, *ids: object) -> bool:
        """True unless others than these ids of a photo are asked for."""
        return self.ids is None or any(str(id) in self.ids for id in ids)


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
        dataset = _read_coco(_of_split([data], split, data), images, selection)
    elif (data / "SegmentationClass").is_dir():
        dataset = _read_voc(data, selection)
    elif (data / "annotations").is_dir() and not (data / "index.json").exists():
        dataset = _read_coco(_instances_in(data / "annotations", split), images, selection)
    else:
        dataset = _read_own(data, selection)
    if not dataset.photos:
        raise InvalidInputError(f"No photo is left of {data}: check --split and --ids.")
    numbers = tuple(range(len(dataset.classes)))
    return Dataset(dataset.classes, tuple(replace(photo, numbers=numbers) for photo in dataset.photos[:limit]))


def _ids_in(file: Path) -> frozenset[str]:
    try:
        listed = json.loads(file.read_text())
        if not isinstance(listed, list):
            raise TypeError(f"it has a {type(listed).__name__}")
        return frozenset(map(str, listed))
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
    return _of_split(files, split, folder)


def _splits_of(file: Path) -> set[str]:
    """Names of the split of a COCO file: `val2017`, `val` and `instances_val2017` of `instances_val2017.json`."""
    name = file.stem.removeprefix("instances_")
    return {file.stem, name, re.sub(r"\d{4}$", "", name)}


def _of_split(files: Sequence[Path], split: str | None, data: Path) -> Path:
    """The one COCO file, or that of a split, which may be named without its year."""
    found = [file for file in files if not split or split in _splits_of(file)]
    if len(found) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise InvalidInputError(
            f"{data} has to have one COCO instances file{f' of split {split}' if split else ''}, it has {names}: "
            "choose with --split or --data FILE."
        )
    return found[0]


def _read_coco(file: Path, images: Path | None, selection: Selection) -> Dataset:
    """Read a COCO instances file. Every photo of it that is there counts, also one without annotations."""
    coco = read_coco(file)
    classes = tuple(dict.fromkeys([BACKGROUND, *coco.categories.values()]))
    if len(classes) > IGNORE:
        raise InvalidInputError(f"{file} has {len(classes) - 1} categories, at most {IGNORE - 1} can be told apart.")
    numbers = {id: classes.index(name) for id, name in coco.categories.items()}
    files = find_photos(coco, [images] if images else coco.folders())
    kept = [image for image in coco.images.values() if selection.keeps(image.id)]
    photos = [_coco_photo(coco, image, photo, numbers) for image in kept if (photo := files[image.id])]
    if kept and not photos:
        raise InvalidInputError(
            f"None of the photos of {file} is found, such as {kept[0].file_name}: name their folder with --images."
        )
    return Dataset(classes, tuple(photos))


def _coco_photo(coco: Coco, image: CocoImage, file: Path, numbers: dict[int | str, int]) -> LabelledPhoto:
    annotations = coco.annotations.get(image.id, ())
    height, width = image.hw or read_photo(file).shape[:2]
    hw = height, width
    objects, crowds = (
        {numbers[one.category] for one in annotations if one.is_crowd == crowd} - {0} for crowd in (False, True)
    )
    return LabelledPhoto(
        id=str(image.id),
        image=file,
        labels=partial(_drawn_labels, file.name, annotations, numbers, hw),
        # Of a crowd nothing is measured, so it is not asked for.
        classes=tuple(sorted(objects)),
        crowds=tuple(sorted(crowds)),
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
    masks = _voc_masks(folder, selection.split)
    times = Counter(mask.stem for mask in masks)
    # A name without its folder is enough if no other folder has it.
    masks = [
        mask
        for mask in masks
        if selection.keeps(_voc_id(folder, mask), *([mask.stem] if times[mask.stem] == 1 else []))
    ]
    photos = (_voc_photo(folder, mask, read) for mask in masks[: selection.limit])
    return Dataset(classes, tuple(photos))


def _voc_masks(folder: Path, split: str | None) -> list[Path]:
    if split is None:
        return sorted((folder / "SegmentationClass").rglob("*.png"))
    listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        names = [line.strip() for line in listing.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InvalidInputError(f"{listing} can't be read: {error.strerror}; correct --split.") from error
    return [folder / "SegmentationClass" / f"{name}.png" for name in names]


def _voc_id(folder: Path, mask: Path) -> str:
    """Path of a mask without its ending, as its photo has it: `folder/name`."""
    return mask.relative_to(folder / "SegmentationClass").with_suffix("").as_posix()


def _voc_photo(folder: Path, mask: Path, read: Callable[[Path], np.ndarray]) -> LabelledPhoto:
    inside = _voc_id(folder, mask)
    photos = [folder / "JPEGImages" / f"{inside}{ending}" for ending in (".jpg", ".jpeg", ".JPG", ".png")]
    read_labels = partial(_read_or_refuse, mask, read)
    labels = read_labels()
    return LabelledPhoto(
        id=inside,
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
