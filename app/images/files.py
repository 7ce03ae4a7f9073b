"""Decodes image files with Pillow: format check, size check, pixels in Pillow's modes, rotation.

Pillow's plugins are called instead of `Image.open`, which warns about large images before their size can be checked,
tries 43 formats, and gives a JPEG with a second picture in it to another plugin. No global of Pillow or of `warnings`
is changed, so any number of threads may decode at once.

This is the only file that calls Pillow's readers. A damaged file makes them raise almost any exception, and
`_refusing_damage` turns it into a refusal. Nothing but calls into Pillow may stand inside its `with`: there a fault of
our own would be reported as the caller's damaged file.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile as PillowFile

from app.errors import InvalidInputError, TooLargeError, UnavailableError, UnsupportedMediaError
from app.masks import Rgb

_READ_FORMATS = "JPEG, PNG, WebP, HEIC, AVIF, BMP or TIFF"


def _heic(file: io.BytesIO) -> PillowFile:
    """Opens a HEIC file. The decoder is imported with the first one: it is 6 MB of code, and many services see none."""
    from pillow_heif import HeifImageFile

    opened: PillowFile = HeifImageFile(file)
    return opened


# First bytes, media type, plugin. JPEG's plugin, not MPO's: the second picture that phones append is ignored.
_PLUGINS: tuple[tuple[re.Pattern[bytes], str, Callable[[io.BytesIO], PillowFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg", JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png", PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp", WebPImagePlugin.WebPImageFile),
    (re.compile(rb"BM"), "image/bmp", BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "image/tiff", TiffImagePlugin.TiffImageFile),
    # Both are HEIF files. Under a general name (mif1, msf1) the list of compatible names tells which of them it is.
    (
        re.compile(rb".{4}ftyp(avi[fs]|(mif1|msf1).{4}(.{4}){0,12}?avi[fs])", re.DOTALL),
        "image/avif",
        AvifImagePlugin.AvifImageFile,
    ),
    (re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "image/heic", _heic),
)

# Common formats that are not read, so that the refusal can name them.
_OTHER_FORMATS = (
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "JPEG XL"),
    (re.compile(rb"\s*(<\?xml|<svg)"), "SVG"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\0\0\x01\0"), "ICO"),
    (re.compile(rb"P[1-7]\s"), "PNM"),
)

# Exceptions of the plugins on damaged files: OSError, SyntaxError and ValueError in 100,000 mutated files, the others
# according to their sources. A `Warning` is raised where warnings are errors.
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
    struct.error,
    zlib.error,
    Warning,
)

# Told the bytes that something will take in memory, and as a negative number those that it has given back.
TakeBytes: TypeAlias = Callable[[int], None]

# A single row or column has no shape: resized to a backbone's square input it is only stripes.
MIN_SIDE_PX = 2

# Pixels that are converted at a time.
_BAND_PX = 1_000_000

# Bytes per pixel that decoding takes at its peak, as measured with 40 megapixels: Pillow's picture, the array made of
# it and what is computed of that, such as its turned copy. The decoders of WebP and AVIF take more, and so does that of
# a progressive JPEG, which keeps all coefficients; numbers of 32 bits are larger.
_PEAK_BYTES = 11
_PEAK_BYTES_OF_LARGER = 12
_PEAK_BYTES_OF_WEBP = 19

# Turns stored pixels [height, width, …] upright, by the value of EXIF's Orientation; 1 = as they are.
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
class ImageFile:
    """A decoded image file, made by `open_image`.

    Pixels are as stored, before rotation; pass them through `upright`. Methods that give pixels raise
    `InvalidInputError` if Pillow can't convert them.

    Attributes:
        media_type: Such as `image/png`.
        note: Says that only the first frame or page was read; None for a file of one picture.
        peak_bytes: Memory that decoding takes at its peak, until the last method that gives pixels has returned.
    """

    media_type: str
    note: str | None
    peak_bytes: int
    _image: Image.Image
    _field: str

    @property
    def mode(self) -> str:
        """Pillow's mode, such as `L`, `RGB` or `I;16`."""
        return self._image.mode

    @property
    def compression(self) -> str | None:
        """Pillow's name of a TIFF's compression, such as `jpeg` or `raw`; None for other formats."""
        return self._image.info.get("compression") if self.media_type == "image/tiff" else None

    @property
    def is_numeric(self) -> bool:
        """Grey of 16 or 32 bits or floating point: read `numbers`, as Pillow's conversions would clip it."""
        return self.mode.startswith(("I", "F"))

    def pixels(self, mode: str | None = None) -> Shaped[np.ndarray, "height width *channel"]:
        """Returns the pixels, converted to a Pillow mode if one is named."""
        return self._converted(lambda band: band if mode in (None, band.mode) else band.convert(mode))

    def numbers(self) -> Shaped[np.ndarray, "height width"]:
        """Returns 16-bit, 32-bit or floating-point grey as stored; NaN and infinity become 0."""
        stored = self.pixels()
        if stored.dtype.kind == "f":
            stored[~np.isfinite(stored)] = 0
        return stored

    def rgb_over_white(self) -> Rgb:
        """Returns 8-bit colour, transparent parts blended with white."""
        return self._converted(_over_white)

    def alpha(self) -> UInt8[np.ndarray, "height width"] | None:
        """Returns the opacity, 255 = opaque; None for a file without transparency."""
        if not self._image.has_transparency_data:
            return None
        return self._converted(lambda band: band.convert("RGBA").getchannel("A"))

    def _converted(self, convert: Callable[[Image.Image], Image.Image]) -> Shaped[np.ndarray, "height width *channel"]:
        """Returns the pixels after a conversion of each pixel alone, in an array of their own.

        Some rows at a time: Pillow's conversion of a whole picture and its way to numpy would each be copies of it.
        """
        width, height = self._image.size
        converted = np.empty(0)
        for rows in row_bands(height, width):
            with _refusing_damage(field=self._field):
                band = np.asarray(convert(self._image.crop((0, rows.start, width, rows.stop))))
            if not converted.size:
                converted = np.empty((height, *band.shape[1:]), band.dtype)
            converted[rows] = band
        return converted

    def palette(self) -> UInt8[np.ndarray, "colour 3"]:
        """Returns the colours of mode `P`, up to 256."""
        with _refusing_damage(field=self._field):
            levels = self._image.getpalette() or []
        return np.array(levels, dtype=np.uint8).reshape(-1, 3)

    def upright(self, stored: Shaped[np.ndarray, ...]) -> Shaped[np.ndarray, ...]:
        """Applies EXIF's rotation to stored pixels `[height, width, …]`; EXIF that can't be read turns nothing.

        HEIC and AVIF say their rotation outside of EXIF. The decoder of HEIC has applied it and has set EXIF's to 1.
        The reader of AVIF has put it into EXIF, in place of what was there.
        """
        try:
            turn = _UPRIGHT.get(self._image.getexif().get(ExifTags.Base.Orientation, 1))
        except _DAMAGE:
            turn = None  # as every viewer does
        return turn(stored) if turn else stored


