"""Bytes and text from a caller → arrays. Whatever can't be read ends as one sentence of `app.errors` with its field.

Pillow is called with its plugins, not with `Image.open`: that warns about large images before their size can be looked
at, tries 43 formats, and hands a JPEG with a second picture in it to another plugin. Nothing here changes a global of
Pillow or of `warnings`, so any number of threads may decode at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import BmpImagePlugin, ExifTags, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from app.errors import InvalidInputError, TooLargeError, UnsupportedMediaError
from app.masks import Mask, Rgb
from app.masks.boxes import box_to_mask
from app.masks.polygons import polygons_to_mask
from app.masks.rle import rle_size, rle_to_mask

_READ_FORMATS = "JPEG, PNG, WebP, BMP or TIFF"

# First bytes, media type, plugin. Not MPO for JPEG: the second picture that phones append is not wanted.
_PLUGINS: tuple[tuple[re.Pattern[bytes], str, Callable[[io.BytesIO], ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg", JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png", PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp", WebPImagePlugin.WebPImageFile),
    (re.compile(rb"BM"), "image/bmp", BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "image/tiff", TiffImagePlugin.TiffImageFile),
)

# What people send instead, so that the refusal can name it.
_OTHER_FORMATS = (
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb".{4}ftyp(heic|heix|heim|hevc|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "JPEG XL"),
    (re.compile(rb"\s*(<\?xml|<svg)"), "SVG"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\0\0\x01\0"), "ICO"),
    (re.compile(rb"P[1-7]\s"), "PNM"),
)

# What Pillow's five plugins raise on damaged files: OSError, SyntaxError and ValueError in 100,000 mutated files, the
# others by their sources. A `Warning` is raised where warnings are errors.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
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

    rgb: Rgb  # uint8 [height, width, 3], 0…255, after EXIF rotation
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
    with _refusing_damage(field=field, max_pixels=max_pixels):
        image, media_type = _opened(raw, max_pixels=max_pixels, field=field)
        note = _note(image)
        image.load()
        rgb = np.array(_upright(_rgb(image), image), order="C")  # a copy: Pillow's memory is read-only, torch warns
    return Photo(rgb=rgb, sha256=hashlib.sha256(raw).hexdigest(), media_type=media_type, raw=raw, note=note)


def decode_mask(raw: bytes, *, photo_hw: tuple[int, int], max_pixels: int) -> Mask:
    """Reads a mask image: which pixels are not zero, after the mask's own EXIF rotation.

    What "zero" is, in this order:

    1. 16-bit, 32-bit and floating-point grey: the value 0. (16 bits in several channels are refused: Pillow reads the
       upper 8 alone.)
    2. Some pixels fully transparent and some not: the transparent ones. This is how cut-outs are saved; their colours
       are the object's own and may be black.
    3. Palette: label maps (VOC) have a black colour 0 and any others, so index 0. If colour 0 is *not* black, a program
       chose the order: then black, if it is used, else index 0.
    4. JPEG and lossy WebP, whose compression leaves no exact zeros: up to half of the brightest value.
    5. Else black: every channel 0.

    Args:
        raw: The file: JPEG, PNG, WebP, BMP or TIFF.
        photo_hw: (height, width) of the photo after EXIF rotation.
        max_pixels: Largest width × height.

    Returns:
        The mask `[height, width]`; it may be empty (see `check_mask`).

    Raises:
        InvalidInputError: Unreadable, of 16 bits in several channels, or of another size than the photo.
        UnsupportedMediaError: An image of another format.
        TooLargeError: More pixels than `max_pixels`.
    """
    with _refusing_damage(field="mask", max_pixels=max_pixels):
        image, _ = _opened(raw, max_pixels=max_pixels, field="mask")
        if image.mode not in ("I", "I;16") and _is_png_of_16_bits(raw):
            raise InvalidInputError(
                "The mask is a PNG of 16 bits in several channels, of which only the upper 8 could be read. Send "
                "16-bit grey without alpha, or 8 bits.",
                field="mask",
            )
        image.load()
        mask = np.array(_upright(_marked(image, is_lossy=_is_lossy(raw)), image), order="C")
    if mask.shape != tuple(photo_hw):
        is_turned = mask.shape == tuple(reversed(photo_hw))
        raise InvalidInputError(
            f"The mask is {_size(mask.shape)}, the photo {_size(photo_hw)} after EXIF rotation. Send a mask of the "
            f"photo's size{': this one fits the photo before its EXIF rotation' if is_turned else ''}.",
            field="mask",
        )
    return mask


def decode_segmentation(text: str, *, photo_hw: tuple[int, int]) -> Mask:
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
        return polygons_to_mask([value] if is_flat else value, photo_hw)
    except ValueError as error:
        raise InvalidInputError(
            f'The segmentation can\'t be used: {error}. Send COCO run lengths {{"size": [height, width], "counts": …}} '
            "or polygons [[x, y, x, y, …], …] in pixels.",
            field="segmentation",
        ) from error


def decode_box(text: str, *, photo_hw: tuple[int, int]) -> Mask:
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


def one_mask(
    *,
    mask: bytes | None,
    segmentation: str | None,
    box: str | None,
    photo_hw: tuple[int, int],
    max_pixels: int,
) -> Mask:
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
        InvalidInputError: None or several were sent, or the one sent can't be used (see the readers above).
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
        marked = decode_mask(mask, photo_hw=photo_hw, max_pixels=max_pixels)
    elif segmentation:
        marked = decode_segmentation(segmentation, photo_hw=photo_hw)
    else:
        marked = decode_box(box or "", photo_hw=photo_hw)
    check_mask(marked, field=given[0])
    return marked


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _refusing_damage(*, field: str, max_pixels: int) -> Iterator[None]:
    """Turns whatever Pillow raises on a broken file into one refusal."""
    try:
        yield
    except Image.DecompressionBombError as error:
        # WebP's plugin allocates the canvas, so it looks at the size before we can, against twice Pillow's own limit.
        raise _too_large(field=field, max_pixels=max_pixels) from error
    except _DAMAGE as error:
        raise InvalidInputError(
            f"The file sent as {field} is damaged or incomplete. Send a whole {_READ_FORMATS} file.",
            field=field,
        ) from error


def _opened(raw: bytes, *, max_pixels: int, field: str) -> tuple[ImageFile, str]:
    """The image, its pixels not decoded yet and not too many, and its media type."""
    for first_bytes, media_type, plugin in _PLUGINS:
        if first_bytes.match(raw):
            image = plugin(io.BytesIO(raw))
            _check_size(image.size, max_pixels=max_pixels, field=field)
            return image, media_type
    _refuse_format(raw, field=field)


def _refuse_format(raw: bytes, *, field: str) -> NoReturn:
    if not raw:
        raise InvalidInputError(f"The file sent as {field} is empty. Send a {_READ_FORMATS} file.", field=field)
    for first_bytes, name in _OTHER_FORMATS:
        if first_bytes.match(raw):
            raise UnsupportedMediaError(f"{name} files are not read. Send {field} as {_READ_FORMATS}.", field=field)
    raise InvalidInputError(f"The file sent as {field} is not an image. Send a {_READ_FORMATS} file.", field=field)


def _check_size(image_wh: tuple[int, int], *, max_pixels: int, field: str) -> None:
    if image_wh[0] * image_wh[1] > _limit(max_pixels):
        raise _too_large(field=field, max_pixels=max_pixels, image_wh=image_wh)
    if min(image_wh) < MIN_SIDE_PX:
        raise InvalidInputError(
            f"The file sent as {field} is {_size(image_wh[::-1])}. Send one of at least {MIN_SIDE_PX} × {MIN_SIDE_PX}.",
            field=field,
        )


def _limit(max_pixels: int) -> int:
    """The setting, or Pillow's own limit if that is lower: above it Pillow warns, whatever the setting says."""
    return min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)


