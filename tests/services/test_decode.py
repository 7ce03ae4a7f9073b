"""What people upload becomes the pixels they see, and what can't be read becomes one sentence they can act on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from app.errors import AppError, InvalidInputError, TooLargeError, UnsupportedMediaError
from app.masks.boxes import bbox_of
from app.masks.pictures import label_map_to_png, mask_to_png, palette
from app.masks.rle import mask_to_rle
from app.services import decode

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


def photo_of(raw: bytes, max_pixels: int = MAX_PIXELS) -> decode.Photo:
    return decode.decode_photo(raw, max_pixels=max_pixels)


def mask_of(raw: bytes, photo_hw: tuple[int, int] = HW) -> np.ndarray:
    return decode.decode_mask(raw, photo_hw=photo_hw, max_pixels=MAX_PIXELS)


def png_header(width: int, height: int, *, depth: int = 8, colour_type: int = 2, pixels: bytes = bytes(99)) -> bytes:
    """A PNG that promises a size; by default it holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def black_webp(width: int, height: int) -> bytes:
    """A whole lossless WebP of one colour: 34 bytes, whatever its size."""
    sides = struct.pack("<I", (width - 1) | (height - 1) << 14)
    body = b"VP8L" + struct.pack("<I", 14) + b"\x2f" + sides + bytes.fromhex("071011fd0f4444ff03")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


