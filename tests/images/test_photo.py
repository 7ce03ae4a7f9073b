"""Photos of every mode and orientation become upright pixels, as image viewers show them."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from app.images.photo import Photo, decode_photo
from tests.images.cases import COLOURED, HW, MARKED, MAX_PIXELS, file_of, heic_of, turned


def photo_of(raw: bytes, max_pixels: int = MAX_PIXELS) -> Photo:
    return decode_photo(raw, max_pixels=max_pixels)


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

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_photos_of_phones_are_turned_once(self, orientation: int) -> None:
        expected = photo_of(file_of(COLOURED, exif=turned(orientation))).rgb
        photo = photo_of(heic_of(COLOURED, orientation))
        assert (photo.media_type, photo.note) == ("image/heic", None)
        assert np.array_equal(photo.rgb, expected)
        # AVIF has no lossless colour here: a quarter of the photo in one colour shows how it was turned.
        quarter = np.zeros((40, 60, 3), np.uint8)
        quarter[:20, :30] = 255
        seen = photo_of(file_of(quarter, "AVIF", exif=turned(orientation), quality=100)).rgb
        assert np.array_equal(seen > 127, photo_of(file_of(quarter, exif=turned(orientation))).rgb > 127)

    def test_of_a_heic_with_several_pictures_the_main_one_is_used(self) -> None:
        photo = photo_of(heic_of(COLOURED, more=255 - COLOURED))
        assert np.array_equal(photo.rgb, COLOURED)
        assert photo.note == "several pictures: the main one was used"

    @pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
    def test_heic_under_each_of_its_names(self, brand: bytes) -> None:
        raw = heic_of(COLOURED)
        assert np.array_equal(photo_of(raw[:8] + brand + raw[12:]).rgb, COLOURED)

    def test_avif_under_a_general_name(self) -> None:
        raw = file_of(COLOURED, "AVIF")
        for brand in (b"avif", b"mif1"):
            photo = photo_of(raw[:8] + brand + raw[12:])
            assert (photo.media_type, photo.rgb.shape) == ("image/avif", COLOURED.shape)

    def test_transparent_avif_is_white(self) -> None:
        rgba = np.zeros((40, 60, 4), np.uint8)
        assert (photo_of(file_of(rgba, "AVIF")).rgb > 250).all()

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


class TestMemory:
    """What is counted for a photo before it is decoded covers the peak; then the file and the pixels are left."""

    @pytest.mark.parametrize(
        ("pixels", "bytes_of_pillow", "options"),
        [
            (np.zeros((800, 1200), np.uint8), 1, {}),
            (np.zeros((800, 1200), np.uint16), 2, {}),
            (np.zeros((800, 1200), np.float32), 4, {"file_format": "TIFF", "compression": "tiff_lzw"}),
            (np.zeros((800, 1200, 3), np.uint8), 4, {"exif": turned(6)}),
            (np.zeros((800, 1200, 4), np.uint8), 4, {}),
        ],
        ids=["grey", "grey of 16 bits", "floating point", "turned", "transparent"],
    )
    def test_is_counted(
        self, monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray, bytes_of_pillow: int, options: Any
    ) -> None:
        monkeypatch.setattr(
            "app.images.files._BAND_PX", 10_000
        )  # as small beside this photo as else beside a large one
        raw, taken = file_of(pixels, **options), []
        tracemalloc.start()
        try:
            photo = decode_photo(raw, max_pixels=1_000_000, take_bytes=taken.append)
            traced = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # Pillow's pictures are not traced.
        assert traced + bytes_of_pillow * pixels.shape[0] * pixels.shape[1] <= taken[0]
        assert sum(taken) == len(raw) + photo.rgb.nbytes