def _too_large(*, field: str, max_pixels: int, image_wh: tuple[int, int] | None = None) -> TooLargeError:
    is_set = _limit(max_pixels) == max_pixels
    return TooLargeError(
        f"The file sent as {field} {f'is {_size(image_wh[::-1])}, which' if image_wh else ''} exceeds the limit of "
        f"{_limit(max_pixels)} pixels ({'EXEMPLAR_MAX_IMAGE_PIXELS' if is_set else 'of Pillow'}). Send a smaller one.",
        field=field,
    )


def _size(image_hw: tuple[int, ...]) -> str:
    return f"{image_hw[1]} × {image_hw[0]} pixels (width × height)"


def _note(image: ImageFile) -> str | None:
    # Not `n_frames`: TIFF's walks through every page.
    if not getattr(image, "is_animated", False):
        return None
    is_paged = isinstance(image, TiffImagePlugin.TiffImageFile)
    return "several pages: the first was used" if is_paged else "animated image: the first frame was used"


def _upright(stored: np.ndarray, image: ImageFile) -> np.ndarray:
    """Applies EXIF's rotation to stored pixels [height, width, …]. Call it after `load`: it may stand behind them."""
    try:
        turned = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return stored  # EXIF that can't be read turns nothing, as in every viewer
    return turned(stored) if turned else stored


