"""Photos in every form that a caller may have → files to send, and pixels to draw on."""

from __future__ import annotations

import io
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from exemplar_client.errors import Invalid

# Paths and file:// addresses, the bytes of a file, open files, Pillow images, arrays uint8 [height, width(, channels)].
ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[np.uint8]
)

# As the service reads them.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff"})
# First bytes of HEIC and AVIF: the service reads them, but not every Pillow does.
_HEIF = re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|avi[fs]|mif1|msf1)", re.DOTALL)
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
# From here on pixels are sent as JPEG: as PNG, photos of 12 megapixels exceed the service's usual limit of 20 MiB.
_MAX_PNG_PIXELS = 4_000_000
_JPEG_QUALITY = 95
# Values of EXIF's Orientation that exchange width and height.
_TURNED = range(5, 9)
# What Pillow and pillow-heif raise for files that they can't read.
_UNREADABLE = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
# What Pillow raises for EXIF data that it can't read.
_BROKEN_EXIF = (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error)


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo to send. Of a file on disk only the path is kept, so that many results stay small.

    Attributes:
        source: What the caller gave.
        name: File name that the service is told; what can't be sent of it is `?`.
        size_hw: (height, width) in pixels after EXIF rotation; None of HEIC and AVIF that only the service can read.
    """

    source: object
    name: str
    size_hw: tuple[int, int] | None
    _file: Path | bytes

    @property
    def path(self) -> Path | None:
        """Where the file is, if the photo was given as a path or an address."""
        return self._file if isinstance(self._file, Path) else None

    def content(self) -> bytes:
        """Return the bytes of the file."""
        return self._file.read_bytes() if isinstance(self._file, Path) else self._file

    def rgb(self) -> Image.Image:
        """Return the upright photo, 8-bit RGB, as the service sees it: transparent parts over white, numbers scaled.

        Raises:
            Invalid: HEIC or AVIF, and what reads it is not installed.
            OSError: The file can't be read.
        """
        with self._opened() as image:
            upright = turned_upright(image)
            if upright.mode.startswith(("I", "F")):
                # Older versions of Pillow read the 16 bits of PNG as 32.
                return Image.fromarray(_grey(numbers_of(upright), has_16_bits=image.format == "PNG")).convert("RGB")
            return _opaque(upright)

    def _opened(self) -> Image.Image:
        content = io.BytesIO(self.content())
        try:
            image = _open_image(content)
            image.load()  # pillow-heif may know a file's size, but not its compression
            return image
        except _UNREADABLE as error:
            if not _is_heif(content):
                raise
            raise Invalid(
                f"The pixels of {self.name} can't be read: install pillow-heif (pip install pillow-heif) for HEIC, "
                "a newer Pillow (pip install -U pillow) for AVIF."
            ) from error


def open_photo(image: ImageInput) -> Photo:
    """Read a photo in any of the accepted forms.

    Args:
        image: A path, an address `file://…`, the bytes of a file, a file opened for reading bytes, a Pillow image
            (turned upright by its EXIF data), or a uint8 array: RGB `[height, width, 3]` (OpenCV's BGR must be
            reversed first), RGBA `[height, width, 4]` or grey `[height, width]`. Files are sent as they are, HEIC and
            AVIF even if Pillow does not read them here; pixels as PNG, above 4 megapixels as JPEG of quality 95, with
            transparent parts over white.

    Returns:
        The photo.

    Raises:
        Invalid: None of these, or not an image.
        OSError: The file can't be read.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        name = Path(getattr(image, "filename", "") or "image").stem
        return _from_pixels(turned_upright(image), source=image, name=name)
    file, name = file_of(image, what="image")
    return _from_bytes(file, image, name)


def file_of(given: object, *, what: str) -> tuple[Path | bytes, str]:
    """Find the file that a path, an address, bytes or an open file stand for.

    Args:
        given: What the caller gave.
        what: What it is to be, for errors: `image` or `mask`.

    Returns:
        The path or the content, and a file name.

    Raises:
        Invalid: None of the accepted forms, or an address that is not a file's.
    """
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given), what
    if isinstance(given, str | os.PathLike):
        path = _path_of(os.fspath(given), what=what)
        return path, path.name
    if callable(read := getattr(given, "read", None)):
        content = read()
        if not isinstance(content, bytes):
            raise Invalid(f"The {what} is a file opened as text: open it with mode 'rb'.")
        name = getattr(given, "name", None)
        return content, Path(name).name if isinstance(name, str) else what
    raise Invalid(
        f"The {what} is of type {type(given).__name__}, which can't be sent: give a path, bytes, an open file, a "
        "Pillow image or a numpy array."
    )


def upright_size_hw(file: Path | bytes, *, what: str) -> tuple[int, int] | None:
    """Read the size of an image file from its header.

    Args:
        file: Its path or content.
        what: What it is, for errors.

    Returns:
        (height, width) in pixels after EXIF rotation; None of HEIC and AVIF that can't be read here.

    Raises:
        Invalid: Not an image.
        OSError: The file can't be opened.
    """
    content = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
    with content:
        try:
            with _open_image(content) as image:
                width, height = _stored_wh(image)
                turned = _orientation(image) in _TURNED
        except _UNREADABLE as error:
            if _is_heif(content):
                return None
            name = printable(file.name) if isinstance(file, Path) else f"The {what}"
            why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            raise Invalid(f"{name} is not an image that can be read{why}.") from error
    return (width, height) if turned else (height, width)


