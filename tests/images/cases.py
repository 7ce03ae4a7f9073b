"""A photo, a mask and files of both, shared by the tests of `app.images`."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image

HW = (23, 31)
MAX_PIXELS = 10_000
COLOURED = np.random.default_rng(7).integers(0, 256, (*HW, 3), dtype=np.uint8)
MARKED = np.zeros(HW, dtype=bool)
MARKED[5:16, 3:20] = True
MARKED[7, 11] = False


def file_of(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, file_format, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def heic_of(pixels: np.ndarray, orientation: int = 1, *, more: np.ndarray | None = None) -> bytes:
    """A lossless HEIC as phones write them: the rotation in a box of its own (irot, imir), and in EXIF once more."""
    from pillow_heif import HeifFile

    file, written = HeifFile(), io.BytesIO()
    for each in (pixels, more):
        if each is not None:
            file.add_frombytes("RGB", each.shape[1::-1], each.tobytes())
    file[0].info["exif"] = turned(orientation).tobytes()
    file.save(written, quality=-1, chroma=444, matrix_coefficients=0)
    return written.getvalue()


def promising(raw: bytes, width: int, height: int) -> bytes:
    """A HEIC or AVIF that promises another size than its picture has."""
    at = raw.index(b"ispe") + 8
    return raw[:at] + struct.pack(">II", width, height) + raw[at + 8 :]


def png_header(width: int, height: int, *, depth: int = 8, colour_type: int = 2, pixels: bytes = bytes(99)) -> bytes:
    """A PNG that promises a size; by default it holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
