"""COCO instances files: reader, also of what labelling tools export, and writer. Knows no torch."""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from app.errors import InvalidInputError
from app.masks import MalformedMaskError, Mask
from app.masks.boxes import box_to_mask
from app.masks.parts import parts_of
from app.masks.polygons import polygons_to_mask
from app.masks.rle import rle_size, rle_to_mask

# Label Studio puts eight hexadecimal digits before the name of an uploaded file.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")

# Numbers of a polygon of three corners.
_LEAST_RING = 6

# Five times as many as the service takes without a change of its settings.
_MAX_PIXELS = 200_000_000

# A connected part with less than this share of the photo is a speck: 61 of 640 × 480 pixels.
_LEAST_PART = 1 / 5000

# First in the files that we write: they may be written again, other files may not.
_INFO = {"description": "Segmented by Exemplar"}

Id = int | str


@dataclass(frozen=True)
class CocoImage:
    """A photo of the file.

    Attributes:
        id: Its id.
        file_name: As the file has it: a path, or an address.
        hw: (height, width) that the annotations refer to; None if the file has none.
    """

    id: Id
    file_name: str
    hw: tuple[int, int] | None


@dataclass(frozen=True)
class CocoAnnotation:
    """An annotated object.

    Attributes:
        image: Id of the photo.
        category: Id of the category.
        segmentation: Run lengths or polygons; None if there is only a box.
        bbox: `[x, y, width, height]`, or whatever else the file has in its place.
        area: In pixels.
        is_crowd: True for a region of many objects that are not marked one by one.
    """

    image: Id
    category: Id
    segmentation: object
    bbox: object
    area: float
    is_crowd: bool

    def mask(self, hw: tuple[int, int]) -> Mask:
        """The mask `[height, width]`; that of the box if there is nothing finer.

        Raises:
            MalformedMaskError: If it can't be drawn.
        """
        check_size(hw)
        if isinstance(self.segmentation, dict):
            if (rle_hw := rle_size(self.segmentation)) != hw:
                raise MalformedMaskError(f"expected run lengths of size {list(hw)}, got {list(rle_hw)}")
            return rle_to_mask(self.segmentation)
        rings = _rings(self.segmentation)
        return box_to_mask(self.bbox, hw) if rings == [] else polygons_to_mask(rings, hw)


@dataclass(frozen=True)
class Coco:
    """A COCO instances file.

    Attributes:
        file: Where it lies.
        categories: Name of each category by its id, in the order of the file.
        images: Photos by their ids.
        annotations: Annotations of each photo that has some.
    """

    file: Path
    categories: Mapping[Id, str]
    images: Mapping[Id, CocoImage]
    annotations: Mapping[Id, Sequence[CocoAnnotation]]

    def folders(self) -> list[Path]:
        """Where photos usually lie: beside the file, or beside its folder, in one named after the split or `images`."""
        here = self.file.parent
        split = self.file.stem.removeprefix("instances_")
        parts = ("", "images", split, f"images/{split}")
        return [folder / part for folder in (here, here.parent) for part in parts]


def _name(category: Mapping[str, object]) -> str:
    name = category["name"]
    if not isinstance(name, str):
        raise TypeError(f"the name of category {category['id']} is no text")
    return name.strip()