# Pixels --------------------------------------------------------------------------------------------------------------


def _rgb(image: Image.Image) -> Rgb:
    if image.mode.startswith(("I", "F")):
        return np.repeat(_grey(_numbers(image))[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _numbers(image: Image.Image) -> Shaped[np.ndarray, "height width"]:
    """16-bit, 32-bit or floating-point grey as stored; NaN and infinity become 0."""
    stored = np.asarray(image)
    return np.where(np.isfinite(stored), stored, stored.dtype.type(0))


def _grey(numbers: Shaped[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    low, high = float(numbers.min()), float(numbers.max())
    if numbers.dtype.kind == "u":
        low, high = 0, 65535
    elif low >= 0 and high <= 65535:
        low, high = 0, min(white for white in (1, 255, 65535) if white >= high)
    levels = (numbers.astype(np.float64) - low) * (255 / ((high - low) or 1))
    return np.rint(levels).astype(np.uint8)


def _marked(image: Image.Image, *, is_lossy: bool) -> Mask:
    """Which stored pixels are not zero, by the rules of `decode_mask`."""
    if image.mode.startswith(("I", "F")):
        return _numbers(image).astype(bool)
    if image.has_transparency_data:
        is_opaque = np.asarray(image.convert("RGBA").getchannel("A")).astype(bool)
        if is_opaque.any() and not is_opaque.all():
            return is_opaque
    if image.mode == "P":
        return _marked_by_index(image)
    values = np.asarray(image if image.mode in ("1", "L", "RGB") else image.convert("RGB"))
    levels = (values.max(axis=2) if values.ndim == 3 else values).astype(np.uint8)
    zero = levels.max() // 2 if is_lossy else 0
    is_marked: Mask = levels > zero
    return is_marked


def _marked_by_index(image: Image.Image) -> Mask:
    index = np.asarray(image)
    colours = np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    is_background = np.zeros(256, dtype=bool)
    is_background[: len(colours)] = ~colours.any(axis=1)
    if is_background[0] or not is_background[index].any():
        is_background[:] = np.arange(256) == 0
    is_marked: Mask = ~is_background[index]
    return is_marked


def _is_png_of_16_bits(raw: bytes) -> bool:
    """By the bit depth in its header, which Pillow doesn't tell."""
    return raw.startswith(b"\x89PNG") and raw[24] == 16


def _is_lossy(raw: bytes) -> bool:
    return raw.startswith(b"\xff\xd8") or (raw.startswith(b"RIFF") and raw[12:16] == b"VP8 ")


# JSON ----------------------------------------------------------------------------------------------------------------


def _parsed(text: str, *, field: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"The {field} is not JSON that can be read: {error}.", field=field) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _sized_rle_to_mask(rle: dict[str, object], *, photo_hw: tuple[int, int]) -> Mask:
    """Decodes run lengths after their size was found to be the photo's: nothing larger is ever allocated."""
    rle_hw = rle_size(rle)
    if rle_hw != tuple(photo_hw):
        raise InvalidInputError(
            f"The segmentation is for {_size(rle_hw)}, the photo is {_size(photo_hw)} after EXIF rotation. Send run "
            f"lengths of the photo's size; size is [height, width], so [{photo_hw[0]}, {photo_hw[1]}].",
            field="segmentation",
        )
    return rle_to_mask(rle)
