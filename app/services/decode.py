"""Bytes and text from a caller → arrays. Whatever can't be read ends as one sentence of `app.errors` with its field.

Pillow is called with its plugins, not with `Image.open`: that warns about large images before their size can be looked
at, tries 43 formats, and hands a JPEG with a second picture in it to another plugin. Nothing here changes a global of
Pillow or of `warnings`, so any number of threads may decode at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from PIL import BmpImagePlugin, ExifTags, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from app.errors import AppError, InvalidInputError, TooLargeError, UnsupportedMediaError
from app.method import masks

_READ_FORMATS = "JPEG, PNG, WebP, BMP or TIFF"

# First bytes, media type, plugin. JPEG's plugin is the plain one: phones append a second picture (MPO) that is not wanted.
_PLUGINS: tuple[tuple[tuple[bytes, ...], str, Callable[[io.BytesIO], ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), "image/jpeg", JpegImagePlugin.JpegImageFile),
    ((b"\x89PNG\r\n\x1a\n",), "image/png", PngImagePlugin.PngImageFile),
    ((b"BM",), "image/bmp", BmpImagePlugin.BmpImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "image/tiff", TiffImagePlugin.TiffImageFile),
)

# What people send instead, by first bytes, so that the refusal can name it.
_OTHER_FORMATS = (
    ((b"GIF87a", b"GIF89a"), "GIF"),
    ((b"%PDF-",), "PDF"),
    ((b"8BPS",), "Photoshop"),
    ((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG 2000"),
    ((b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL"),
    ((b"\0\0\1\0",), "ICO"),
    ((b"<svg", b"<?xml"), "SVG"),
    ((b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n"), "PNM"),
    ((b"\x93NUMPY",), "NumPy"),
)
_HEIF_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}

# Everything that Pillow's five plugins were seen to raise on damaged files, and what their sources say they may.
# `Warning` comes as an exception where warnings are errors.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    EOFError,
    MemoryError,
    RecursionError,
    struct.error,
    zlib.error,
    Warning,
)

# A single row or column has no shape: resized to a backbone's square it is nothing but stripes.
MIN_SIDE_PX = 2

# How to turn the stored pixels [height, width, …] upright, by the value of EXIF's Orientation; 1 = as they are.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True, eq=False)
class Photo:
    """A caller's photo: its pixels as seen, and the file as sent. Compare photos by `sha256`."""

    rgb: np.ndarray  # uint8 [height, width, 3], 0…255, after EXIF rotation
    sha256: str  # of `raw`, hexadecimal
    media_type: str
    raw: bytes
    note: str | None  # what the caller should know about the way it was read


def decode_photo(raw: bytes, *, max_pixels: int, field: str = "image") -> Photo:
    """Reads a photo of any mode as upright RGB.

    Transparent parts are laid over white: their hidden colours are arbitrary (mostly black, which would look like an
    object), and white is what viewers show. 16-bit grey is scaled by its full range; 32-bit and floating-point grey by
    the smallest customary white (1, 255 or 65535) that holds it, else from its lowest to its highest value.

    Args:
        raw: The file: JPEG, PNG, WebP, BMP or TIFF.
        max_pixels: Largest width × height; looked at before any pixel is decoded.
        field: The form field that an error names.

    Returns:
        The photo; of an animation or a file of several pages the first picture, with a note.

    Raises:
        InvalidInputError: Empty, damaged, not an image, or a side shorter than `MIN_SIDE_PX`.
        UnsupportedMediaError: An image of another format.
        TooLargeError: More pixels than `max_pixels`.
    """
    with _refusing_damage(field):
        image, media_type = _opened(raw, max_pixels=max_pixels, field=field)
        note = _note(image)
        image.load()
        rgb = np.ascontiguousarray(_upright(_rgb(image), image))
    return Photo(rgb=rgb, sha256=hashlib.sha256(raw).hexdigest(), media_type=media_type, raw=raw, note=note)


def decode_mask(raw: bytes, *, photo_hw: tuple[int, int], max_pixels: int) -> masks.Mask:
    """Reads a mask image: which pixels are not zero, after the mask's own EXIF rotation.

    What "zero" is, in this order:

    1. 16-bit, 32-bit and floating-point grey: the value 0.
    2. Some pixels fully transparent and some not: the transparent ones. This is how cut-outs are saved; their colours are
       the object's own and may be black.
    3. Palette: label maps (VOC) have a black colour 0 and any others, so index 0. If colour 0 is *not* black, the palette
       was made by a program in any order: then black, if it is used, else index 0.
    4. JPEG and lossy WebP, whose compression leaves no exact zeros: up to half of the brightest value.
    5. Else black: every channel 0.

    Args:
        raw: The file: JPEG, PNG, WebP, BMP or TIFF.
        photo_hw: (height, width) of the photo after EXIF rotation.
        max_pixels: Largest width × height.

    Returns:
        The mask `[height, width]`; it may be empty (see `check_mask`).

    Raises:
        InvalidInputError: Unreadable, or of another size than the photo.
        UnsupportedMediaError: An image of another format.
        TooLargeError: More pixels than `max_pixels`.
    """
    with _refusing_damage("mask"):
        image, _ = _opened(raw, max_pixels=max_pixels, field="mask")
        image.load()
        mask = np.ascontiguousarray(_upright(_marked(image, is_lossy=_is_lossy(raw)), image))
    if mask.shape != photo_hw:
        raise InvalidInputError(_size_mismatch(mask.shape, photo_hw), field="mask")
    return mask


