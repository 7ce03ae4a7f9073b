"""Reads a caller's photo: bytes → upright 8-bit RGB."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from app.masks import Rgb

from .files import TakeBytes, open_image, row_bands


@dataclass(frozen=True, eq=False)
class Photo:
    """A caller's photo: its pixels and the file as sent. Compare photos by `sha256`."""

    rgb: Rgb  # uint8 [height, width, 3], 0…255, after EXIF rotation
    sha256: str  # of `raw`, hexadecimal
    media_type: str
    raw: bytes
    note: str | None  # tells the caller if only the first frame or page was read


def decode_photo(
    raw: bytes, *, max_pixels: int, field: str = "image", take_bytes: TakeBytes | None = None, turn: bool = True
) -> Photo:
    """Reads a photo of any mode as upright RGB.

    Transparent parts are blended with white: their hidden colours are arbitrary (mostly black, which would look like an
    object), and white is what viewers show. 16-bit grey is scaled by its full range. 32-bit and floating-point grey are
    scaled by the smallest customary white (1, 255 or 65535) that is not below their highest value; if it is above 65535
    or a value is negative, from their lowest to their highest value.

    Args:
        raw: The file, of a format that `open_image` reads.
        max_pixels: Largest width × height; checked before any pixel is decoded.
        field: The form field that an error names.
        take_bytes: As in `open_image`; then told that only the file and the photo's 3 bytes per pixel are left.
        turn: False to leave the pixels as they are stored, without EXIF's rotation.

    Returns:
        The photo; of an animation or a file of several pages the first picture, with a note.

    Raises:
        InvalidInputError: Empty, damaged, not an image, or a side shorter than `files.MIN_SIDE_PX`.
        UnsupportedMediaError: An image of another format.
        TooLargeError: More pixels than `max_pixels`.
    """
    file = open_image(raw, max_pixels=max_pixels, field=field, take_bytes=take_bytes)
    stored = _grey_rgb(file.numbers()) if file.is_numeric else file.rgb_over_white()
    rgb = np.ascontiguousarray(file.upright(stored) if turn else stored)
    if take_bytes:
        take_bytes(rgb.nbytes - file.peak_bytes)
    return Photo(rgb=rgb, sha256=hashlib.sha256(raw).hexdigest(), media_type=file.media_type, raw=raw, note=file.note)


def _grey_rgb(numbers: Shaped[np.ndarray, "height width"]) -> Rgb:
    low, high = float(numbers.min()), float(numbers.max())
    if numbers.dtype.kind == "u":
        low, high = 0, 65535
    elif low >= 0 and high <= 65535:
        low, high = 0, min(white for white in (1, 255, 65535) if white >= high)
    scale = 255 / ((high - low) or 1)
    rgb = np.empty((*numbers.shape, 3), np.uint8)
    for rows in row_bands(*numbers.shape):  # float64 of the whole photo would take more memory than its file's decoding
        levels = (numbers[rows].astype(np.float64) - low) * scale
        rgb[rows] = np.rint(levels).astype(np.uint8)[:, :, None]
    return rgb
