"""COCO run lengths → masks, in plain numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from exemplar_client.errors import Invalid

Bits: TypeAlias = NDArray[np.bool_]


def decode(rle: Mapping[str, Any]) -> Bits:
    """Decode COCO run lengths, compressed (text) or not (a list of numbers).

    Args:
        rle: `{"size": [height, width], "counts": str | bytes | list[int]}`. Runs go column by column; the first one
            counts background pixels.

    Returns:
        The mask, bool `[height, width]`.

    Raises:
        Invalid: Not run lengths, or counts that do not add up to height × width.
    """
    height, width = size_of(rle)
    runs = _runs_of(rle.get("counts"))
    if runs is None:
        raise Invalid('expected run lengths with "counts", a text or a list of whole numbers, 0 or more')
    covered = sum(runs.tolist())  # Python's integers do not overflow, so a wrong sum can't look right
    if (runs < 0).any() or covered != height * width:
        raise Invalid(f"expected counts that add up to {height} × {width} = {height * width} pixels, got {covered}")
    is_marked = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(is_marked, runs).reshape((height, width), order="F"))


def size_of(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Read (height, width) of run lengths without decoding them.

    Raises:
        Invalid: No valid size.
    """
    size = rle.get("size")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(_is_count(side) and side > 0 for side in size):
        raise Invalid('expected run lengths with "size": [height, width], two whole numbers above 0')
    return int(size[0]), int(size[1])


def _is_count(value: object) -> bool:
    # 2**40 is above every image and small enough for int64.
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < 2**40


def _runs_of(counts: object) -> NDArray[np.int64] | None:
    """The run lengths in `counts`, possibly negative; None if `counts` has neither of COCO's two forms."""
    if isinstance(counts, str):
        return _decompressed(counts.encode("utf-8", "surrogatepass"))
    if isinstance(counts, bytes):  # as pycocotools gives them
        return _decompressed(counts)
    if isinstance(counts, list | tuple | np.ndarray) and all(_is_count(count) for count in counts):
        return np.array(counts, dtype=np.int64)
    return None


def _decompressed(counts: bytes) -> NDArray[np.int64] | None:
    """The inverse of `rleToString` of COCO's maskApi.c: 5 bits per character, low first; differences from the fourth
    run on.

    Source: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    is_last = digits & 0x20 == 0  # the sixth bit is set if the number continues
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or not is_last[-1]:
        return None
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any run that COCO's code can hold, and safe in int64
        return None
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs: NDArray[np.int64] = np.add.reduceat((digits & 0x1F) << places, starts)
    runs -= np.where(digits[ends] & 0x10 != 0, np.int64(1) << (5 * lengths), 0)  # two's complement
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])  # no difference refers to the first run
    return runs
