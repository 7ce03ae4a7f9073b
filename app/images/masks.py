"""Reads a caller's mask: an image file, run lengths, polygons or a box → Mask."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
from jaxtyping import UInt8

from app.errors import InvalidInputError
from app.masks import MalformedMaskError, Mask
from app.masks.boxes import box_to_mask
from app.masks.polygons import polygons_to_mask
from app.masks.rle import rle_size, rle_to_mask

from .files import ImageFile, TakeBytes, open_image, size_text

# Generous for the JSON of a box, also if it is indented.
MAX_BOX_CHARACTERS = 1024

# Bytes that reading a text takes at its peak, as measured: of a character, where it is all objects in objects, and of a
# pixel, for the mask and what is drawn of it.
_PEAK_BYTES_PER_CHARACTER = 40
_PEAK_BYTES_PER_PX = 2

# Formats, and compressions of TIFF, that rarely or never keep exact zeros.
_LOSSY = frozenset({"image/jpeg", "image/heic", "image/avif"})
_LOSSY_IN_TIFF = frozenset({"jpeg", "tiff_jpeg"})

# Corners of an object at the edge may lie so far beyond it: annotation tools place them by hand.
_SLACK_PX = 5.0
# Farther than any photo; differences of such coordinates stay finite.
_FAR_PX = 1e9


def read_mask(
    *,
    mask: bytes | None,
    segmentation: str | None,
    box: str | None,
    photo_hw: tuple[int, int],
    max_pixels: int,
    take_bytes: TakeBytes | None = None,
) -> Mask:
    """Reads the one form of mask that a caller sent.

    Args:
        mask: A mask image. Empty counts as absent in all three: browsers send unused fields of a form empty.
        segmentation: JSON run lengths or polygons.
        box: JSON box.
        photo_hw: (height, width) of the photo after EXIF rotation.
        max_pixels: Largest width × height of a mask image.
        take_bytes: As in `decode_mask`; of a text, told its length and what reading it takes at its peak, before it is
            read, and then that only the text and the mask's byte per pixel are left.

    Returns:
        The mask `[height, width]`, with at least one pixel marked and one not.

    Raises:
        InvalidInputError: None or several were sent, or the one sent can't be used (see the readers below).
        UnsupportedMediaError, TooLargeError: As `decode_mask`.
    """
    given = [name for name, value in (("mask", mask), ("segmentation", segmentation), ("box", box)) if value]
    if len(given) != 1:
        raise InvalidInputError(
            "Send exactly one of mask (an image), segmentation (run lengths or polygons) and box; "
            f"this request has {' and '.join(given) or 'none of them'}.",
            field=given[1] if given else "mask",
        )
    if mask:
        marked = decode_mask(mask, photo_hw=photo_hw, max_pixels=max_pixels, take_bytes=take_bytes)
    elif segmentation:
        marked = _read_text(parse_segmentation, segmentation, photo_hw=photo_hw, take_bytes=take_bytes)
    else:
        marked = _read_text(parse_box, box or "", photo_hw=photo_hw, take_bytes=take_bytes)
    check_mask(marked, field=given[0])
    return marked


def decode_mask(raw: bytes, *, photo_hw: tuple[int, int], max_pixels: int, take_bytes: TakeBytes | None = None) -> Mask:
    """Reads a mask image: a pixel is marked if it is not zero; the file's EXIF rotation is applied.

    The first rule that fits the file defines "zero":

    1. 16-bit, 32-bit and floating-point grey: the value 0. (16 bits in several channels are refused: Pillow reads only
       the upper 8.)
    2. Some pixels fully transparent and some not: the transparent ones. Cut-outs are saved like this; their colours are
       the object's own and may be black.
    3. Palette: index 0, as in label maps (VOC), where colour 0 is black. If colour 0 is *not* black, an optimiser has
       ordered the colours: then black, if a pixel has it, else index 0.
    4. JPEG (in a TIFF too), HEIC, AVIF and lossy WebP, whose compression leaves no exact zeros: up to half of the
       brightest value.
    5. Any other: black, every channel 0.

    Args:
        raw: The file, of a format that `open_image` reads.
        photo_hw: (height, width) of the photo after EXIF rotation.
        max_pixels: Largest width × height.
        take_bytes: As in `open_image`; then told that only the file and the mask's byte per pixel are left.

    Returns:
        The mask `[height, width]`; it may be empty (see `check_mask`).

    Raises:
        InvalidInputError: Unreadable, of 16 bits in several channels, or of another size than the photo.
        UnsupportedMediaError: An image of another format.
        TooLargeError: More pixels than `max_pixels`.
    """
    file = open_image(raw, max_pixels=max_pixels, field="mask", take_bytes=take_bytes)
    if _is_png_of_16_bits(raw) and not file.is_numeric:
        raise InvalidInputError(
            "The mask is a PNG of 16 bits in several channels, of which only the upper 8 could be read. Send "
            "16-bit grey without alpha, or 8 bits.",
            field="mask",
        )
    mask = np.array(file.upright(_marked(file, is_lossy=_is_lossy(raw, file))), order="C")
    if take_bytes:
        take_bytes(mask.nbytes - file.peak_bytes)
    if mask.shape != tuple(photo_hw):
        is_turned = mask.shape == tuple(reversed(photo_hw))
        raise InvalidInputError(
            f"The mask is {size_text(mask.shape)}, the photo {size_text(photo_hw)} after EXIF rotation. Send a mask of "
            f"the photo's size{': this one fits the photo before its EXIF rotation' if is_turned else ''}.",
            field="mask",
        )
    return mask


def parse_segmentation(text: str, *, photo_hw: tuple[int, int]) -> Mask:
    """Reads a mask from JSON: COCO run lengths, polygons, one flat polygon, or a COCO annotation with one of them.

    Args:
        text: `{"size": [height, width], "counts": …}`, `[[x, y, …], …]` or `[x, y, …]`, in pixels of the photo, or
            `{"segmentation": …, "bbox": …, …}`, of which only `segmentation` is read.
        photo_hw: (height, width) of the photo after EXIF rotation.

    Returns:
        The mask `[height, width]`; it may be empty (see `check_mask`).

    Raises:
        InvalidInputError: Not JSON, or none of these, or run lengths of another size than the photo or more of them
            than it has room for, or polygons of which half or more lies beyond the photo. Less than that is cut off, as
            augmentation leaves it.
    """
    value = _parsed(text, field="segmentation")
    if isinstance(value, dict) and "counts" not in value:
        value = value.get("segmentation", value)
    try:
        if isinstance(value, dict):
            return _sized_rle_to_mask(value, photo_hw=photo_hw)
        is_flat = isinstance(value, list) and value and not any(isinstance(item, list) for item in value)
        polygons = [value] if is_flat else value
        mask = polygons_to_mask(polygons, photo_hw)
    except MalformedMaskError as error:
        raise InvalidInputError(
            f'The segmentation can\'t be used: {error}. Send COCO run lengths {{"size": [height, width], "counts": …}} '
            "or polygons [[x, y, x, y, …], …] in pixels.",
            field="segmentation",
        ) from error
    _check_reach(polygons, photo_hw=photo_hw)
    return mask


def parse_box(text: str, *, photo_hw: tuple[int, int]) -> Mask:
    """Reads a box from JSON as a coarse mask.

    Args:
        text: `[x, y, width, height]` in pixels of the photo. Half a pixel beyond its edge is rounding and is cut off.
        photo_hw: (height, width) of the photo after EXIF rotation.

    Returns:
        The mask `[height, width]`: the pixels whose centre lies in the box.

    Raises:
        InvalidInputError: Not JSON, not a box, or not inside the photo.
    """
    value = _parsed(text, field="box")
    try:
        mask = box_to_mask(value, photo_hw)
    except MalformedMaskError as error:
        raise InvalidInputError(
            f"The box can't be used: {error}. Send [x, y, width, height] in pixels.", field="box"
        ) from error
    x, y, width, height = map(float, value)
    if min(x, y) < -0.5 or x + width > photo_hw[1] + 0.5 or y + height > photo_hw[0] + 0.5:
        raise InvalidInputError(
            f"The box reaches from ({x:g}, {y:g}) to ({x + width:g}, {y + height:g}), beyond the photo of "
            f"{size_text(photo_hw)}. Send [x, y, width, height] in pixels of the photo after EXIF rotation.",
            field="box",
        )
    return mask


def check_mask(mask: Mask, *, field: str = "mask") -> None:
    """Refuses a mask from which nothing can be learnt.

    Args:
        mask: `[height, width]`.
        field: The form field that an error names.

    Raises:
        InvalidInputError: No pixel is marked, or all are.
    """
    if not mask.any():
        raise InvalidInputError(
            f"The {field} marks no pixel of the photo. Mark the category, inside the photo.", field=field
        )
    if mask.all():
        raise InvalidInputError(
            f"The {field} marks the whole photo, so nothing is left as background. Mark the category only.", field=field
        )


def _read_text(
    parse: Callable[..., Mask], text: str, *, photo_hw: tuple[int, int], take_bytes: TakeBytes | None
) -> Mask:
    peak_bytes = len(text) * _PEAK_BYTES_PER_CHARACTER + photo_hw[0] * photo_hw[1] * _PEAK_BYTES_PER_PX
    if take_bytes:
        take_bytes(len(text) + peak_bytes)
    mask = parse(text, photo_hw=photo_hw)
    if take_bytes:
        take_bytes(mask.nbytes - peak_bytes)
    return mask


def _marked(file: ImageFile, *, is_lossy: bool) -> Mask:
    """Marks the stored pixels that are not zero, by the rules of `decode_mask`."""
    if file.is_numeric:
        return file.numbers().astype(bool)
    alpha = file.alpha()
    if alpha is not None and alpha.any() and not alpha.all():
        return alpha.astype(bool)
    if file.mode == "P":
        return _marked_by_index(file.pixels(), file.palette())
    values = file.pixels() if file.mode in ("1", "L") else file.pixels("RGB")
    if values.ndim == 3:  # by channels, as numpy takes seven times as long for the maximum along so short an axis
        red, green, blue = np.moveaxis(values, 2, 0)
        values = np.maximum(np.maximum(red, green), blue)
    levels = values.astype(np.uint8)
    zero = levels.max() // 2 if is_lossy else 0
    is_marked: Mask = levels > zero
    return is_marked


def _marked_by_index(index: UInt8[np.ndarray, "height width"], colours: UInt8[np.ndarray, "colour 3"]) -> Mask:
    is_background = np.zeros(256, dtype=bool)
    is_background[: len(colours)] = ~colours.any(axis=1)
    if is_background[0] or not is_background[index].any():
        is_background[:] = np.arange(256) == 0
    is_marked: Mask = ~is_background[index]
    return is_marked


def _is_png_of_16_bits(raw: bytes) -> bool:
    """Reads the bit depth from the header, as Pillow doesn't give it."""
    return raw.startswith(b"\x89PNG") and raw[24:25] == b"\x10"


