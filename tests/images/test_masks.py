"""Every accepted form of a mask becomes its pixels; everything else is refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.errors import AppError, InvalidInputError, TooLargeError, UnsupportedMediaError
from app.images.masks import decode_mask, parse_box, parse_segmentation, read_mask
from app.masks.boxes import bbox_of
from app.masks.pictures import label_map_to_png, mask_to_png, palette
from app.masks.rle import mask_to_rle
from tests.images.cases import COLOURED, HW, MARKED, MAX_PIXELS, file_of, heic_of, png_header, turned


def mask_of(raw: bytes, photo_hw: tuple[int, int] = HW) -> np.ndarray:
    return decode_mask(raw, photo_hw=photo_hw, max_pixels=MAX_PIXELS)


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

    @pytest.mark.parametrize(
        ("file_format", "options"),
        [
            ("WEBP", {}),
            ("WEBP", {"exif": turned(1)}),
            ("WEBP", {"icc_profile": b"a profile, of an odd length"}),
            ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (97, 89))]}),
            ("TIFF", {"compression": "jpeg"}),
        ],
        ids=["WebP", "with EXIF", "with a profile", "animated", "TIFF"],
    )
    def test_noise_of_lossy_compression_is_not_marked(self, file_format: str, options: dict[str, Any]) -> None:
        block = np.zeros((89, 97), dtype=bool)
        block[17:62, 21:84] = True
        coloured = np.where(block[..., None], np.array([230, 120, 40]), 0).astype(np.uint8)
        mask = mask_of(file_of(coloured, file_format, quality=50, **options), block.shape)
        assert (mask & block).sum() / (mask | block).sum() > 0.97

    def test_exact_zeros_of_an_extended_webp_are_kept(self) -> None:
        painted = np.zeros((*HW, 3), dtype=np.uint8)
        painted[MARKED] = (0, 0, 1)
        assert np.array_equal(mask_of(file_of(painted, "WEBP", lossless=True, exif=turned(1))), MARKED)

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

    @pytest.mark.parametrize(
        "write", [heic_of, lambda pixels: file_of(pixels, "AVIF", quality=40)], ids=["HEIC", "AVIF"]
    )
    def test_lossy_heif_has_no_exact_zeros(self, write: Callable[[np.ndarray], bytes]) -> None:
        block = np.zeros(HW, dtype=bool)
        block[8:16, 8:24] = True
        grey = np.where(block, 250, 3).astype(np.uint8)
        assert np.array_equal(mask_of(write(np.dstack([grey] * 3))), block)

    def test_unreadable_ones_name_the_field(self) -> None:
        for raw, kind in ((b"", InvalidInputError), (file_of(MARKED, "GIF"), UnsupportedMediaError)):
            with pytest.raises(kind) as refusal:
                mask_of(raw)
            assert refusal.value.field == "mask"
        with pytest.raises(TooLargeError, match="EXEMPLAR_MAX_IMAGE_PIXELS"):
            mask_of(png_header(101, 101))


class TestSegmentations:
    def read(self, text: str) -> np.ndarray:
        return parse_segmentation(text, photo_hw=HW)

    def test_run_lengths(self) -> None:
        assert np.array_equal(self.read(json.dumps(mask_to_rle(MARKED))), MARKED)
        assert self.read(json.dumps({"size": HW, "counts": [23, 7, 683]})).sum() == 7

    def test_polygons_and_one_flat_polygon(self) -> None:
        ring = [3, 5, 20, 5, 20, 16, 3, 16]
        assert self.read(json.dumps([ring])).sum() == 17 * 11
        assert self.read(json.dumps(ring)).sum() == 17 * 11
        assert self.read(json.dumps([ring, [0, 0, 2, 0, 2, 2, 0, 2]])).sum() == 17 * 11 + 4

    @pytest.mark.parametrize(
        "polygons",
        [
            [[-4, -4, 3, -4, 3, 3, -4, 3]],  # a small thing in the corner, drawn by hand
            [[-8, 5, 9, 5, 9, 28, -8, 28]],  # left so by a crop of the photo
            [[3, 5, 20, 5, 20, 16, 3, 16], [30, 0, 34, 0, 34, 9, 30, 9]],
        ],
    )
    def test_less_than_half_beyond_the_photo_is_cut_off(self, polygons: list[list[int]]) -> None:
        assert self.read(json.dumps(polygons)).any()

    @pytest.mark.parametrize(
        "polygons",
        [
            [[-50, -50, 50, -50, 50, 50]],
            [[12, 20, 80, 20, 80, 64, 12, 64]],  # of the photo at four times the size
            [[0, 0, 1e308, 0, 1e308, 20], [-1e308, 5, 9, 9, 3, 3]],
            [[3, 5, 20, 5, 20, 16, 3, 16], [3, 500, 20, 500, 20, 516]],
            [50, 50, 60, 50, 60, 60],
        ],
    )
    def test_half_beyond_the_photo_is_of_another_photo(self, polygons: list[Any]) -> None:
        with pytest.raises(InvalidInputError, match=r"reaches from .* beyond the photo of 31 × 23 pixels") as refusal:
            self.read(json.dumps(polygons))
        assert refusal.value.field == "segmentation"

    def test_a_whole_annotation(self) -> None:
        ring = [3, 5, 20, 5, 20, 16, 3, 16]
        rest = {"id": 7, "image_id": 3, "category_id": 17, "bbox": [3, 5, 17, 11], "area": 187, "iscrowd": 0}
        for segmentation in ([ring], {"size": HW, "counts": [23, 7, 683]}, mask_to_rle(MARKED)):
            alone = self.read(json.dumps(segmentation))
            assert np.array_equal(self.read(json.dumps(rest | {"segmentation": segmentation})), alone)

    @pytest.mark.parametrize(
        "value", [{"segmentation": {"segmentation": []}}, {"bbox": [3, 5, 17, 11]}, {"annotations": []}]
    )
    def test_an_object_without_a_segmentation(self, value: Any) -> None:
        with pytest.raises(InvalidInputError, match="size"):
            self.read(json.dumps(value))

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
            (
                '{"size": [23, 31], "counts": "' + "0" * 5000 + '"}',
                "at most 715 run lengths of 23 × 31 .*, got 5000",
            ),
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
        return parse_box(text, photo_hw=HW)

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


class TestReadMask:
    def read(self, **sent: Any) -> np.ndarray:
        forms = {"mask": None, "segmentation": None, "box": None} | sent
        return read_mask(**forms, photo_hw=HW, max_pixels=MAX_PIXELS)

    def test_each_form_alone(self) -> None:
        assert np.array_equal(self.read(mask=file_of(MARKED)), MARKED)
        assert np.array_equal(self.read(segmentation=json.dumps(mask_to_rle(MARKED))), MARKED)
        assert self.read(box="[3, 5, 17, 11]").sum() == 17 * 11

    def test_unused_fields_of_a_form_are_sent_empty(self) -> None:
        assert self.read(mask=b"", segmentation="", box="[3, 5, 17, 11]").sum() == 17 * 11

    @pytest.mark.parametrize(
        "text",
        [
            '{"size": [1000, 1001], "counts": "' + "1" * 3 + "0" * 1_000_997 + '"}',
            '{"size": [1000, 1001], "counts": "' + "1" * 2_000_000 + '"}',
            json.dumps({"size": [1000, 1001], "counts": [999, 2] * 1000}),
            "[[0,0," + "1,2," * 20_000 + "5,6,700,800]]",
            "[" + "[1]," * 200_000 + "[1]]",
            "[" + ",".join(['{"":' * 900 + "1" + "}" * 900] * 100) + "]",
        ],
        ids=["a pixel a run", "too many runs", "a list", "a polygon", "lists", "objects in objects"],
    )
    def test_the_memory_that_reading_a_text_takes_is_counted(self, text: str) -> None:
        taken: list[int] = []
        options: dict[str, Any] = {"mask": None, "box": None, "photo_hw": (1000, 1001), "max_pixels": 2_000_000}
        tracemalloc.start()
        try:
            with contextlib.suppress(InvalidInputError):
                mask = read_mask(segmentation=text, **options, take_bytes=taken.append)
                assert sum(taken) == len(text) + mask.nbytes
            # Threads of services that other tests of this process share allocate, too.
            assert tracemalloc.get_traced_memory()[1] < taken[0] + 500_000
        finally:
            tracemalloc.stop()

    def test_the_memory_of_a_box_is_counted(self) -> None:
        taken: list[int] = []
        mask = self.read(box="[3, 5, 17, 11]", take_bytes=taken.append)
        assert taken[0] > mask.nbytes
        assert sum(taken) == len("[3, 5, 17, 11]") + mask.nbytes

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
            ({"segmentation": "[[5, 5, 6, 5, 7, 5]]"}, "The segmentation marks no pixel"),
            ({"box": "[0, 0, 31, 23]"}, "The box marks the whole photo"),
            ({"box": "[3.6, 5.6, 0.5, 0.5]"}, "The box marks no pixel"),
        ],
    )
    def test_nothing_can_be_learnt_from_nothing_or_everything(self, sent: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidInputError, match=words) as refusal:
            self.read(**sent)
        assert refusal.value.field == next(iter(sent))


@pytest.mark.parametrize(
    ("reader", "text"), [(parse_segmentation, "[[0, 0, 5, 0, 5, 5]]"), (parse_box, "[0, 0, 5, 5]")]
)
def test_a_fault_of_our_own_is_no_malformed_mask(
    reader: Callable[..., np.ndarray], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr("app.images.masks.polygons_to_mask", broken)
    monkeypatch.setattr("app.images.masks.box_to_mask", broken)
    with pytest.raises(ValueError, match="broadcast"):
        reader(text, photo_hw=HW)


numbers = st.integers() | st.floats() | st.integers(-50, 50) | st.floats(-50, 50)
json_texts = st.text(max_size=20) | st.recursive(
    numbers | st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
    max_leaves=12,
).map(json.dumps)
near_json_texts = st.builds(
    lambda counts: json.dumps({"size": HW, "counts": counts}), st.text(max_size=9) | st.lists(numbers, max_size=9)
) | st.lists(numbers, min_size=4, max_size=8).map(json.dumps)


class TestFuzz:
    """`suppress` lets a refusal pass; whatever else is raised, and every warning, fails the test."""

    @settings(max_examples=400, deadline=None)
    @given(json_texts | near_json_texts, st.sampled_from([parse_segmentation, parse_box]))
    def test_texts(self, text: str, reader: Callable[..., np.ndarray]) -> None:
        with contextlib.suppress(AppError):
            mask = reader(text, photo_hw=HW)
            assert mask.shape == HW
            assert mask.dtype == bool