class TestPhotos:
    @pytest.mark.parametrize(
        ("file_format", "options", "media_type"),
        [
            ("PNG", {}, "image/png"),
            ("BMP", {}, "image/bmp"),
            ("TIFF", {}, "image/tiff"),
            ("TIFF", {"compression": "tiff_lzw"}, "image/tiff"),
            ("TIFF", {"big_tiff": True}, "image/tiff"),
            ("WEBP", {"lossless": True}, "image/webp"),
        ],
    )
    def test_lossless_formats_give_the_very_pixels(self, file_format: str, options: Any, media_type: str) -> None:
        raw = file_of(COLOURED, file_format, **options)
        photo = photo_of(raw)
        assert np.array_equal(photo.rgb, COLOURED)
        assert (photo.media_type, photo.raw, photo.note) == (media_type, raw, None)
        assert photo.sha256 == hashlib.sha256(raw).hexdigest()

    @pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
    def test_lossy_formats_give_what_pillow_sees(self, file_format: str) -> None:
        raw = file_of(COLOURED, file_format)
        assert np.array_equal(photo_of(raw).rgb, np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")))

    @pytest.mark.parametrize("orientation", range(10))
    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_photos_stand_upright(self, file_format: str, orientation: int) -> None:
        raw = file_of(COLOURED, file_format, exif=turned(orientation))
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB")
        assert np.array_equal(photo_of(raw).rgb, np.asarray(expected))

    def test_a_phone_held_upright(self) -> None:
        # Orientation 6: the first stored row is the right-hand column of what was seen.
        rgb = photo_of(file_of(COLOURED, "PNG", exif=turned(6))).rgb
        assert rgb.shape == (31, 23, 3)
        assert np.array_equal(rgb[:, -1], COLOURED[0])

    def test_broken_exif_turns_nothing(self) -> None:
        raw = file_of(COLOURED, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
        assert np.array_equal(photo_of(raw).rgb, COLOURED)

    def test_the_pixels_can_be_handed_to_torch(self) -> None:
        for raw in (file_of(COLOURED), file_of(COLOURED, exif=turned(7))):
            rgb = photo_of(raw).rgb
            assert rgb.flags.writeable
            assert rgb.flags.c_contiguous
            assert rgb.dtype == np.uint8

    def test_transparent_parts_are_white(self) -> None:
        rgba = np.dstack([COLOURED, np.full(HW, 255, np.uint8)])
        rgba[:5, :, 3] = 0
        rgba[5:7, :] = (100, 0, 200, 102)  # 102 / 255 = 0.4
        rgb = photo_of(file_of(rgba)).rgb
        assert (rgb[:5] == 255).all()
        assert (rgb[5:7] == (193, 153, 233)).all()  # 0.4 · colour + 0.6 · 255
        assert np.array_equal(rgb[7:], COLOURED[7:])

    def test_transparent_palette_colour_and_grey_with_alpha(self) -> None:
        indexed = Image.fromarray(MARKED.astype(np.uint8))
        indexed.putpalette([9, 9, 9, 200, 100, 50])
        rgb = photo_of(file_of(indexed, transparency=0)).rgb
        assert (rgb[MARKED] == (200, 100, 50)).all()
        assert (rgb[~MARKED] == 255).all()
        grey = np.dstack([COLOURED[..., 0], np.where(MARKED, 255, 0).astype(np.uint8)])
        rgb = photo_of(file_of(Image.fromarray(grey, "LA"))).rgb
        assert np.array_equal(rgb[MARKED], COLOURED[..., :1].repeat(3, axis=2)[MARKED])
        assert (rgb[~MARKED] == 255).all()

    @pytest.mark.parametrize("mode", ["1", "L", "P"])
    def test_grey_and_palette(self, mode: str) -> None:
        image = Image.fromarray(COLOURED).convert(mode)
        assert np.array_equal(photo_of(file_of(image)).rgb, np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
    def test_red_in_other_colour_spaces(self, mode: str) -> None:
        red = Image.new("RGB", (5, 3), (255, 0, 0)).convert(mode)
        rgb = photo_of(file_of(red, "TIFF")).rgb.astype(int)
        assert (np.abs(rgb - (255, 0, 0)) < 6).all()

    @pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
    def test_16_bit_grey_is_scaled_by_its_range(self, file_format: str) -> None:
        stored = np.array([[0, 128, 257], [257 * 100, 65407, 65535]], dtype=np.uint16)
        assert photo_of(file_of(stored, file_format)).rgb[..., 1].tolist() == [[0, 0, 1], [100, 255, 255]]

    @pytest.mark.parametrize(
        ("stored", "seen"),
        [
            ([0.0, 0.2, 1.0], [0, 51, 255]),  # white is 1
            ([0.0, 51.0, 102.0], [0, 51, 102]),  # white is 255
            ([0.0, 257.0, 51400.0], [0, 1, 200]),  # white is 65535
            ([-1.0, 0.0, 4.0], [0, 51, 255]),  # none of them: from lowest to highest
            ([5.0, 5.0, 5.0], [5, 5, 5]),
            ([-5.0, -5.0, -5.0], [0, 0, 0]),
            ([np.nan, np.inf, 1.0], [0, 0, 255]),
            ([-3e38, 3e38, 3e38], [0, 255, 255]),
        ],
    )
    def test_floating_point_grey(self, stored: list[float], seen: list[int]) -> None:
        raw = file_of(np.array([stored] * 2, dtype=np.float32), "TIFF")
        assert photo_of(raw).rgb[0].tolist() == [[level] * 3 for level in seen]

    def test_32_bit_grey(self) -> None:
        stored = np.array([[0, 51, 255], [0, 1, 2]], dtype=np.int32)
        assert np.array_equal(photo_of(file_of(stored, "TIFF")).rgb[..., 2], stored)

    @pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
    def test_of_an_animation_the_first_frame_is_used_and_said_so(self, file_format: str) -> None:
        more = [Image.fromarray(255 - COLOURED)]
        lossless = {"lossless": True} if file_format == "WEBP" else {}
        photo = photo_of(file_of(COLOURED, file_format, save_all=True, append_images=more, **lossless))
        assert np.array_equal(photo.rgb, COLOURED)
        assert photo.note == "animated image: the first frame was used"

    def test_of_several_pages_the_first_is_used_and_said_so(self) -> None:
        photo = photo_of(file_of(COLOURED, "TIFF", save_all=True, append_images=[Image.fromarray(255 - COLOURED)]))
        assert np.array_equal(photo.rgb, COLOURED)
        assert photo.note == "several pages: the first was used"

    def test_the_second_picture_of_a_phone_is_nobodys_business(self) -> None:
        raw = file_of(COLOURED, "MPO", save_all=True, append_images=[Image.fromarray(255 - COLOURED)])
        photo = photo_of(raw)
        assert (photo.media_type, photo.note) == ("image/jpeg", None)
        assert np.array_equal(photo.rgb, np.asarray(Image.open(io.BytesIO(raw))))

    def test_many_threads_decode_at_once(self) -> None:
        raws = [file_of(np.roll(COLOURED, shift, axis=0), "PNG", exif=turned(shift % 8 + 1)) for shift in range(16)] * 4
        alone = [photo_of(raw).rgb for raw in raws]
        with ThreadPoolExecutor(8) as pool:
            assert all(map(np.array_equal, alone, (photo.rgb for photo in pool.map(photo_of, raws))))


class TestPhotosRefused:
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
            (png_header(7, 7), "is damaged"),
            (png_header(0, 7), "is damaged"),
            (file_of(COLOURED[:1]), "at least 2 × 2"),
            (file_of(COLOURED[:, :1]), "at least 2 × 2"),
        ],
    )
    def test_what_is_no_photo(self, raw: bytes, words: str) -> None:
        with pytest.raises(InvalidInputError, match=words) as refusal:
            photo_of(raw)
        assert refusal.value.field == "image"
        assert "Send" in refusal.value.detail

    @pytest.mark.parametrize(
        ("raw", "name"),
        [
            (file_of(COLOURED, "GIF"), "GIF"),
            (file_of(COLOURED, "JPEG2000"), "JPEG 2000"),
            (file_of(COLOURED, "AVIF"), "AVIF"),
            (file_of(COLOURED, "ICO"), "ICO"),
            (file_of(COLOURED, "PDF"), "PDF"),
            (file_of(COLOURED, "PPM"), "PNM"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
            (b'  <svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        ],
    )
    def test_images_of_other_formats_are_called_by_their_name(self, raw: bytes, name: str) -> None:
        with pytest.raises(UnsupportedMediaError, match=f"^{name} files are not read. Send photo as JPEG") as refusal:
            decode.decode_photo(raw, max_pixels=MAX_PIXELS, field="photo")
        assert refusal.value.field == "photo"

    def test_the_limit_is_exact_and_named(self) -> None:
        assert photo_of(file_of(COLOURED), max_pixels=23 * 31).rgb.shape == (*HW, 3)
        with pytest.raises(TooLargeError, match=r"31 × 23 pixels.* 712 pixels \(EXEMPLAR_MAX_IMAGE_PIXELS\)"):
            photo_of(file_of(COLOURED), max_pixels=23 * 31 - 1)

    def test_the_small_bombs_are_real(self) -> None:
        assert photo_of(black_webp(101, 89)).rgb.shape == (89, 101, 3)

    @pytest.mark.parametrize("raw", [png_header(30_000, 30_000), png_header(2**31 - 1, 7), black_webp(16_383, 16_383)])
    def test_a_bomb_is_refused_at_once_and_without_memory(self, raw: bytes) -> None:
        tracemalloc.start()
        begin_s = time.perf_counter()
        with pytest.raises(TooLargeError, match="EXEMPLAR_MAX_IMAGE_PIXELS"):
            photo_of(raw, max_pixels=40_000_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.perf_counter() - begin_s < 1
        assert peak_bytes < 1_000_000

    @pytest.mark.parametrize("raw", [png_header(10_007, 10_007), png_header(30_000, 30_000), black_webp(16_383, 7_001)])
    def test_a_setting_above_pillows_own_limit_brings_no_warning(self, raw: bytes) -> None:
        with pytest.raises(TooLargeError, match=f"{Image.MAX_IMAGE_PIXELS} pixels"):
            photo_of(raw, max_pixels=10**9)


class TestMaskImages:
    @pytest.mark.parametrize("value", [1, 128, 255])
    def test_8_bit(self, value: int) -> None:
        assert np.array_equal(mask_of(file_of(np.where(MARKED, value, 0).astype(np.uint8))), MARKED)

    @pytest.mark.parametrize("value", [1, 255, 256, 65535])
    @pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
    def test_16_bit_keeps_low_values(self, file_format: str, value: int) -> None:
        assert np.array_equal(mask_of(file_of(np.where(MARKED, value, 0).astype(np.uint16), file_format)), MARKED)

    @pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "grey, alpha", "RGBA"])
    def test_16_bits_in_several_channels_are_refused_since_half_would_be_lost(
        self, colour_type: int, channels: int
    ) -> None:
        height, width = MARKED.shape
        ones = (b"\0" + b"\0\1" * channels * width) * height
        with pytest.raises(InvalidInputError, match="16-bit grey without alpha"):
            mask_of(png_header(width, height, depth=16, colour_type=colour_type, pixels=ones))

    def test_1_bit_and_our_own(self) -> None:
        assert np.array_equal(mask_of(file_of(MARKED)), MARKED)
        assert np.array_equal(mask_of(file_of(MARKED, "BMP")), MARKED)
        assert np.array_equal(mask_of(mask_to_png(MARKED)), MARKED)

    @pytest.mark.parametrize("kind", [np.int32, np.float32])
    def test_numbers(self, kind: type) -> None:
        assert np.array_equal(mask_of(file_of(np.where(MARKED, -7, 0).astype(kind), "TIFF")), MARKED)

    def test_colour(self) -> None:
        painted = np.zeros((*HW, 3), dtype=np.uint8)
        painted[MARKED] = (0, 0, 1)
        for file_format in ("PNG", "BMP", "TIFF"):
            assert np.array_equal(mask_of(file_of(painted, file_format)), MARKED)
        assert np.array_equal(mask_of(file_of(painted, "WEBP", lossless=True)), MARKED)

    @pytest.mark.parametrize(
        ("colours", "background"),
        [
            ([(0, 0, 0), (128, 0, 0)], 0),  # VOC
            ([(0, 0, 0), (0, 0, 0)], 0),  # a palette nobody filled
            ([(255, 255, 255), (0, 0, 0)], 1),  # white on black, colours ordered by an optimiser
            ([(250, 250, 250), (128, 0, 0)], 0),  # no black: index 0, as in VOC
        ],
    )
    def test_palette(self, colours: list[tuple[int, int, int]], background: int) -> None:
        image = Image.fromarray(np.where(MARKED, 1 - background, background).astype(np.uint8))
        image.putpalette([level for colour in colours for level in colour])
        raw = file_of(image)
        assert Image.open(io.BytesIO(raw)).mode == "P"
        assert np.array_equal(mask_of(raw), MARKED)

    def test_our_own_label_map(self) -> None:
        labels = np.where(MARKED, 2, 0).astype(np.uint8)
        assert np.array_equal(mask_of(label_map_to_png(labels, ["a", "b"], palette(2))), MARKED)

    def test_a_cut_out_is_marked_by_its_opacity(self) -> None:
        for colours in (COLOURED, np.zeros_like(COLOURED)):  # a photo, a black shape
            cut_out = np.dstack([colours, np.where(MARKED, 1, 0).astype(np.uint8)])
            assert np.array_equal(mask_of(file_of(cut_out)), MARKED)
        indexed = Image.fromarray(MARKED.astype(np.uint8))
        indexed.putpalette([200, 0, 0, 0, 0, 0])
        assert np.array_equal(mask_of(file_of(indexed, transparency=0)), MARKED)

    @pytest.mark.parametrize("alpha", [0, 128, 255])
    def test_constant_opacity_says_nothing(self, alpha: int) -> None:
        white = np.where(MARKED, 255, 0).astype(np.uint8)
        image = np.dstack([white, white, white, np.full(HW, alpha, np.uint8)])
        assert np.array_equal(mask_of(file_of(image)), MARKED)
        assert np.array_equal(mask_of(file_of(Image.fromarray(image[..., 2:], "LA"))), MARKED)

    def test_a_translucent_object_on_opaque_black_is_marked_by_colour(self) -> None:
        image = np.zeros((*HW, 4), dtype=np.uint8)
        image[..., 3] = 255
        image[MARKED] = (255, 0, 0, 128)
        assert np.array_equal(mask_of(file_of(image)), MARKED)

    @pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
    def test_lossy_compression_leaves_no_halo(self, file_format: str) -> None:
        disc = np.hypot(*(np.mgrid[:67, :71] - 33)) < 20
        mask = mask_of(file_of(np.where(disc, 255, 0).astype(np.uint8), file_format, quality=75), disc.shape)
        assert (mask & disc).sum() / (mask | disc).sum() > 0.97
        assert not (mask & (np.hypot(*(np.mgrid[:67, :71] - 33)) > 23)).any()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_it_is_turned_like_the_photo(self, orientation: int) -> None:
        values = np.where(MARKED, 1, 0).astype(np.uint16)
        raw = file_of(values, exif=turned(orientation))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))) != 0
        assert np.array_equal(mask_of(raw, expected.shape), expected)

    def test_another_size_is_refused_with_both(self) -> None:
        with pytest.raises(InvalidInputError, match=r"mask is 31 × 23 pixels.* photo 37 × 29 pixels") as refusal:
            mask_of(file_of(MARKED), (29, 37))
        assert refusal.value.field == "mask"
        with pytest.raises(InvalidInputError, match="before its EXIF rotation"):
            mask_of(file_of(MARKED), (31, 23))

    def test_unreadable_ones_name_the_field(self) -> None:
        for raw, kind in ((b"", InvalidInputError), (file_of(MARKED, "GIF"), UnsupportedMediaError)):
            with pytest.raises(kind) as refusal:
                mask_of(raw)
            assert refusal.value.field == "mask"
        with pytest.raises(TooLargeError, match="EXEMPLAR_MAX_IMAGE_PIXELS"):
            mask_of(png_header(101, 101))


