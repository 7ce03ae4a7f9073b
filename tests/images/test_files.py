"""Files that are not complete images of a supported format are refused in one sentence, with little time and memory."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from app.errors import AppError, InvalidInputError, TooLargeError, UnavailableError, UnsupportedMediaError
from app.images.files import _UPRIGHT, ImageFile, open_image
from app.images.masks import decode_mask
from app.images.photo import decode_photo
from tests.images.cases import COLOURED, HW, MAX_PIXELS, file_of, heic_of, png_header, promising, turned


def opened(raw: bytes, max_pixels: int = MAX_PIXELS) -> ImageFile:
    return open_image(raw, max_pixels=max_pixels, field="image")


def black_webp(width: int, height: int) -> bytes:
    """A whole lossless WebP of one colour: 34 bytes, whatever its size."""
    sides = struct.pack("<I", (width - 1) | (height - 1) << 14)
    body = b"VP8L" + struct.pack("<I", 14) + b"\x2f" + sides + bytes.fromhex("071011fd0f4444ff03")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def heif_of(pixels: np.ndarray, file_format: str) -> bytes:
    return heic_of(pixels) if file_format == "HEIC" else file_of(pixels, "AVIF")


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", no_memory)
    with pytest.raises(UnavailableError, match="no memory to decode the file sent as image: send it later"):
        opened(file_of(COLOURED, "PNG"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            (b"", "is empty"),
            (b"hello", "is not an image"),
            (b"BMW", "is damaged"),
            (b"\xff\xd8\xff", "is damaged"),
            (file_of(COLOURED, "PNG")[:-200], "is damaged"),
            (file_of(COLOURED, "JPEG")[:-200], "is damaged"),
            (file_of(COLOURED, "WEBP")[:-200], "is damaged"),
            (file_of(COLOURED, "BMP")[:-200], "is damaged"),
            (file_of(COLOURED, "TIFF")[:200], "is damaged"),
            (file_of(COLOURED, "AVIF")[:-200], "is damaged"),
            (heic_of(COLOURED)[:-200], "is damaged"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is damaged"),
            (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "is damaged"),
            (png_header(7, 7), "is damaged"),
            (png_header(0, 7), "is damaged"),
            (file_of(COLOURED[:1]), "at least 2 × 2"),
            (file_of(COLOURED[:, :1]), "at least 2 × 2"),
        ],
    )
    def test_what_is_no_image(self, raw: bytes, words: str) -> None:
        with pytest.raises(InvalidInputError, match=words) as refusal:
            opened(raw)
        assert refusal.value.field == "image"
        assert "Send" in refusal.value.detail

    @pytest.mark.parametrize(
        ("raw", "name"),
        [
            (file_of(COLOURED, "GIF"), "GIF"),
            (file_of(COLOURED, "JPEG2000"), "JPEG 2000"),
            (file_of(COLOURED, "ICO"), "ICO"),
            (file_of(COLOURED, "PDF"), "PDF"),
            (file_of(COLOURED, "PPM"), "PNM"),
            (b'  <svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        ],
    )
    def test_images_of_other_formats_are_called_by_their_name(self, raw: bytes, name: str) -> None:
        with pytest.raises(UnsupportedMediaError, match=f"^{name} files are not read. Send photo as JPEG") as refusal:
            open_image(raw, max_pixels=MAX_PIXELS, field="photo")
        assert refusal.value.field == "photo"

    def test_the_limit_is_exact_and_named(self) -> None:
        assert opened(file_of(COLOURED), max_pixels=23 * 31).pixels().shape == (*HW, 3)
        with pytest.raises(TooLargeError, match=r"31 × 23 pixels.* 712 pixels \(EXEMPLAR_MAX_IMAGE_PIXELS\)"):
            opened(file_of(COLOURED), max_pixels=23 * 31 - 1)

    def test_the_small_bombs_are_real(self) -> None:
        assert opened(black_webp(101, 89)).pixels().shape == (89, 101, 3)

    @pytest.mark.parametrize("raw", [png_header(30_000, 30_000), png_header(2**31 - 1, 7), black_webp(16_383, 16_383)])
    def test_a_bomb_is_refused_at_once_and_without_memory(self, raw: bytes) -> None:
        tracemalloc.start()
        begin_s = time.perf_counter()
        with pytest.raises(TooLargeError, match="EXEMPLAR_MAX_IMAGE_PIXELS"):
            opened(raw, max_pixels=40_000_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.perf_counter() - begin_s < 1
        assert peak_bytes < 1_000_000

    @pytest.mark.parametrize("sides", [(9_000, 9_000), (30_000, 30_000), (100_000, 7), (2**31, 2**31)], ids=str)
    @pytest.mark.parametrize("file_format", ["HEIC", "AVIF"])
    def test_a_heif_that_promises_too_much_is_not_decoded(self, file_format: str, sides: tuple[int, int]) -> None:
        raw = promising(heif_of(COLOURED, file_format), *sides)
        begin_s = time.perf_counter()
        with pytest.raises((TooLargeError, InvalidInputError)):
            opened(raw, max_pixels=40_000_000)
        assert time.perf_counter() - begin_s < 1

    @pytest.mark.parametrize("file_format", ["HEIC", "AVIF"])
    def test_a_heif_that_holds_more_than_it_promises_stays_within_the_limit(self, file_format: str) -> None:
        raw = promising(heif_of(np.zeros((2_000, 2_000, 3), np.uint8), file_format), 64, 64)
        with contextlib.suppress(AppError):
            assert opened(raw).pixels().size <= 3 * MAX_PIXELS

    @pytest.mark.parametrize("file_format", ["HEIC", "AVIF"])
    def test_the_limit_of_a_heif_is_exact_and_named(self, file_format: str) -> None:
        raw = heif_of(COLOURED, file_format)
        assert opened(raw, max_pixels=23 * 31).pixels().shape == (*HW, 3)
        with pytest.raises(TooLargeError, match=r"31 × 23 pixels.* 712 pixels \(EXEMPLAR_MAX_IMAGE_PIXELS\)"):
            opened(raw, max_pixels=23 * 31 - 1)

    @pytest.mark.parametrize("raw", [png_header(10_007, 10_007), png_header(30_000, 30_000), black_webp(16_383, 7_001)])
    def test_a_setting_above_pillows_own_limit_brings_no_warning(self, raw: bytes) -> None:
        with pytest.raises(TooLargeError, match=f"{Image.MAX_IMAGE_PIXELS} pixels"):
            opened(raw, max_pixels=10**9)


class TestFaults:
    """An exception is the caller's damaged file where Pillow raises it, and a fault of our own anywhere else."""

    KINDS = (OSError, SyntaxError, ValueError, TypeError, IndexError, RuntimeError, struct.error)

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_pillow(self, kind: type[Exception]) -> None:
        class Broken(Image.Image):
            mode = "P"
            size = (31, 23)
            has_transparency_data = True

            def crop(self, *_: object) -> Image.Image:
                return self

            def convert(self, *_: object) -> Image.Image:
                raise kind("Pillow's")

            def getpalette(self, *_: object) -> list[int]:
                raise kind("Pillow's")

        file = ImageFile(media_type="image/png", note=None, peak_bytes=0, _image=Broken(), _field="photo")
        for read in (lambda: file.pixels("RGB"), file.rgb_over_white, file.alpha, file.palette):
            with pytest.raises(InvalidInputError, match="photo is damaged"):
                read()

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_our_own(self, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise kind("ours")

        monkeypatch.setitem(_UPRIGHT, 6, broken)
        raw = file_of(COLOURED, exif=turned(6))
        with pytest.raises(kind, match="ours"):
            decode_photo(raw, max_pixels=MAX_PIXELS)
        with pytest.raises(kind, match="ours"):
            decode_mask(raw, photo_hw=HW, max_pixels=MAX_PIXELS)


@cache
def real_files() -> list[bytes]:
    rgb = Image.fromarray(COLOURED)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<tiff:Orientation>6</tiff:Orientation>", zip=True)
    files = [file_of(rgb, file_format, exif=turned(6)) for file_format in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [file_of(rgb.convert(mode), "PNG", pnginfo=text) for mode in ("1", "L", "LA", "P", "RGBA")]
    files += [file_of(rgb.convert(mode), "TIFF") for mode in ("1", "L", "P", "RGBA", "CMYK", "F")]
    files += [file_of(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    files += [file_of(rgb.convert(mode), "BMP") for mode in ("1", "P", "RGB")]
    files += [file_of(rgb, name, save_all=True, append_images=[rgb.rotate(180)]) for name in ("PNG", "WEBP", "TIFF")]
    files += [file_of(rgb, "JPEG", progressive=True), file_of(rgb.convert("CMYK"), "JPEG")]
    files += [heic_of(COLOURED, 6), file_of(rgb, "AVIF", exif=turned(6)), file_of(rgb.convert("RGBA"), "AVIF")]
    return [*files, file_of(COLOURED[..., 0].astype(np.uint16) * 257), file_of(rgb, "WEBP", lossless=True)]


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    raw = bytearray(draw(st.sampled_from(real_files())))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, min(len(raw), draw(st.sampled_from([64, 512, 10**6])))))
        raw[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(raw[: draw(st.none() | st.integers(0, len(raw)))])


headed_bytes = st.builds(
    bytes.__add__,
    st.sampled_from(
        [
            b"",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"BM",
            b"II*\0",
            b"MM\0*",
            b"RIFF\0\0\0\0WEBPVP8X",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
        ]
    ),
    st.binary(max_size=200),
)


class TestFuzz:
    """`suppress` lets a refusal pass; whatever else is raised, and every warning, fails the test."""

    def read_file(self, raw: bytes) -> None:
        with contextlib.suppress(AppError):
            assert decode_photo(raw, max_pixels=MAX_PIXELS).rgb.shape[2] == 3
        with contextlib.suppress(AppError):
            assert decode_mask(raw, photo_hw=HW, max_pixels=MAX_PIXELS).shape == HW

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(mutated_files() | headed_bytes)
    def test_files_where_warnings_are_errors(self, raw: bytes) -> None:
        self.read_file(raw)

    # Where a process doesn't make errors of warnings, Pillow reads on after them: other code.
    @pytest.mark.filterwarnings("ignore::UserWarning")
    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(mutated_files())
    def test_files_where_warnings_pass(self, raw: bytes) -> None:
        self.read_file(raw)