def _open_image(content: IO[bytes]) -> Image.Image:
    """Open an image with Pillow, or with pillow-heif what Pillow does not know."""
    try:
        return Image.open(content)
    except UnidentifiedImageError as error:
        if not _is_heif(content):
            raise
        try:
            return _open_heic(content)
        except ImportError:
            raise error from None


def _open_heic(content: IO[bytes]) -> Image.Image:
    from pillow_heif import HeifImageFile  # not a dependency

    content.seek(0)
    opened: Image.Image = HeifImageFile(content)
    return opened


def _is_heif(content: IO[bytes]) -> bool:
    content.seek(0)
    return _HEIF.match(content.read(12)) is not None


def turned_upright(image: Image.Image) -> Image.Image:
    """Copy an image, turned by its EXIF data; data that can't be read turns nothing, as in the service.

    Raises:
        OSError: The pixels can't be read.
    """
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN_EXIF:
        return image.copy()


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _BROKEN_EXIF:
        return None


def _stored_wh(image: Image.Image) -> tuple[int, int]:
    """(width, height) before EXIF rotation, of an image whose pixels were not read yet."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Not `size`: newer versions of Pillow turn that of TIFF, and of TIFF alone, when they open it.
        return image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return image.size


def numbers_of(image: Image.Image) -> NDArray[Any]:
    """Read grey of 16 or 32 bits or floating point, `[height, width]` as stored; NaN and infinity become 0."""
    stored = np.asarray(image)
    return np.where(np.isfinite(stored), stored, stored.dtype.type(0))


def _grey(numbers: NDArray[Any], *, has_16_bits: bool) -> NDArray[np.uint8]:
    """Scale numbers `[height, width]` to 0…255 as the service does.

    16 bits: by the full range. Others: by the smallest customary white (1, 255 or 65535) that is not below their
    highest value; if it is above 65535 or a value is negative, from their lowest to their highest value.
    """
    low, high = float(numbers.min()), float(numbers.max())
    if has_16_bits or numbers.dtype.kind == "u":
        low, high = 0, 65535
    elif low >= 0 and high <= 65535:
        low, high = 0, min(white for white in (1, 255, 65535) if white >= high)
    levels = (numbers.astype(np.float64) - low) * (255 / ((high - low) or 1))
    return np.rint(levels).astype(np.uint8)


def _opaque(image: Image.Image) -> Image.Image:
    """Convert colours to RGB as the service does: transparent parts over white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def png_of(image: Image.Image, *, what: str) -> bytes:
    """Write a Pillow image as PNG; fast rather than small.

    Raises:
        Invalid: PNG has no such mode (CMYK, LAB, …) and the image can't be converted.
    """
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        if image.mode.startswith(("I", "F")):
            raise Invalid(f"The {what} has the mode {image.mode}, whose range is unknown: convert it to 8 bits first.")
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def printable(name: str) -> str:
    """Replace what can be neither sent nor printed in a file name: Python keeps bytes that are not UTF-8 in it."""
    return name.encode(errors="replace").decode()


def size_text(size_hw: tuple[int, ...]) -> str:
    """Name a size (height, width) in an error, in the order that people expect."""
    return f"{size_hw[1]} × {size_hw[0]} pixels (width × height)"


def _from_array(pixels: NDArray[Any]) -> Photo:
    if pixels.dtype != np.uint8:
        raise Invalid(f"The image is an array of {pixels.dtype}: give uint8, 0 to 255.")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise Invalid(
            f"The image is an array of shape {pixels.shape}: give RGB [height, width, 3], RGBA [height, width, 4] or "
            "grey [height, width]."
        )
    return _from_pixels(Image.fromarray(pixels), source=pixels, name="image")


def _from_pixels(image: Image.Image, *, source: object, name: str) -> Photo:
    has_numbers = image.mode.startswith(("I", "F"))
    if image.width * image.height > _MAX_PNG_PIXELS and (image.mode == "I;16" or not has_numbers):
        file = io.BytesIO()
        if has_numbers:
            image = Image.fromarray(_grey(numbers_of(image), has_16_bits=True))
        elif image.mode != "L" or image.has_transparency_data:
            image = _opaque(image)
        image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return _from_bytes(file.getvalue(), source, f"{name}.jpg")
    return _from_bytes(png_of(image, what="image"), source, f"{name}.png")


def _from_bytes(file: Path | bytes, source: object, name: str) -> Photo:
    return Photo(source, printable(name), upright_size_hw(file, what="image"), file)


def _path_of(text: str, *, what: str) -> Path:
    if not _ADDRESS.match(text):
        return Path(text)
    parts = urlsplit(text)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise Invalid(f"The {what} {text!r} is not a file of this machine: download it and give its bytes or path.")
    return Path(url2pathname(parts.path))
