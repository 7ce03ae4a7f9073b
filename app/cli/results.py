"""Results of segmented photos, kept in a file: what is there is not asked for again. Also the pictures made of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
# In the folder of the results: the answers, and the folders of the label maps and of the painted photos.
ANSWERS = "results.ndjson"
PICTURE_FOLDERS = ("masks", "overlays")
# The service has read a photo before it is drawn, so it is no larger than the service allows.
_MAX_PIXELS = 2**31
# Keyword of the chunk of a picture that says which answer it shows.
_SHOWS = "answer"
# First in every file of answers.
_START = b'{"asked": '


@dataclass(frozen=True)
class NamedPhoto:
    """A photo and its name among those of a run: its path in the folder that holds all of them."""

    name: str
    file: Path


@dataclass(frozen=True)
class Listing:
    """The photos that arguments stand for.

    Attributes:
        folder: The folder that holds all of them, without links.
        photos: The photos, each once.
        problems: Why a folder could not be searched, or a link leads nowhere, by its path.
    """

    folder: str
    photos: Sequence[NamedPhoto]
    problems: Mapping[str, str]


def listed(places: Sequence[Path], *, without: Path | None) -> Listing:
    """The photos that arguments stand for: files as they are, and the image files in folders and their subfolders.

    Pictures drawn by this command, now or earlier, are no photos, wherever they lie.

    Args:
        places: Files and folders.
        without: Folder of the results, which may hold the photos or lie among them.

    Raises:
        InvalidInputError: If a folder has no image file.
    """
    search = _Search({os.path.realpath(without / name) for name in PICTURE_FOLDERS} if without else set())
    files = [file for place in places for file in (search.photos_in(place) if place.is_dir() else [place])]
    # abspath and not absolute(): with dots, names would lead out of the folder of the results.
    base = os.path.commonpath([os.path.abspath(place if place.is_dir() else place.parent) for place in places])
    photos = [NamedPhoto(Path(os.path.abspath(file)).relative_to(base).as_posix(), file) for file in files]
    return Listing(os.path.realpath(base), list({photo.name: photo for photo in photos}.values()), search.problems)


@dataclass(frozen=True)
class _Search:
    """A search for photos in folders.

    Attributes:
        drawn: Folders of pictures that are to be drawn, without links.
        problems: As of `Listing`.
    """

    drawn: Collection[str]
    problems: dict[str, str] = field(default_factory=dict)

    def photos_in(self, folder: Path) -> list[Path]:
        """The image files in a folder and its subfolders."""
        files = [file for file in sorted(self._visible_files(folder)) if self._is_photo(file)]
        if not files and not self.problems:
            raise InvalidInputError(f"The folder {folder} has no image file ({', '.join(sorted(PHOTO_SUFFIXES))}).")
        return files

    def _visible_files(self, folder: Path) -> Iterator[Path]:
        """Files in a folder and its subfolders, linked ones too, each folder once; nothing that is hidden or drawn."""
        seen = set()
        for place, subfolders, names in os.walk(folder, followlinks=True, onerror=self._add_problem):
            real = os.path.realpath(place)
            if real in seen or self._is_drawn(Path(real)):  # seen: a link to a folder around it
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            yield from (Path(place, name) for name in names if not name.startswith("."))

    def _is_drawn(self, folder: Path) -> bool:
        """True for a folder of pictures that this command draws, and for those in it."""
        return any(
            str(place) in self.drawn or (place.name in PICTURE_FOLDERS and _has_answers(place.with_name(ANSWERS)))
            for place in (folder, *folder.parents)
        )

    def _is_photo(self, file: Path) -> bool:
        is_named_so = file.suffix.lower() in PHOTO_SUFFIXES
        if not is_named_so and (file.suffix or not file.is_symlink()):  # a link without an ending may be to a folder
            return False
        try:
            return stat.S_ISREG(file.stat().st_mode) and is_named_so
        except OSError as error:
            self._add_problem(error)
            return False

    def _add_problem(self, error: OSError) -> None:
        self.problems[str(error.filename)] = f"{error.strerror}."


class Results:
    """The answers of a run, kept in a file as they arrive: one line of JSON each, after a line with what was asked.

    Args:
        file: The file, which is made if it is not there. Without an answer it is begun anew.
        header: The first line: `asked`, the categories and options, and `folder`, which the names of photos refer to.
        earlier: Answers that `carry_over` adds.

    Raises:
        InvalidInputError: If the file is another one, or the results are those of other categories, options or photos.
    """

    def __init__(self, file: Path, header: Mapping[str, Any], *, earlier: Sequence[Mapping[str, Any]] = ()) -> None:
        self._answers: dict[str, Mapping[str, Any]] = {}
        self._earlier = {line["filename"]: line for line in earlier}
        # In the order in which they occur first, so that further photos change no id.
        self.category_ids: dict[str, int] = {}
        first, answers, size = _read(file)
        if answers:
            _check_asked(file, first, header["asked"])
            _check_folder(file, first, header["folder"])
        for line in answers:
            self._keep(line)
        self._opened = file.open("a", encoding="utf-8")
        # Without a line in the middle of which the process that wrote it was killed.
        self._opened.truncate(size if answers else 0)
        if not answers:
            self._write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def names(self) -> list[str]:
        """Names of the photos that have an answer, also an earlier one."""
        return list(self._earlier | self._answers)

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

    def carry_over(self) -> None:
        """Keep the earlier answers to photos that have no other."""
        for name, line in self._earlier.items():
            if name not in self._answers:
                self._write(line)
                self._keep(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._opened.write(json.dumps(line) + "\n")
        self._opened.flush()

    def _keep(self, line: Mapping[str, Any]) -> None:
        self._answers[line["filename"]] = line
        for found in line["categories"]:
            self.category_ids.setdefault(found["name"], len(self.category_ids) + 1)


@contextmanager
def results_in(file: Path, asked: Mapping[str, Any], folder: str, *, again: bool) -> Iterator[Results]:
    """The results of a file, for one command at a time.

    Args:
        file: The file.
        asked: Categories and options.
        folder: Folder that the names of the photos refer to.
        again: True for new results, which take the place of those in the file unless the block ends by an exception.

    Raises:
        InvalidInputError: As `Results`; and if another command has them.
    """
    header = {"asked": dict(asked), "folder": folder}
    with file.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidInputError(
                f"Another command writes to {file}: wait for it, or choose another --out."
            ) from error
        if not again:
            with Results(file, header) as results:
                yield results
            return
        first, answers, _ = _read(file)
        if answers:
            _check_folder(file, first, folder)
        new = file.with_name(f"again.{file.name}")
        new.unlink(missing_ok=True)
        try:
            with Results(new, header, earlier=answers if first.get("asked") == asked else ()) as results:
                yield results
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)


def picture_names(photos: Collection[str]) -> dict[str, str]:
    """Names of the pictures drawn of photos, by the names of the photos: ending in .png, and no two the same."""
    stems = {name: _stem(name) for name in photos}
    taken = Counter([*stems, *stems.values()])  # a.jpg.bmp has the name of a.jpg as its stem
    return {name: f"{stem}.png" if taken[stem] == 1 else f"{name}.png" for name, stem in stems.items()}


def unused_names(pictures: Mapping[str, str]) -> set[str]:
    """Names that pictures had before another photo of their stem came or went, and that none of `pictures` has."""
    return {f"{form}.png" for name in pictures for form in (name, _stem(name))} - set(pictures.values())


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def shows(picture: Path, answer: Mapping[str, Any], category_ids: Mapping[str, int]) -> bool:
    """True if a file is a picture of this answer, drawn by `label_map` or `painted`."""
    return _shown(picture) == _digest(answer, category_ids)


def is_drawn(picture: Path) -> bool:
    """True if a file is a picture of any answer."""
    return _shown(picture) is not None


def _shown(picture: Path) -> object:
    """Digest of the answer that a picture shows; None if it is not there, or of another origin."""
    try:
        with Image.open(picture) as opened:
            return opened.info.get(_SHOWS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _digest(answer: Mapping[str, Any], category_ids: Mapping[str, int]) -> str:
    """Stands for all of an answer that a picture shows."""
    found = [
        (category_ids[one["name"]], one["name"], one["segmentation"]) for one in answer["categories"] if one["area"]
    ]
    return hashlib.sha256(json.dumps([answer["image"]["sha256"], found]).encode()).hexdigest()


def check_labels(count: int) -> None:
    """Check the number of categories.

    Raises:
        InvalidInputError: If there are more than a label map can hold.
    """
    if count > MAX_LABELS:
        raise InvalidInputError(
            f"A label map (--masks) holds at most {MAX_LABELS} categories, there are {count}: choose fewer with "
            "--category, or omit --masks."
        )


def label_map(answer: Mapping[str, Any], category_ids: Mapping[str, int]) -> bytes:
    """Draw an answer as a label map, PNG: 0 = background, a category has its id.

    Raises:
        InvalidInputError: As `check_labels`.
    """
    check_labels(len(category_ids))
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


def _has_answers(file: Path) -> bool:
    """True if a file is one of answers."""
    if not os.path.isfile(file):
        return False
    with file.open("rb") as opened:
        return opened.read(len(_START)) == _START


def _read(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """The first line and the answers of a file, without a last line that was cut off, and their size in bytes.

    Raises:
        InvalidInputError: If it is no file of answers. An empty one is, and so is none.
    """
    raw = file.read_bytes() if file.exists() else b""
    *texts, cut_off = raw.split(b"\n")
    try:
        if raw[: len(_START)] != _START[: len(raw)]:
            raise ValueError("it does not begin with what was asked")
        first, *answers = [dict(json.loads(text)) for text in texts] or [{}]
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{file} has no results of this command ({error}): remove it to start again."
        ) from error
    return first, answers, len(raw) - len(cut_off)


def _check_asked(file: Path, first: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if first["asked"] != asked:
        before = json.dumps(first["asked"], ensure_ascii=False)
        raise InvalidInputError(
            f"{file} has results of other categories or options ({before}): use these, choose another --out, or "
            "segment all photos --again."
        )


def _check_folder(file: Path, first: Mapping[str, Any], folder: str) -> None:
    """Check that photos of the same name are the same: those of another folder would replace them."""
    before = first.get("folder", folder)  # earlier versions did not write it
    if before != folder:
        raise InvalidInputError(
            f"{file} has results of photos in {before}, not in {folder}: choose another --out. If the photos were "
            "moved, correct the folder in the first line of that file."
        )