def open_image(raw: bytes, *, max_pixels: int, field: str, take_bytes: TakeBytes | None = None) -> ImageFile:
    """Decodes an image file; of an animation or a file of several pages the first picture.

    Args:
        raw: The file, of one of the formats above.
        max_pixels: Largest width × height; checked before any pixel is decoded.
        field: The form field that an error names.
        take_bytes: Told the bytes of the file and `peak_bytes`, before any pixel is decoded; it may raise an error of
            its own.

    Returns:
        The decoded file.

    Raises:
        InvalidInputError: Empty, damaged, not an image, or a side shorter than `MIN_SIDE_PX`.
        UnsupportedMediaError: An image of another format.
        TooLargeError: More pixels than `max_pixels`.
        UnavailableError: The process is out of memory.
    """
    media_type, plugin = _format_of(raw, field=field)
    try:
        with _refusing_damage(field=field):
            image = plugin(io.BytesIO(raw))
    except Image.DecompressionBombError as error:
        # WebP's plugin allocates the canvas, so it checks the size before we can, against twice Pillow's own limit.
        raise _too_large(field=field, max_pixels=max_pixels) from error
    _check_size(image.size, max_pixels=max_pixels, field=field)
    peak_bytes = _peak_bytes_per_px(image, media_type) * image.width * image.height
    if take_bytes:
        take_bytes(len(raw) + peak_bytes)
    with _refusing_damage(field=field):
        # Now, and not with the first pixel that is read: EXIF and transparency may stand behind the pixels.
        image.load()
    _check_size(image.size, max_pixels=max_pixels, field=field)  # HEIC: the picture may be larger than the file says
    return ImageFile(media_type=media_type, note=_note(image), peak_bytes=peak_bytes, _image=image, _field=field)