class TestSegmentations:
    def read(self, text: str) -> np.ndarray:
        return decode.decode_segmentation(text, photo_hw=HW)

    def test_run_lengths(self) -> None:
        assert np.array_equal(self.read(json.dumps(mask_to_rle(MARKED))), MARKED)
        assert self.read(json.dumps({"size": HW, "counts": [23, 7, 683]})).sum() == 7

    def test_polygons_and_one_flat_polygon(self) -> None:
        ring = [3, 5, 20, 5, 20, 16, 3, 16]
        assert self.read(json.dumps([ring])).sum() == 17 * 11
        assert self.read(json.dumps(ring)).sum() == 17 * 11
        assert self.read(json.dumps([ring, [0, 0, 2, 0, 2, 2, 0, 2]])).sum() == 17 * 11 + 4

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ('{"a":' * 100_000, "not JSON"),
            ("1" * 10_000, "not JSON"),
            ("[[0, 0, 5, 0, 5, NaN]]", "NaN is not a number"),
            ("[[0, 0, 5, 0, 5, -Infinity]]", "Infinity is not a number"),
            ("[[0, 0, 5, 0, 5, 1e999]]", "finite"),
            ("[[0, 0, 5, 0, 5, " + "9" * 400 + "]]", "finite"),
            ("[[0, 0, 5, 0, 5, null]]", "finite"),
            ("[]", "expected a list of polygons"),
            ("[[]]", "3 corners or more"),
            ("[1, 2, 3, 4]", "3 corners or more"),
            ("7", "expected a list of polygons"),
            ('"735"', "expected a list of polygons"),
            ("{}", "size"),
            ('{"size": [31, 23], "counts": [713]}', r"is for 23 × 31.*so \[23, 31\]"),
            ('{"size": [1000000000, 1000000000], "counts": [1000000000000000000]}', "is for 1000000000 ×"),
            ('{"size": [23, 31], "counts": [714]}', "add up to 23 × 31 = 713"),
            ('{"size": [23, 31], "counts": "ooooooo"}', "counts"),
            ('{"size": [23, 31], "counts": "\\ud800"}', "counts"),
        ],
    )
    def test_anything_else_is_refused(self, text: str, words: str) -> None:
        with pytest.raises(InvalidInputError, match=words) as refusal:
            self.read(text)
        assert refusal.value.field == "segmentation"
        assert len(refusal.value.detail) < 400


