"""Masks in every form that a caller may have → the field of the form that carries them, checked against the photo."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exemplar_client import rle
from exemplar_client.errors import Invalid
from exemplar_client.masks import Mask
from exemplar_client.photos import file_of, numbers_of, png_of, size_text, turned_upright, upright_size_hw

Point: TypeAlias = Sequence[float]
# (height, width) in pixels; None if only the service can read the image: then it checks what can't be checked here.
Size: TypeAlias = tuple[int, ...] | None
# An image file, pixels, run lengths, polygons [[x, y, x, y, …], …] or [(x, y), …], or a box [x, y, width, height].
# Arrays may be pixels or the corners of a polygon.
MaskInput: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | NDArray[Any]
    | Mask
    | Mapping[str, Any]
    | Sequence[float]
    | Sequence[Point]
    | Sequence[Sequence[Point]]
)

# Pillow's names of formats whose compression rarely or never keeps exact zeros; WebP may be lossless.
_LOSSY = ("JPEG", "MPO", "HEIF", "AVIF")
# Half a pixel beyond the photo's edge is rounding; the service allows as much.
_SLACK_PX = 0.5
# Pixels beyond the photo up to which polygons are never refused, as in the service.
_POLYGON_SLACK_PX = 5.0


@dataclass(frozen=True)
class Drawn:
    """A mask ready to be sent: an image file as `mask`, or JSON as `segmentation` or `box`."""

    field: Literal["mask", "segmentation", "box"]
    content: bytes | str


def read_mask(mask: MaskInput, *, photo_hw: Size) -> Drawn:
    """Read a mask in any of the accepted forms and check it against the photo.

    Args:
        mask: A path, bytes or an open file of a mask image of the photo's size (non-zero = the category); a Pillow
            image, read as the service reads its file (WebP that was not opened from a path counts as lossy); an array
            `[height, width]` of bool or whole numbers; a mask from an answer; COCO run lengths; polygons
            `[[x, y, x, y, …], …]`, `[x, y, x, y, …]` or `[(x, y), …]`, also as an array `[corner, 2]` or OpenCV's
            `[corner, 1, 2]` of 3 corners or more, or a list of such; a box `[x, y, width, height]`. All coordinates
            are in pixels of the photo after EXIF rotation. An array `[corner, 2]` of whole numbers that has the
            photo's size is a mask, as every array of bool is; `[corner, 1, 2]` is always a polygon. Corners are sent
            as they are: OpenCV's name pixels and not edges, so its contours lose their last row and column.
        photo_hw: (height, width) of the photo after EXIF rotation; None if only the service can read it: then the
            service checks sizes, too.

    Returns:
        What to send.

    Raises:
        Invalid: None of these, another size than the photo, or nothing marked.
        OSError: A file can't be read.
    """
    if isinstance(mask, Mask):
        mask = mask.rle
    if isinstance(mask, np.ndarray):
        return _from_array(mask, photo_hw)
    if isinstance(mask, Image.Image):
        return _from_pillow(mask, photo_hw)
    if isinstance(mask, Mapping):
        return _from_rle(mask, photo_hw)
    if isinstance(mask, Sequence) and not isinstance(mask, str | bytes | bytearray | memoryview):
        return _from_numbers(mask, photo_hw)
    file, _ = file_of(mask, what="mask")
    _check_size(upright_size_hw(file, what="mask"), photo_hw)
    return Drawn("mask", file.read_bytes() if isinstance(file, Path) else file)


def _from_array(values: NDArray[Any], photo_hw: Size) -> Drawn:
    if values.ndim == 1 or _is_ring(values, photo_hw):
        return _from_numbers(_listed(values), photo_hw)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[:, :, 0]
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise Invalid(
            f"The mask is an array of {values.dtype} of shape {values.shape}: give bool or whole numbers "
            "[height, width]; of probabilities, `values > 0.5`."
        )
    _check_size(values.shape, photo_hw)
    return _from_bits(values != 0)


def _is_ring(values: NDArray[Any], photo_hw: Size) -> bool:
    """Tell whether an array holds the corners of a polygon rather than the pixels of a mask."""
    if values.dtype.kind == "f":
        return values.shape[1:] in ((2,), (1, 2))
    if values.dtype.kind not in "ui" or values.ndim < 2 or len(values) < 3:
        return False
    return values.shape[1:] == (1, 2) or (values.shape[1:] == (2,) and values.shape != photo_hw)


def _from_bits(bits: rle.Bits) -> Drawn:
    _check_marks(bits)
    return Drawn("mask", png_of(Image.fromarray(bits), what="mask"))


def _from_pillow(image: Image.Image, photo_hw: Size) -> Drawn:
    upright = turned_upright(image)
    _check_size((upright.height, upright.width), photo_hw)
    if upright.mode.startswith(("I", "F")):
        return _from_bits(numbers_of(upright) != 0)
    if _is_lossy(image):  # as PNG, the service would take every trace for a mark
        return _from_bits(_marked_in_lossy(upright))
    return Drawn("mask", png_of(upright, what="mask"))


def _is_lossy(image: Image.Image) -> bool:
    """Tell whether the service would call the file lossy that Pillow opened."""
    if image.format != "WEBP":
        return image.format in _LOSSY
    try:
        with Path(getattr(image, "filename", "")).open("rb") as file:
            return file.read(16)[12:] == b"VP8 "
    except OSError:  # not opened from a path: Pillow does not tell
        return True


def _marked_in_lossy(image: Image.Image) -> rle.Bits:
    """Mark the pixels of a lossy image as the service does: a cut-out's by opacity, others by half of the brightest."""
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.any() and not alpha.all():
            return alpha.astype(bool)
    levels = np.asarray(image.convert("RGB")).max(axis=2)
    marked: rle.Bits = levels > levels.max() // 2
    return marked