def _is_lossy(raw: bytes, file: ImageFile) -> bool:
    if file.media_type == "image/webp":
        return next((name for name in _webp_chunks(raw) if name in (b"VP8 ", b"VP8L")), None) == b"VP8 "
    return file.media_type in _LOSSY or file.compression in _LOSSY_IN_TIFF


def _webp_chunks(raw: bytes) -> Iterator[bytes]:
    """Names of a WebP's chunks in their order, those within the frames of an animation among them.

    Source: https://developers.google.com/speed/webp/docs/riff_container
    """
    at = 12
    while at + 8 <= len(raw):
        name, size = struct.unpack_from("<4sI", raw, at)
        yield name
        # The chunks of a frame follow 16 bytes that place it; any other chunk has an even length.
        at += 8 + (16 if name == b"ANMF" else size + size % 2)


def _check_reach(polygons: list[list[int | float]], *, photo_hw: tuple[int, int]) -> None:
    """Refuses polygons that half or more of their width or height lies beyond the photo: they are of another one."""
    corners = np.concatenate([np.asarray(ring, dtype=float) for ring in polygons]).reshape(-1, 2)
    low, high = corners.clip(-_FAR_PX, _FAR_PX).min(axis=0), corners.clip(-_FAR_PX, _FAR_PX).max(axis=0)
    side = np.array(photo_hw[::-1])
    inside = high.clip(0, side) - low.clip(0, side)
    beyond = high - low - inside
    if ((beyond >= inside) & (beyond > _SLACK_PX)).any():
        raise InvalidInputError(
            f"The segmentation reaches from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}), half or more of it "
            f"beyond the photo of {size_text(photo_hw)}. Send polygons in pixels of the photo after EXIF rotation.",
            field="segmentation",
        )


def _parsed(text: str, *, field: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"The {field} is not JSON that can be read: {error}.", field=field) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _sized_rle_to_mask(rle: dict[str, object], *, photo_hw: tuple[int, int]) -> Mask:
    """Decodes run lengths if their size is the photo's, so that no larger mask is ever allocated."""
    rle_hw = rle_size(rle)
    if rle_hw != tuple(photo_hw):
        raise InvalidInputError(
            f"The segmentation is for {size_text(rle_hw)}, the photo is {size_text(photo_hw)} after EXIF rotation. "
            f"Send run lengths of the photo's size; size is [height, width], so [{photo_hw[0]}, {photo_hw[1]}].",
            field="segmentation",
        )
    return rle_to_mask(rle)