class TestBoxes:
    def read(self, text: str) -> np.ndarray:
        return decode.decode_box(text, photo_hw=HW)

    def test_a_box_inside_the_photo(self) -> None:
        assert bbox_of(self.read("[3, 5, 17, 11]")) == [3, 5, 17, 11]
        assert self.read("[0, 0, 31, 23]").all()

    def test_half_a_pixel_over_is_rounding(self) -> None:
        assert bbox_of(self.read("[-0.4, 20.2, 31.8, 3.1]")) == [0, 20, 31, 3]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "not JSON"),
            ("[1, 2, 3", "not JSON"),
            ("[1, 2, 3, NaN]", "NaN"),
            ("[1, 2, 3, 1e999]", "finite"),
            ("[1, 2, 3]", "expected a box"),
            ('{"x": 1}', "expected a box"),
            ("[1, 2, 3, null]", "finite"),
            ("[1, 2, 0, 4]", "above 0"),
            ("[1, 2, 3, -4]", "above 0"),
            ("[-1, 0, 3, 3]", "beyond the photo of 31 × 23"),
            ("[29, 0, 3, 3]", r"to \(32, 3\), beyond"),
            ("[0, 21, 3, 3]", "beyond"),
            ("[1e308, 0, 1e308, 3]", "beyond"),
        ],
    )
    def test_anything_else_is_refused(self, text: str, words: str) -> None:
        with pytest.raises(InvalidInputError, match=words) as refusal:
            self.read(text)
        assert refusal.value.field == "box"


