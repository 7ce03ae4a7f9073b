"""COCO run lengths: writer, reader, and the size read alone."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Int, UInt8
from pycocotools import mask as coco_mask

from . import MalformedMaskError, Mask

# A string of run lengths: the first character of its alphabet, the first of those that say that a number continues, and
# the last.
_FIRST, _CONTINUES, _LAST = 48, 48 + 0x20, 48 + 0x3F

# 35 bits: more than any run that pycocotools can hold, and safe in int64.
_MOST_CHARACTERS = 7

# What is computed of a character takes up to 64 bytes, a run only 8: so the characters are read some at a time.
_CHARACTERS_AT_ONCE = 1 << 15


class Rle(TypedDict):
    """COCO's compressed run lengths: column by column, the first run counts background pixels."""

    size: list[int]  # height, width
    counts: str


def mask_to_rle(mask: Mask) -> Rle:
    """Encodes a mask as COCO's compressed run lengths.

    Args:
        mask: `[height, width]`.

    Returns:
        `{"size": [height, width], "counts": str}`, ready for JSON; byte-equal to what pycocotools writes.

    Source: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
    """
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    height, width = mask.shape
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def crop_to_rle(crop: Mask, *, left: int, top: int, image_hw: tuple[int, int]) -> Rle:
    """Encodes a mask of which only a box has pixels, without a mask of the whole image.

    Args:
        crop: The mask within the box.
        left: First column of the box.
        top: First row of the box.
        image_hw: (height, width) of the image.

    Returns:
        As `mask_to_rle` of the mask of the whole image.
    """
    height, width = image_hw
    columns = np.zeros((height, crop.shape[1]), dtype=bool)
    columns[top : top + crop.shape[0]] = crop
    column_by_column = np.concatenate([[False], columns.ravel(order="F"), [False]])
    changes = np.flatnonzero(column_by_column[1:] != column_by_column[:-1]) + left * height
    runs = np.diff(np.concatenate([[0], changes, [height * width]])).tolist()
    runs = runs[: len(runs) - (runs[-1] == 0)]  # none after a mark in the last pixel
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def rle_to_mask(rle: object) -> Mask:
    """Decodes COCO run lengths, compressed (a string) or not (a list of numbers).

    pycocotools' decoder is not called: its C code trusts the counts and writes past its buffer if they are wrong.
    Here the counts are checked against the size before the mask is allocated, and their number before they are
    expanded. The size itself is not bounded: compare `rle_size` with the photo first. Decoding takes up to 12 bytes per
    character of a string, and 2 per pixel.

    Args:
        rle: `{"size": [height, width], "counts": str | list[int]}`.

    Returns:
        The mask `[height, width]`.

    Raises:
        MalformedMaskError: Not run lengths, more than a mask of their size can have, or counts that don't add up to
            height × width.
    """
    height, width = rle_size(rle)
    counts = rle.get("counts") if isinstance(rle, dict) else None
    most = height * width + 2  # each pixel a run of its own, and empty ones at both ends
    if (number := _number_of_runs(counts)) > most:
        raise MalformedMaskError(f"expected at most {most} run lengths of {height} × {width} pixels, got {number}")
    runs = _runs_of(counts)
    if runs is None:
        raise MalformedMaskError('expected "counts" to be a string or a list of whole numbers, 0 or more')
    covered = int(runs.sum(dtype=object))  # Python's integers don't overflow, so a wrong sum can't look right
    if runs.min(initial=0) < 0 or covered != height * width:
        raise MalformedMaskError(
            f"expected counts that add up to {height} × {width} = {height * width} pixels, got {covered}"
        )
    return np.ascontiguousarray(filled(runs, height, width))


def filled(runs: Int[np.ndarray, " run"], height: int, width: int) -> Mask:
    """The mask `[height, width]` of run lengths that add up to its size, column by column in memory."""
    is_marked = np.zeros(len(runs), dtype=bool)
    is_marked[1::2] = True
    return np.repeat(is_marked, runs).reshape((height, width), order="F")


def rle_size(rle: object) -> tuple[int, int]:
    """Reads height and width of run lengths without decoding them.

    Args:
        rle: `{"size": [height, width], …}`.

    Returns:
        (height, width), both in 1…2³¹ − 1.

    Raises:
        MalformedMaskError: No valid size.
    """
    size = rle.get("size") if isinstance(rle, dict) else None
    if not (
        isinstance(size, list | tuple) and len(size) == 2 and all(_is_whole(side) and 0 < side < 2**31 for side in size)
    ):
        raise MalformedMaskError('expected "size" to be [height, width], two whole numbers from 1 to 2³¹ − 1')
    return int(size[0]), int(size[1])


def _is_whole(value: object) -> bool:
    """True for a whole number, also one that a tool wrote as 7.0."""
    return type(value) is int or (isinstance(value, float) and value.is_integer())


def _number_of_runs(counts: object) -> int:
    """The number of run lengths in `counts`, without memory for them; 0 if it is neither of COCO's two forms."""
    if isinstance(counts, str):
        return int(np.count_nonzero(_characters(counts) < _CONTINUES))
    return len(counts) if isinstance(counts, list) else 0


def _runs_of(counts: object) -> Int[np.ndarray, " run"] | None:
    """The run lengths in `counts`, possibly negative; None if `counts` is neither of COCO's two forms."""
    if isinstance(counts, str):
        return decompressed(counts)
    # 2**40 is above every image and small enough for int64.
    if isinstance(counts, list) and all(_is_whole(count) and 0 <= count < 2**40 for count in counts):
        return np.array(counts, dtype=np.int64)
    return None


def decompressed(counts: str) -> Int[np.ndarray, " run"] | None:
    """The inverse of `rleToString` in maskApi.c: 5 bits per character, low first; differences from the fourth run on.

    None if it is no such string. Runs may be negative.
    """
    characters = _characters(counts)
    if not len(characters) or characters.min() < _FIRST or characters.max() > _LAST or characters[-1] >= _CONTINUES:
        return None
    runs = np.empty(np.count_nonzero(characters < _CONTINUES), dtype=np.int64)
    start = read = 0
    while start < len(characters):
        numbers = _numbers(characters[start : start + _CHARACTERS_AT_ONCE])
        if numbers is None:
            return None
        values, length = numbers
        runs[read : read + len(values)] = values
        start += length
        read += len(values)
    np.cumsum(runs[1::2], out=runs[1::2])
    np.cumsum(runs[2::2], out=runs[2::2])  # no difference refers to the first run
    return runs


def _characters(counts: str) -> UInt8[np.ndarray, " character"]:
    """The characters of a string as numbers; those beyond ASCII are above its alphabet."""
    return np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _numbers(characters: UInt8[np.ndarray, " character"]) -> tuple[Int[np.ndarray, " number"], int] | None:
    """The numbers that end among some characters of a string, and how many characters they have together.

    None if none ends, or one has more than `_MOST_CHARACTERS`.
    """
    ends = np.flatnonzero(characters < _CONTINUES)
    if not len(ends):
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_CHARACTERS:
        return None
    digits = characters[: ends[-1] + 1].astype(np.int64) - _FIRST
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((digits & 0x1F) << places, starts)
    values -= np.where(digits[ends] & 0x10 != 0, np.int64(1) << (5 * lengths), 0)  # two's complement
    return values, len(digits)
