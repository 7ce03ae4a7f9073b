"""Results of segmented photos, kept in a file: what is there is not asked for again. Also the pictures made of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from PIL import Image

from app.errors import InvalidInputError
from app.images.photo import decode_photo
from app.masks.pictures import MAX_LABELS, label_map_to_png, overlay, palette, rgb_to_png
from app.masks.rle import rle_to_mask

# Endings of the image files that are taken from a folder.
PHOTO_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff")
)  # as the service reads them
# Folders of the label maps and of the painted photos, in that of the results.
PICTURE_FOLDERS = ("masks", "overlays")
# The service has read a photo before it is drawn, so it is no larger than the service allows.
_MAX_PIXELS = 2**31
# Keyword of the chunk of a picture that says which answer it shows.
_SHOWS = "answer"


@dataclass(frozen=True)
class NamedPhoto:
    """A photo and its name among those of a run: its path in the folder that holds all of them."""

    name: str
    file: Path


def listed(places: Sequence[Path], *, without: Path | None) -> list[NamedPhoto]:
    """The photos that arguments stand for: files as they are, and the image files in folders and their subfolders.

    Args:
        places: Files and folders.
        without: Folder of the results: the pictures in it are left out, since it may hold the photos or lie among them.

    Raises:
        InvalidInputError: If a folder has no image file.
    """
    files = [file for place in places for file in (_photos_in(place, without) if place.is_dir() else [place])]
    # abspath and not absolute(): with dots, names would lead out of the folder of the results.
    base = os.path.commonpath([os.path.abspath(place if place.is_dir() else place.parent) for place in places])
    return [NamedPhoto(Path(os.path.abspath(file)).relative_to(base).as_posix(), file) for file in files]


def _photos_in(folder: Path, without: Path | None) -> list[Path]:
    drawn = [Path(os.path.abspath(without / name)) for name in PICTURE_FOLDERS] if without else []
    files = sorted(
        file
        for file in _visible_files(folder)
        if file.suffix.lower() in PHOTO_SUFFIXES
        and file.is_file()
        and not any(Path(os.path.abspath(file)).is_relative_to(pictures) for pictures in drawn)
    )
    if not files:
        raise InvalidInputError(f"The folder {folder} has no image file ({', '.join(sorted(PHOTO_SUFFIXES))}).")
    return files


def _visible_files(folder: Path) -> Iterator[Path]:
    """Files in a folder and its subfolders, linked ones too, each folder once; nothing that is hidden."""
    seen = set()
    for place, subfolders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder around it
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(place, name) for name in names if not name.startswith("."))


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
        lines, size = _lines_of(file)
        if lines and lines[0].get("asked") != asked:
            before = json.dumps(lines[0].get("asked"), ensure_ascii=False)
            raise InvalidInputError(
                f"{file} has results of other categories or options ({before}): use these, choose another --out, or "
                "segment all photos --again."
            )
        for line in lines[1:]:
            self._keep(line)
        self._opened = file.open("a", encoding="utf-8")
        self._opened.truncate(size)  # without a line in the middle of which the process that wrote it was killed
        if not lines:
            self._write({"asked": dict(asked)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

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
        self._write(line)
        self._keep(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._opened.write(json.dumps(line) + "\n")
        self._opened.flush()

    def _keep(self, line: dict[str, Any]) -> None:
        self._answers[line["filename"]] = line
        for found in line["categories"]:
            self.category_ids.setdefault(found["name"], len(self.category_ids) + 1)


@contextmanager
def results_in(file: Path, asked: Mapping[str, Any], *, again: bool) -> Iterator[Results]:
    """The results of a file, for one command at a time.

    Args:
        file: The file.
        asked: As of `Results`.
        again: True for new results, which take the place of those in the file unless the block ends by an exception.

    Raises:
        InvalidInputError: As `Results`; and if another command has them.
    """
    with file.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidInputError(
                f"Another command writes to {file}: wait for it, or choose another --out."
            ) from error
        if not again:
            with Results(file, asked) as results:
                yield results
            return
        new = file.with_name(f"again.{file.name}")
        new.unlink(missing_ok=True)
        try:
            with Results(new, asked) as results:
                yield results
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)


def picture_names(photos: Iterable[NamedPhoto]) -> dict[str, str]:
    """Names of the pictures drawn of photos, by the names of the photos: ending in .png, and no two the same."""
    stems = {photo.name: str(PurePosixPath(photo.name).with_suffix("")) for photo in photos}
    taken = Counter([*stems, *stems.values()])  # a.jpg.bmp has the name of a.jpg as its stem
    return {name: f"{stem}.png" if taken[stem] == 1 else f"{name}.png" for name, stem in stems.items()}


def shows(picture: Path, answer: Mapping[str, Any], category_ids: Mapping[str, int]) -> bool:
    """True if a file is a picture of this answer, drawn by `label_map` or `painted`."""
    try:
        with Image.open(picture) as opened:
            return bool(opened.info.get(_SHOWS) == _digest(answer, category_ids))
    except (OSError, ValueError, SyntaxError):  # not there, or no picture
        return False


def _digest(answer: Mapping[str, Any], category_ids: Mapping[str, int]) -> str:
    """Stands for all of an answer that a picture shows."""
    found = [
        (category_ids[one["name"]], one["name"], one["segmentation"]) for one in answer["categories"] if one["area"]
    ]
    return hashlib.sha256(json.dumps([answer["image"]["sha256"], found]).encode()).hexdigest()


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
    notes = {_SHOWS: _digest(answer, category_ids)}
    return label_map_to_png(labels, list(category_ids), palette(len(category_ids)), notes=notes)


def painted(answer: Mapping[str, Any], category_ids: Mapping[str, int], file: Path) -> bytes:
    """Draw an answer over its photo, PNG."""
    photo = decode_photo(file.read_bytes(), max_pixels=_MAX_PIXELS)
    masks = (rle_to_mask(found["segmentation"]) for found in answer["categories"])
    names = [found["name"] for found in answer["categories"]]
    return rgb_to_png(overlay(photo.rgb, masks, names), notes={_SHOWS: _digest(answer, category_ids)})


def _lines_of(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a file, but for the last one if it was cut off, and the size of these; none if there is no file."""
    *texts, cut_off = (raw := file.read_bytes() if file.exists() else b"").split(b"\n")
    try:
        return [dict(json.loads(text)) for text in texts], len(raw) - len(cut_off)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{file} has no results of this command ({error}): remove it to start again."
        ) from error