class TestOneMask:
    def read(self, **sent: Any) -> np.ndarray:
        forms = {"mask": None, "segmentation": None, "box": None} | sent
        return decode.one_mask(**forms, photo_hw=HW, max_pixels=MAX_PIXELS)

    def test_each_form_alone(self) -> None:
        assert np.array_equal(self.read(mask=file_of(MARKED)), MARKED)
        assert np.array_equal(self.read(segmentation=json.dumps(mask_to_rle(MARKED))), MARKED)
        assert self.read(box="[3, 5, 17, 11]").sum() == 17 * 11

    def test_unused_fields_of_a_form_are_sent_empty(self) -> None:
        assert self.read(mask=b"", segmentation="", box="[3, 5, 17, 11]").sum() == 17 * 11

    @pytest.mark.parametrize(
        ("sent", "words"),
        [
            ({}, "none of them"),
            ({"mask": b"", "box": ""}, "none of them"),
            ({"segmentation": "[]", "box": "[]"}, "segmentation and box"),
            ({"mask": b"x", "segmentation": "[]", "box": "[]"}, "mask and segmentation and box"),
        ],
    )
    def test_none_or_several_are_refused(self, sent: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidInputError, match=f"exactly one of mask .* segmentation .* box; .*{words}"):
            self.read(**sent)

    @pytest.mark.parametrize(
        ("sent", "words"),
        [
            ({"mask": file_of(np.zeros(HW, np.uint8))}, "The mask marks no pixel"),
            ({"mask": file_of(np.ones(HW, np.uint8))}, "nothing is left as background"),
            ({"segmentation": "[[50, 50, 60, 50, 60, 60]]"}, "The segmentation marks no pixel"),
            ({"box": "[0, 0, 31, 23]"}, "The box marks the whole photo"),
            ({"box": "[3.6, 5.6, 0.5, 0.5]"}, "The box marks no pixel"),
        ],
    )
    def test_nothing_can_be_learnt_from_nothing_or_everything(self, sent: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidInputError, match=words) as refusal:
            self.read(**sent)
        assert refusal.value.field == next(iter(sent))


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
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBPVP8X"]),
    st.binary(max_size=200),
)
numbers = st.integers() | st.floats() | st.integers(-50, 50) | st.floats(-50, 50)
json_texts = st.text(max_size=20) | st.recursive(
    numbers | st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
    max_leaves=12,
).map(json.dumps)
near_json_texts = st.builds(
    lambda counts: json.dumps({"size": HW, "counts": counts}), st.text(max_size=9) | st.lists(numbers, max_size=9)
) | st.lists(numbers, min_size=4, max_size=8).map(json.dumps)


class TestNothingButAppErrorComesOut:
    """`suppress` lets a refusal pass; whatever else is raised, and every warning, fails the test."""

    def read_file(self, raw: bytes) -> None:
        with contextlib.suppress(AppError):
            assert photo_of(raw).rgb.shape[2] == 3
        with contextlib.suppress(AppError):
            assert mask_of(raw).shape == HW

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

    @settings(max_examples=400, deadline=None)
    @given(json_texts | near_json_texts, st.sampled_from([decode.decode_segmentation, decode.decode_box]))
    def test_texts(self, text: str, reader: Callable[..., np.ndarray]) -> None:
        with contextlib.suppress(AppError):
            mask = reader(text, photo_hw=HW)
            assert mask.shape == HW
            assert mask.dtype == bool