def decode_segmentation(text: str, *, photo_hw: tuple[int, int]) -> masks.Mask:
    """Reads a mask from JSON: COCO run lengths, polygons, or one flat polygon.

    Args:
        text: `{"size": [height, width], "counts": …}`, `[[x, y, …], …]` or `[x, y, …]`, in pixels of the photo.
        photo_hw: (height, width) of the photo after EXIF rotation.

    Returns:
        The mask `[height, width]`; it may be empty (see `check_mask`).

    Raises:
        InvalidInputError: Not JSON, or none of these, or run lengths of another size than the photo.
    """
    value = _parsed(text, field="segmentation")
    try:
        if isinstance(value, dict):
            return _sized_rle_to_mask(value, photo_hw=photo_hw)
        is_flat = isinstance(value, list) and value and not any(isinstance(item, list) for item in value)
        return masks.polygons_to_mask([value] if is_flat else value, photo_hw)
    except ValueError as error:
        raise InvalidInputError(
            f'The segmentation can\'t be used: {error}. Send COCO run lengths {{"size": [height, width], "counts": …}} '
            "or polygons [[x, y, x, y, …], …] in pixels.",
            field="segmentation",
        ) from error


def decode_box(text: str, *, photo_hw: tuple[int, int]) -> masks.Mask:
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
        mask = masks.box_to_mask(value, photo_hw)
    except ValueError as error:
        raise InvalidInputError(
            f"The box can't be used: {error}. Send [x, y, width, height] in pixels.", field="box"
        ) from error
    x, y, width, height = map(float, value)
    if min(x, y) < -0.5 or x + width > photo_hw[1] + 0.5 or y + height > photo_hw[0] + 0.5:
        raise InvalidInputError(
            f"The box reaches from ({x:g}, {y:g}) to ({x + width:g}, {y + height:g}), beyond the photo of "
            f"{_size(photo_hw)}. Send [x, y, width, height] in pixels of the photo after EXIF rotation.",
            field="box",
        )
    return mask


def check_mask(mask: masks.Mask, *, field: str = "mask") -> None:
    """Refuses a mask from which nothing can be learnt.

    Args:
        mask: `[height, width]`.
        field: The form field that an error names.

    Raises:
        InvalidInputError: No pixel is marked, or all are.
    """
    if not mask.any():
        raise InvalidInputError(
            f"The {field} marks no pixel of the photo. Mark the category with values other than 0.", field=field
        )
    if mask.all():
        raise InvalidInputError(
            f"The {field} marks the whole photo, so nothing is left as background. Mark the category only.", field=field
        )


def one_mask(
    *,
    mask: bytes | None,
    segmentation: str | None,
    box: str | None,
    photo_hw: tuple[int, int],
    max_pixels: int,
) -> masks.Mask:
    """Reads the one form of mask that a caller sent.

    Args:
        mask: A mask image. Here and below empty counts as absent: browsers send unused fields of a form as empty.
        segmentation: JSON run lengths or polygons.
        box: JSON box.
        photo_hw: (height, width) of the photo after EXIF rotation.
        max_pixels: Largest width × height of a mask image.

    Returns:
        The mask `[height, width]`, with at least one pixel marked and one not.

    Raises:
        AppError: None or several were sent, or the one sent can't be used.
    """
    given = [name for name, value in (("mask", mask), ("segmentation", segmentation), ("box", box)) if value]
    if len(given) != 1:
        raise InvalidInputError(
            "Send exactly one of mask (an image), segmentation (run lengths or polygons) and box; "
            f"this request has {' and '.join(given) or 'none of them'}.",
            field=given[1] if given else "mask",
        )
    if mask:
        marked = decode_mask(mask, photo_hw=photo_hw, max_pixels=max_pixels)
    elif segmentation:
        marked = decode_segmentation(segmentation, photo_hw=photo_hw)
    else:
        marked = decode_box(box or "", photo_hw=photo_hw)
    check_mask(marked, field=given[0])
    return marked


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _refusing_damage(field: str) -> Iterator[None]:
    """Turns whatever Pillow raises on a broken file into one refusal."""
    try:
        yield
    except Image.DecompressionBombError as error:
        # Only WebP's plugin looks before we can: at more than twice Pillow's own limit.
        raise TooLargeError(_too_large(f"The {field}", _limit(Image.MAX_IMAGE_PIXELS)), field=field) from error
    except _DAMAGE as error:
        raise InvalidInputError(
            f"The {field} can't be decoded: the file is damaged or incomplete. Send a whole {_READ_FORMATS} file.",
            field=field,
        ) from error