def row_bands(height: int, width: int) -> Iterator[slice]:
    """Splits the rows of a picture into bands of about `_BAND_PX` pixels."""
    count = max(1, _BAND_PX // width)
    for top in range(0, height, count):
        yield slice(top, min(top + count, height))


def size_text(image_hw: tuple[int, ...]) -> str:
    """Names a size (height, width) in an error, in the order that people expect."""
    return f"{image_hw[1]} × {image_hw[0]} pixels (width × height)"


def _over_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@contextmanager
def _refusing_damage(*, field: str) -> Iterator[None]:
    """Turns any exception by which Pillow reports a broken file into one refusal; a lack of memory is no damage."""
    try:
        yield
    except MemoryError as error:
        raise UnavailableError(f"There is no memory to decode the file sent as {field}: send it later.") from error
    except _DAMAGE as error:
        raise InvalidInputError(
            f"The file sent as {field} is damaged or incomplete. Send a whole {_READ_FORMATS} file.",
            field=field,
        ) from error


def _format_of(raw: bytes, *, field: str) -> tuple[str, Callable[[io.BytesIO], PillowFile]]:
    """Media type and plugin, by the first bytes."""
    for first_bytes, media_type, plugin in _PLUGINS:
        if first_bytes.match(raw):
            return media_type, plugin
    _refuse_format(raw, field=field)


def _refuse_format(raw: bytes, *, field: str) -> NoReturn:
    if not raw:
        raise InvalidInputError(f"The file sent as {field} is empty. Send a {_READ_FORMATS} file.", field=field)
    for first_bytes, name in _OTHER_FORMATS:
        if first_bytes.match(raw):
            raise UnsupportedMediaError(f"{name} files are not read. Send {field} as {_READ_FORMATS}.", field=field)
    raise InvalidInputError(f"The file sent as {field} is not an image. Send a {_READ_FORMATS} file.", field=field)


def _peak_bytes_per_px(image: PillowFile, media_type: str) -> int:
    if media_type == "image/webp":
        return _PEAK_BYTES_OF_WEBP
    is_larger = media_type == "image/avif" or image.info.get("progressive") or image.mode in ("I", "F")
    return _PEAK_BYTES_OF_LARGER if is_larger else _PEAK_BYTES


def _check_size(image_wh: tuple[int, int], *, max_pixels: int, field: str) -> None:
    if image_wh[0] * image_wh[1] > _limit(max_pixels):
        raise _too_large(field=field, max_pixels=max_pixels, image_wh=image_wh)
    if min(image_wh) < MIN_SIDE_PX:
        raise InvalidInputError(
            f"The file sent as {field} is {size_text(image_wh[::-1])}. Send one of at least "
            f"{MIN_SIDE_PX} × {MIN_SIDE_PX}.",
            field=field,
        )


def _limit(max_pixels: int) -> int:
    """The setting, or Pillow's own limit if that is lower: above it Pillow warns, whatever the setting says."""
    return min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)


def _too_large(*, field: str, max_pixels: int, image_wh: tuple[int, int] | None = None) -> TooLargeError:
    size = f"is {size_text(image_wh[::-1])}, which exceeds" if image_wh else "exceeds"
    limit = _limit(max_pixels)
    return TooLargeError(
        f"The file sent as {field} {size} the limit of {limit} pixels "
        f"({'EXEMPLAR_MAX_IMAGE_PIXELS' if limit == max_pixels else 'of Pillow'}). Send a smaller one.",
        field=field,
    )


def _note(image: PillowFile) -> str | None:
    # Not `n_frames`: TIFF's walks through every page.
    if not getattr(image, "is_animated", False):
        return None
    if image.format == "HEIF":
        return "several pictures: the main one was used"
    is_paged = isinstance(image, TiffImagePlugin.TiffImageFile)
    return "several pages: the first was used" if is_paged else "animated image: the first frame was used"