def _from_rle(run_lengths: Mapping[str, Any], photo_hw: Size) -> Drawn:
    size_hw = rle.size_of(run_lengths)
    _check_size(size_hw, photo_hw)
    _check_marks(rle.decode(run_lengths))
    counts = run_lengths["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    elif not isinstance(counts, str):
        counts = [int(count) for count in counts]
    return Drawn("segmentation", json.dumps({"size": list(size_hw), "counts": counts}))


def _from_numbers(values: Sequence[Any], photo_hw: Size) -> Drawn:
    if len(values) == 4 and all(_is_number(value) for value in values):
        return _from_box([_finite(value) for value in values], photo_hw)
    polygons = polygons_of(values)
    corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    low, high = corners.min(axis=0), corners.max(axis=0)
    if photo_hw and ((high <= 0).any() or low[0] >= photo_hw[1] or low[1] >= photo_hw[0]):
        raise Invalid(
            f"The polygons lie outside the photo: x is {low[0]:g} to {high[0]:g} and y {low[1]:g} to {high[1]:g}, the "
            f"photo is {size_text(photo_hw)}. Give x and y in pixels."
        )
    if photo_hw:
        _check_reach(low, high, photo_hw)
    _check_unit(float(high.max()))
    return Drawn("segmentation", json.dumps(polygons))


def _check_reach(low: NDArray[np.float64], high: NDArray[np.float64], photo_hw: tuple[int, ...]) -> None:
    """Refuse what the service refuses: polygons of which half or more of the width or height lies beyond the photo."""
    inside = high.clip(0, photo_hw[::-1]) - low.clip(0, photo_hw[::-1])
    beyond = high - low - inside
    if ((beyond >= inside) & (beyond > _POLYGON_SLACK_PX)).any():
        raise Invalid(
            f"The polygons reach from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}), half or more of it "
            f"beyond the photo of {size_text(photo_hw)}. Give x and y in pixels of this photo."
        )


def polygons_of(values: Sequence[Any]) -> list[list[float]]:
    """Bring polygons of any accepted form into COCO's.

    Args:
        values: One polygon `[x, y, x, y, …]` or `[(x, y), …]`, or a list of such.

    Returns:
        `[[x, y, x, y, …], …]`, each of 3 corners or more.

    Raises:
        Invalid: Anything else.
    """
    if not values:
        raise _no_polygons()
    if _is_number(values[0]) or _is_point(values[0]):
        return [_ring(values)]
    return [_ring(polygon) for polygon in values]


def _ring(polygon: object) -> list[float]:
    """One polygon `[x, y, x, y, …]` or `[(x, y), …]`, flat."""
    corners = _listed(polygon)
    if corners and all(_is_point(corner) for corner in corners):
        corners = [value for corner in corners for value in corner]
    if len(corners) < 6 or len(corners) % 2:
        raise _no_polygons()
    return [_finite(value) for value in corners]


def _listed(values: object) -> list[Any]:
    if isinstance(values, np.ndarray):
        is_contour = values.shape[1:] == (1, 2)  # of OpenCV
        return list((values[:, 0] if is_contour else values).tolist())
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    raise _no_polygons()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_point(value: object) -> bool:
    return (
        isinstance(value, Sequence | np.ndarray)
        and not isinstance(value, str | bytes)
        and len(value) == 2
        and all(_is_number(number) for number in value)
    )


def _finite(value: object) -> float:
    if not isinstance(value, int | float | np.integer | np.floating) or not math.isfinite(value):
        raise Invalid(f"A coordinate of the mask is {value!r}: give finite numbers, in pixels.")
    number = float(value)
    return int(number) if number.is_integer() else number


def _no_polygons() -> Invalid:
    return Invalid(
        "The mask is a list that is neither a box [x, y, width, height] nor polygons [[x, y, x, y, …], …] or "
        "[(x, y), …] of 3 corners or more."
    )


def _from_box(box_xywh: list[float], photo_hw: Size) -> Drawn:
    x, y, width, height = box_xywh
    _check_unit(max(box_xywh))
    if width <= 0 or height <= 0:
        raise Invalid(f"The box is {width:g} × {height:g}: give [x, y, width, height], both sizes above 0.")
    if photo_hw and (
        min(x, y) < -_SLACK_PX or x + width > photo_hw[1] + _SLACK_PX or y + height > photo_hw[0] + _SLACK_PX
    ):
        raise Invalid(
            f"The box reaches from ({x:g}, {y:g}) to ({x + width:g}, {y + height:g}), beyond the photo of "
            f"{size_text(photo_hw)}: give [x, y, width, height], not the second corner."
        )
    return Drawn("box", json.dumps(box_xywh))


def _check_unit(highest: float) -> None:
    if highest <= 1:  # a mark of one pixel teaches nothing
        raise Invalid("All coordinates are at most 1: give pixels, not shares of the photo's width and height.")


def _check_size(mask_hw: Size, photo_hw: Size) -> None:
    if mask_hw and photo_hw and tuple(mask_hw) != tuple(photo_hw):
        raise Invalid(
            f"The mask is {size_text(mask_hw)}, the photo {size_text(photo_hw)} after EXIF rotation: "
            "give a mask of the photo's size."
        )


def _check_marks(bits: rle.Bits) -> None:
    if not bits.any():
        raise Invalid("The mask marks no pixel. For a photo that does not show the category call `absent`.")
    if bits.all():
        raise Invalid("The mask marks the whole photo, so nothing is left as background: mark the category only.")
