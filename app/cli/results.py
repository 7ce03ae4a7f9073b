"""Results of segmented photos, kept in a file: what is there is not asked for again. Also the pictures made of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from app.coco import coco_json, write_whole
from app.errors import InvalidInputError
from app.images.photo import decode_photo
from app.masks.pictures import MAX_LABELS, label_map_to_png, overlay, palette, rgb_to_png
from app.masks.rle import rle_to_mask

# Endings of the image files that are taken from a folder.
PHOTO_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff")
)  # as the service reads them
# The service has read a photo before it is drawn, so it is no larger than the service allows.
_MAX_PIXELS = 2**31


@dataclass(frozen=True)
class NamedPhoto:
    """A photo and its name among those of a run: its path in the folder that holds all of them."""

    name: str
    file: Path


def listed(places: Sequence[Path], *, without: Path | None) -> list[NamedPhoto]:
    """The photos that arguments stand for: files as they are, and the image files in folders and their subfolders.

    Args:
        places: Files and folders.
        without: A folder to leave out: that of the results, which may lie among the photos.

    Raises:
        InvalidInputError: If a folder has no image file.
    """
    files = [file for place in places for file in (_photos_in(place, without) if place.is_dir() else [place])]
    # abspath and not absolute(): with dots, names would lead out of the folder of the results.
    base = os.path.commonpath([os.path.abspath(place if place.is_dir() else place.parent) for place in places])
    return [NamedPhoto(Path(os.path.abspath(file)).relative_to(base).as_posix(), file) for file in files]


def _photos_in(folder: Path, without: Path | None) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in PHOTO_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not (without and Path(os.path.abspath(file)).is_relative_to(os.path.abspath(without)))
    )
    if not files:
        raise InvalidInputError(f"The folder {folder} has no image file ({', '.join(sorted(PHOTO_SUFFIXES))}).")
    return files


class Results:
    """The answers of a run, kept in a file as they arrive: one line of JSON each, after a line with what was asked.

    Args:
        file: The file, which is made if it is not there.
        asked: Categories and options; a file of others is refused.

    Raises:
        InvalidInputError: If the file is another one, or the results are those of other categories or options.
    """

    def __init__(self, file: Path, asked: Mapping[str, Any]) -> None:
        self._answers: dict[str, dict[str, Any]] = {}
        # In the order in which they occur first, so that further photos change no id.
        self.category_ids: dict[str, int] = {}
        lines = _lines_of(file) if file.exists() else []
        if not lines:
            lines = [{"asked": dict(asked)}]
        elif lines[0].get("asked") != asked:
            before = json.dumps(lines[0].get("asked"), ensure_ascii=False)
            raise InvalidInputError(
                f"{file} has results of other categories or options ({before}): use these, choose another --out, or "
                "segment all photos --again."
            )
        for line in lines[1:]:
            self._keep(line)
        # Whole again, if the process that wrote it was killed in the middle of a line.
        write_whole(file, "".join(map(_as_line, lines)).encode())
        self._opened = file.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __len__(self) -> int:
        return len(self._answers)

    def answer_to(self, photo: NamedPhoto) -> Mapping[str, Any] | None:
        """The answer that is kept of this very file."""
        answer = self._answers.get(photo.name)
        if answer is None:
            return None
        try:
            digest = hashlib.sha256(photo.file.read_bytes()).hexdigest()
        except OSError:  # whoever sends it finds that too, and reports it
            return None
        return answer if digest == answer["image"]["sha256"] else None

    def add(self, photo: NamedPhoto, answer: Mapping[str, Any]) -> None:
        """Keep an answer."""
        line = {name: value for name, value in answer.items() if name != "index"} | {"filename": photo.name}
        self._opened.write(_as_line(line))
        self._opened.flush()
        self._keep(line)

    def write_coco(self, file: Path) -> None:
        """Write all results as COCO instances."""
        write_whole(file, json.dumps(coco_json(self._answers, self.category_ids)).encode())

    def _keep(self, line: dict[str, Any]) -> None:
        self._answers[line["filename"]] = line
        for found in line["categories"]:
            self.category_ids.setdefault(found["name"], len(self.category_ids) + 1)


def picture_names(photos: Iterable[NamedPhoto]) -> dict[str, str]:
    """Names of the pictures drawn of photos, by the names of the photos: ending in .png, and no two the same."""
    names = {photo.name for photo in photos}
    stems = Counter(str(PurePosixPath(name).with_suffix("")) for name in names)
    return {
        name: f"{stem}.png" if stems[stem := str(PurePosixPath(name).with_suffix(""))] == 1 else f"{name}.png"
        for name in names
    }


def label_map(answer: Mapping[str, Any], category_ids: Mapping[str, int]) -> bytes:
    """Draw an answer as a label map, PNG: 0 = background, a category has its id.

    Raises:
        InvalidInputError: If there are more categories than a label map can hold.
    """
    if len(category_ids) > MAX_LABELS:
        raise InvalidInputError(
            f"A label map (--masks) holds at most {MAX_LABELS} categories, there are {len(category_ids)}: choose fewer "
            "with --category, or omit --masks."
        )
    labels = np.zeros((answer["image"]["height"], answer["image"]["width"]), np.uint8)
    for found in answer["categories"]:
        if found["area"]:
            labels[rle_to_mask(found["segmentation"])] = category_ids[found["name"]]
    return label_map_to_png(labels, list(category_ids), palette(len(category_ids)))


def painted(answer: Mapping[str, Any], file: Path) -> bytes:
    """Draw an answer over its photo, PNG."""
    photo = decode_photo(file.read_bytes(), max_pixels=_MAX_PIXELS)
    masks = (rle_to_mask(found["segmentation"]) for found in answer["categories"])
    return rgb_to_png(overlay(photo.rgb, masks, [found["name"] for found in answer["categories"]]))


def _lines_of(file: Path) -> list[dict[str, Any]]:
    """The lines, but for the last one if it was cut off."""
    *texts, _ = file.read_bytes().split(b"\n")
    try:
        return [dict(json.loads(text)) for text in texts]
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{file} has no results of this command ({error}): remove it to start again."
        ) from error


def _as_line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"