def read_coco(file: Path) -> Coco:
    """Read a COCO instances file.

    Raises:
        InvalidInputError: If it is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))  # some tools begin it with a byte order mark
        categories = {item["id"]: _name(item) for item in content["categories"]}
        images = {item["id"]: CocoImage(item["id"], str(item["file_name"]), _hw(item)) for item in content["images"]}
        annotations = defaultdict(list)
        for item in content["annotations"]:
            if item["image_id"] in images and item["category_id"] in categories:
                annotations[item["image_id"]].append(_annotation(item))
    except OSError as error:
        raise InvalidInputError(f"{file} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError(
            f"{file} is not a COCO instances file: it needs images, annotations and categories "
            f"({type(error).__name__}: {error})."
        ) from error
    if content["annotations"] and images and categories and not annotations:
        raise InvalidInputError(
            f"No annotation of {file} is of its images and categories: an image_id or category_id has to be one of "
            "their ids, and a number is no text."
        )
    return Coco(file, categories, images, dict(annotations))


def find_photos(coco: Coco, folders: Sequence[Path]) -> dict[Id, Path | None]:
    """The file of each photo, in the first of the folders that has it; None if none has.

    Tools write paths of their own machine, such as `../upload/7/3fa0c1d2-cat.jpg` or an address: leading folders are
    dropped one by one, so that the file is found by the rest. Nothing outside the folders is looked at.

    If several names lead to one file, such as `a/1.jpg` and `b/1.jpg` to `photos/a/1.jpg`, it is that of the name which
    agrees best with its path; of none if two agree alike, since either may be of another photo.
    """
    found = {id: _find(image.file_name, folders) for id, image in coco.images.items()}
    names: defaultdict[Path | None, set[str]] = defaultdict(set)
    for id, path in found.items():
        names[path].add(coco.images[id].file_name)
    owners = {path: _best(several, path) for path, several in names.items() if path}
    return {id: path if path and owners[path] == coco.images[id].file_name else None for id, path in found.items()}


def _find(file_name: str, folders: Iterable[Path]) -> Path | None:
    places = _places(file_name)
    return next((path for folder in folders for place in places if _is_file(path := folder / place)), None)


def _best(names: Iterable[str], path: Path) -> str | None:
    """The name that agrees best with a path; None if two agree alike."""
    best, *others = sorted(names, key=lambda name: _agreement(name, path), reverse=True)
    return None if others and _agreement(others[0], path) == _agreement(best, path) else best


def _agreement(file_name: str, path: Path) -> tuple[bool, int, bool]:
    """How well a name agrees with a path: as a whole, in how many of its last parts, and in the last as it is."""
    places = _places(file_name)
    parts = path.absolute().parts
    most = max((len(place.parts) for place in places if parts[-len(place.parts) :] == place.parts), default=0)
    return most == len(places[0].parts), most, places[0].name == path.name


def union(annotations: Iterable[CocoAnnotation], hw: tuple[int, int]) -> Mask:
    """What several annotations mark together.

    Raises:
        MalformedMaskError: If one can't be drawn.
    """
    check_size(hw)
    marked = np.zeros(hw, dtype=bool)
    for annotation in annotations:
        marked |= annotation.mask(hw)
    return marked


def check_size(hw: tuple[int, int]) -> None:
    """Check the size of a photo as a file has it, before memory for its mask is taken.

    Raises:
        MalformedMaskError: If no photo has so many pixels.
    """
    height, width = hw
    if height * width > _MAX_PIXELS:
        raise MalformedMaskError(f"expected a photo of at most {_MAX_PIXELS} pixels, got {height} × {width}")


def coco_json(
    answers: Iterable[tuple[str, Mapping[str, Any]]], category_ids: Mapping[str, int], *, parts: bool = False
) -> dict[str, Any]:
    """A COCO instances file of answers of the service.

    Args:
        answers: Names of photos and the answers to them, with masks as run lengths; photos are numbered in this order.
        category_ids: Id of every category in the answers.
        parts: True for an annotation of each connected part of a mask instead of one of the whole. Specks beside the
            largest part are left out.

    Returns:
        `images`, `annotations` (compressed run lengths; `score` is the presence) and `categories`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, answer) in enumerate(answers, 1):
        size = answer["image"]
        images.append({"id": number, "file_name": name, "width": size["width"], "height": size["height"]})
        for found in answer["categories"]:
            if not found["area"]:
                continue
            for marked in _parts(found) if parts else [found]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category_ids[found["name"]],
                        "segmentation": marked["segmentation"],
                        "area": marked["area"],
                        "bbox": marked["bbox"],
                        "iscrowd": 0,
                        "score": found["presence"],
                    }
                )
    categories = [{"id": id, "name": name, "supercategory": ""} for name, id in category_ids.items()]
    return {"info": _INFO, "images": images, "annotations": annotations, "categories": categories}


def _parts(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The connected parts of a category's mask that are no specks."""
    mask = rle_to_mask(found["segmentation"])
    parts = parts_of(mask, min_area=_LEAST_PART * mask.size)
    return [{"segmentation": part.rle(mask.shape), "area": part.area, "bbox": part.bbox} for part in parts]


def is_ours(file: Path) -> bool:
    """True if `coco_json` made a file."""
    start = json.dumps({"info": _INFO}).removesuffix("}").encode()
    with file.open("rb") as opened:
        return opened.read(len(start)) == start


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it is the old or the new one at every moment; links, devices and pipes stay."""
    if os.path.exists(file) and not os.path.isfile(file):
        file.write_bytes(content)
        return
    file = Path(os.path.realpath(file))
    beside = file.with_name(f".{os.getpid()}.part")  # without the file's own name, which may be as long as names may be
    try:
        beside.write_bytes(content)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _hw(item: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = (_number(item.get(side)) for side in ("height", "width"))
    return (int(height), int(width)) if height >= 1 and width >= 1 else None


def _annotation(item: Mapping[str, Any]) -> CocoAnnotation:
    bbox = item.get("bbox")
    area = _number(item.get("area"))
    if not area and isinstance(bbox, list) and len(bbox) == 4:
        area = _number(bbox[2]) * _number(bbox[3])
    return CocoAnnotation(
        image=item["image_id"],
        category=item["category_id"],
        segmentation=item.get("segmentation") or None,
        bbox=bbox,
        area=area,
        is_crowd=bool(item.get("iscrowd")),
    )


def _number(value: object) -> float:
    """A finite number as it is; 0 for anything else, since tools leave sizes and areas out."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
    except OverflowError:  # a whole number of more digits than a float has
        return 0.0


def _rings(segmentation: object) -> object:
    """Polygons without those of fewer than three corners, which tools leave behind; anything else as it is."""
    if not isinstance(segmentation, list):
        return segmentation or []
    rings = segmentation if any(isinstance(ring, list) for ring in segmentation) else [segmentation]
    return [ring for ring in rings if not isinstance(ring, list) or len(ring) >= _LEAST_RING]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is longer than names may be
        return False


def _places(file_name: str) -> list[Path]:
    """Relative paths at which a photo may lie, the most exact first."""
    name = file_name.replace("\\", "/")
    if "://" in name or name.startswith("/data/"):
        with suppress(ValueError):  # brackets in an address of another kind, such as s3://bucket[1]/a.jpg
            address = urlsplit(name)
            # Label Studio serves local files as /data/local-files/?d=folder/photo.jpg.
            name = unquote(address.query.removeprefix("d=") if address.query.startswith("d=") else address.path)
    parts = [part for part in PurePosixPath(name).parts if part not in ("..", "/")]
    places = [Path(*parts[start:]) for start in range(len(parts))]
    uploaded = [place.with_name(_UPLOAD_PREFIX.sub("", place.name)) for place in places if place.name]
    # macOS writes an accent as a character of its own, other systems as part of the letter.
    forms = [Path(unicodedata.normalize(form, str(place))) for place in [*places, *uploaded] for form in ("NFC", "NFD")]
    return list(dict.fromkeys([*places, *uploaded, *forms]))
