"""A mask survives every outside form that can hold it, and no outside form can crash the reader."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from app.method import masks

# 3 rows, 5 columns; marked are (row, column) (1, 2), (2, 2) and (0, 3): numbers 7, 8 and 9 column by column.
CORNERED = np.zeros((3, 5), dtype=bool)
CORNERED[1:, 2] = CORNERED[0, 3] = True

small_masks = hnp.arrays(bool, st.tuples(st.integers(1, 13), st.integers(1, 11)))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner),
    max_leaves=12,
)


def coco_decoded(rle: dict[str, object]) -> np.ndarray:
    with warnings.catch_warnings():  # of pycocotools 2.0.11 under NumPy 2
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco_mask.decode(rle).astype(bool)


def drawn_by_coco(ring: list[float], image_hw: tuple[int, int]) -> np.ndarray:
    return coco_decoded(coco_mask.frPyObjects([ring], *image_hw)[0])


def with_holes_filled(mask: np.ndarray) -> np.ndarray:
    """Floods the background from outside, over corners too; what stays dry is mask or hole."""
    free = ~np.pad(mask, 1)
    wet = np.pad(np.zeros_like(mask), 1, constant_values=True)
    while True:
        padded = np.pad(wet, 1)
        height, width = wet.shape
        grown = free & np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
        if np.array_equal(grown, wet):
            return ~wet[1:-1, 1:-1]
        wet = grown


class TestRunLengths:
    def test_counts_go_down_the_columns(self) -> None:
        assert masks.mask_to_rle(CORNERED) == {"size": [3, 5], "counts": "735"}

    def test_both_spellings_are_read(self) -> None:
        for counts in ("735", [7, 3, 5], [7, 1, 0, 2, 5, 0]):
            assert np.array_equal(masks.rle_to_mask({"size": [3, 5], "counts": counts}), CORNERED)

    def test_it_is_ready_for_json(self) -> None:
        assert json.loads(json.dumps(masks.mask_to_rle(CORNERED)))["size"] == [3, 5]

    @given(small_masks)
    def test_round_trip_and_pycocotools_agree(self, mask: np.ndarray) -> None:
        rle = masks.mask_to_rle(mask)
        assert np.array_equal(masks.rle_to_mask(rle), mask)
        assert np.array_equal(coco_decoded(dict(rle)), mask)

    @pytest.mark.parametrize("runs", [[0, 1_000_003], [1_000_003], [500_000, 3, 500_000], [31, 32, 999_940]])
    def test_long_runs_need_several_characters(self, runs: list[int]) -> None:
        rle = coco_mask.frPyObjects({"size": [1_000_003, 1], "counts": runs}, 1_000_003, 1)
        mask = masks.rle_to_mask({"size": [1_000_003, 1], "counts": rle["counts"].decode()})
        assert np.array_equal(mask, masks.rle_to_mask({"size": [1_000_003, 1], "counts": runs}))
        assert masks.mask_to_rle(mask)["counts"].encode() == rle["counts"]

    @pytest.mark.parametrize(
        "rle",
        [
            None,
            [],
            {},
            {"size": [3, 5]},
            {"counts": "735"},
            {"size": [3], "counts": "735"},
            {"size": [3, -5], "counts": "735"},
            {"size": [0, 5], "counts": []},
            {"size": [3.0, 5.0], "counts": "735"},
            {"size": [True, 15], "counts": [15]},
            {"size": [3, 5], "counts": None},
            {"size": [3, 5], "counts": b"735"},
            {"size": [3, 5], "counts": ""},
            {"size": [3, 5], "counts": []},
            {"size": [3, 5], "counts": "73"},  # one run short
            {"size": [3, 5], "counts": "736"},  # one pixel over
            {"size": [3, 5], "counts": "73\u00e9"},
            {"size": [3, 5], "counts": "73\ud800"},
            {"size": [3, 5], "counts": "73p"},  # the first character above the alphabet
            {"size": [3, 5], "counts": "73U"},  # says that it goes on, and ends
            {"size": [3, 5], "counts": "o" * 4000 + "0"},  # one number of 4,000 digits
            {"size": [3, 5], "counts": "O735"},  # a negative run
            {"size": [3, 5], "counts": [7, 3]},
            {"size": [3, 5], "counts": [7, 3, 5.0]},
            {"size": [3, 5], "counts": [7, True, 7]},
            {"size": [3, 5], "counts": [20, -5]},
            {"size": [3, 5], "counts": [2**64 + 15]},
            {"size": [10**9, 10**9], "counts": [15]},
            {"size": [10**400, 1], "counts": "735"},
        ],
    )
    def test_anything_else_is_refused_before_memory_is_touched(self, rle: object) -> None:
        with pytest.raises(ValueError, match="expected"):
            masks.rle_to_mask(rle)

    @given(st.text(alphabet=[chr(code) for code in range(46, 114)], max_size=12))
    def test_a_string_of_its_alphabet_is_read_as_pycocotools_would_or_refused(self, counts: str) -> None:
        try:
            mask = masks.rle_to_mask({"size": [3, 5], "counts": counts})
        except ValueError:
            return
        assert np.array_equal(mask, coco_decoded({"size": [3, 5], "counts": counts}))

    @given(json_values)
    def test_any_json_is_read_or_refused(self, value: object) -> None:
        for reader in (masks.rle_to_mask, lambda item: masks.rle_to_mask({"size": [3, 5], "counts": item})):
            with contextlib.suppress(ValueError):
                assert reader(value).dtype == bool


class TestPolygons:
    def test_a_box_is_its_four_corners_clockwise(self) -> None:
        mask = np.zeros((7, 11), dtype=bool)
        mask[2:5, 3:10] = True
        assert masks.mask_to_polygons(mask) == [[3.0, 2.0, 10.0, 2.0, 10.0, 5.0, 3.0, 5.0]]

    def test_pixels_that_touch_at_a_corner_are_two_rings(self) -> None:
        assert masks.mask_to_polygons(CORNERED) == [[3, 0, 4, 0, 4, 1, 3, 1], [2, 1, 3, 1, 3, 3, 2, 3]]

    def test_a_hole_comes_out_filled_and_an_island_in_it_keeps_its_ring(self) -> None:
        mask = np.ones((7, 7), dtype=bool)
        mask[1:6, 1:6] = False
        mask[3, 3] = True
        rings = masks.mask_to_polygons(mask)
        assert rings == [[0, 0, 7, 0, 7, 7, 0, 7], [3, 3, 4, 3, 4, 4, 3, 4]]
        assert masks.polygons_to_mask(rings, (7, 7)).all()

    def test_the_empty_mask_has_no_rings(self) -> None:
        assert masks.mask_to_polygons(np.zeros((3, 5), dtype=bool)) == []

    @settings(max_examples=300)
    @given(small_masks.filter(np.any))
    def test_round_trip_is_exact_but_for_holes(self, mask: np.ndarray) -> None:
        rings = masks.mask_to_polygons(mask)
        assert np.array_equal(masks.polygons_to_mask(rings, mask.shape), with_holes_filled(mask))

    def test_a_disc_in_a_large_photo_comes_back(self) -> None:
        y, x = np.mgrid[:1009, :1511]
        mask = (y - 500) ** 2 + (x - 700) ** 2 < 400**2
        rings = masks.mask_to_polygons(mask)
        assert len(rings) == 1
        assert np.array_equal(masks.polygons_to_mask(rings, mask.shape), mask)

    def test_polygons_are_united(self) -> None:
        left, right = [0, 0, 4, 0, 4, 3, 0, 3], [2, 1, 7, 1, 7, 5, 2, 5]
        mask = masks.polygons_to_mask([left, right], (5, 7))
        assert mask.sum() == 4 * 3 + 5 * 4 - 2 * 2

    def test_a_ring_that_crosses_itself_is_even_odd(self) -> None:
        twice = [0, 0, 5, 0, 5, 5, 0, 5] * 2
        assert not masks.polygons_to_mask([twice], (7, 7)).any()

    @given(st.lists(st.tuples(st.floats(0, 11), st.floats(0, 13)), min_size=3, max_size=9))
    def test_inside_the_image_it_is_what_pycocotools_draws(self, corners: list[tuple[float, float]]) -> None:
        ring = [value for corner in corners for value in corner]
        assert np.array_equal(masks.polygons_to_mask([ring], (13, 11)), drawn_by_coco(ring, (13, 11)))

    def test_what_overhangs_is_cut_off(self) -> None:
        ring = [-4, -3, 5, -3, 5, 4, -4, 4]
        expected = np.zeros((7, 11), dtype=bool)
        expected[:4, :5] = True
        assert np.array_equal(masks.polygons_to_mask([ring], (7, 11)), expected)

    def test_coordinates_far_out_cost_nothing(self) -> None:
        # The half-plane above the diagonal, with corners at the edge of what a float can hold.
        mask = masks.polygons_to_mask([[-1e300, -1e300, 1e300, 1e300, 1e300, -1e300]], (7, 7))
        assert np.array_equal(np.triu(mask, 1), np.triu(np.ones((7, 7), dtype=bool), 1))
        assert not np.tril(mask, -1).any()
        assert not masks.polygons_to_mask([[1e300, 0, 1e301, 0, 1e300, 5]], (7, 7)).any()

    def test_outlines_without_end_are_refused(self) -> None:
        zigzag = [0, 0, 5003, 5003] * 500
        with pytest.raises(ValueError, match="outlines of at most 2000000 pixels in total, got"):
            masks.polygons_to_mask([zigzag], (5003, 5003))

    @pytest.mark.parametrize(
        "polygons",
        [
            None,
            [],
            {},
            "polygon",
            [[]],
            [0, 0, 5, 0, 5, 5],
            [[0, 0, 5, 5]],  # two corners; pycocotools takes it for a box
            [[0, 0, 5, 0, 5, 5, 3]],
            [[0, 0, 5, 0, 5, None]],
            [[0, 0, 5, 0, 5, "5"]],
            [[0, 0, 5, 0, 5, True]],
            [[0, 0, 5, 0, 5, float("nan")]],
            [[0, 0, 5, 0, 5, float("inf")]],
            [[0, 0, 5, 0, 5, 10**400]],
            [[[0, 0], [5, 0], [5, 5], [1, 1], [2, 2], [3, 3]]],
        ],
    )
    def test_anything_else_is_refused(self, polygons: object) -> None:
        with pytest.raises(ValueError, match="expected"):
            masks.polygons_to_mask(polygons, (7, 11))

    @given(json_values | st.lists(st.lists(st.floats() | st.integers(), min_size=6, max_size=8)))
    def test_any_json_is_read_or_refused(self, value: object) -> None:
        with contextlib.suppress(ValueError):
            assert masks.polygons_to_mask(value, (7, 11)).shape == (7, 11)


class TestBoxes:
    def test_a_whole_box_comes_back(self) -> None:
        mask = masks.box_to_mask([3, 2, 7, 3], (7, 11))
        assert mask.sum() == 21
        assert masks.bbox_of(mask) == [3, 2, 7, 3]

    def test_pixels_count_whose_centre_lies_inside(self) -> None:
        assert masks.bbox_of(masks.box_to_mask([1.4, 1.6, 2, 2], (7, 11))) == [1, 2, 2, 2]
        assert masks.bbox_of(masks.box_to_mask([1.5, 1.5, 2, 2], (7, 11))) == [1, 1, 2, 2]
        assert not masks.box_to_mask([1.6, 1.6, 0.5, 0.5], (7, 11)).any()

    def test_it_is_cut_to_the_image(self) -> None:
        assert masks.bbox_of(masks.box_to_mask([-3, 5, 7, 7], (7, 11))) == [0, 5, 4, 2]
        assert masks.box_to_mask([-1e308, -5, 1.7e308, 99], (7, 11)).all()
        assert not masks.box_to_mask([1e308, 0, 1.7e308, 7], (7, 11)).any()

    def test_the_empty_mask_has_an_empty_box(self) -> None:
        assert masks.bbox_of(np.zeros((3, 5), dtype=bool)) == [0, 0, 0, 0]

    @given(small_masks.filter(np.any))
    def test_bbox_is_that_of_pycocotools(self, mask: np.ndarray) -> None:
        assert masks.bbox_of(mask) == coco_mask.toBbox(dict(masks.mask_to_rle(mask))).tolist()

    @given(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5), st.integers(1, 7)))
    def test_whole_boxes_are_what_pycocotools_draws(self, box: tuple[int, int, int, int]) -> None:
        expected = coco_decoded(coco_mask.frPyObjects(np.array([box], dtype=float), 13, 11)[0])
        assert np.array_equal(masks.box_to_mask(box, (13, 11)), expected)

    @pytest.mark.parametrize(
        "box", [None, [], [1, 2, 3], "1234", [1, 2, 3, "4"], [1, 2, 0, 4], [1, 2, 3, -4], [1e999] * 4]
    )
    def test_anything_else_is_refused(self, box: object) -> None:
        with pytest.raises(ValueError, match="expected"):
            masks.box_to_mask(box, (7, 11))


class TestPictures:
    def test_a_mask_is_black_and_white(self) -> None:
        image = Image.open(io.BytesIO(masks.mask_to_png(CORNERED)))
        assert image.mode == "1"
        assert np.array_equal(np.asarray(image.convert("L")), np.where(CORNERED, 255, 0))

    def test_a_label_map_carries_colours_and_names_of_any_script(self) -> None:
        labels = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
        names = ["Straße", "猫"]
        image = Image.open(io.BytesIO(masks.label_map_to_png(labels, names, masks.palette(2))))
        image.load()
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert json.loads(image.info["categories"]) == names
        assert image.getpalette()[:9] == [0, 0, 0, *masks.palette(2)[0], *masks.palette(2)[1]]

    def test_a_label_map_holds_255_categories(self) -> None:
        labels = np.arange(256, dtype=np.uint8).reshape(2, 128)
        png = masks.label_map_to_png(labels, [str(i) for i in range(255)], masks.palette(255))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), labels)

    @pytest.mark.parametrize(("names", "colours"), [(["a"], 2), (["a", "b"], 1), (["a"] * 256, 256), (["a"], 1)])
    def test_labels_names_and_colours_must_match(self, names: list[str], colours: int) -> None:
        with pytest.raises(ValueError, match="expected"):
            masks.label_map_to_png(np.array([[0, 2]], dtype=np.uint8), names, masks.palette(colours))

    def test_probabilities_become_grey(self) -> None:
        prob = np.array([[0.0, 0.5, 1.0], [0.2, -0.1, 1.1]], dtype=np.float32)
        image = Image.open(io.BytesIO(masks.probability_to_png(prob)))
        assert np.asarray(image).tolist() == [[0, 128, 255], [51, 0, 255]]
        with pytest.raises(ValueError, match="NaN"):
            masks.probability_to_png(np.full((2, 3), np.nan))

    def test_colours_are_distinct_steady_and_never_black(self) -> None:
        colours = masks.palette(255)
        assert len(set(colours)) == 255
        assert colours == masks.palette(1000)[:255]
        assert min(max(colour) for colour in colours) > 150
        neighbours = np.abs(np.diff(np.array(masks.palette(20)), axis=0)).max(axis=1)
        assert neighbours.min() > 60


class TestOverlay:
    def photo(self) -> np.ndarray:
        return np.full((97, 131, 3), 100, dtype=np.uint8)

    def test_the_mask_is_tinted_and_outlined_and_the_rest_is_the_photo(self) -> None:
        mask = np.zeros((97, 131), dtype=bool)
        mask[50:80, 60:110] = True
        photo = self.photo()
        painted = masks.overlay(photo, [mask], ["cat"])
        colour = masks.palette(1)[0]
        assert painted[75, 105].tolist() == [(100 + level) // 2 for level in colour]
        assert painted[79, 109].tolist() == list(colour)
        assert (painted[~mask] == 100).all()
        assert (photo == 100).all()

    def test_names_are_written_and_absent_categories_have_none(self) -> None:
        mask = np.zeros((97, 131), dtype=bool)
        mask[50:80, 60:110] = True
        named = masks.overlay(self.photo(), [mask, np.zeros_like(mask)], ["cat", "dog"])
        assert np.array_equal(named, masks.overlay(self.photo(), [mask, np.zeros_like(mask)], ["cat", "cow"]))
        assert not np.array_equal(named, masks.overlay(self.photo(), [mask, np.zeros_like(mask)], ["dog", "dog"]))

    def test_a_generators_masks_are_not_kept(self) -> None:
        """Sixty masks of a large photo at once are more than half a gigabyte."""
        made: list[weakref.ref[np.ndarray]] = []

        def one_by_one() -> Iterator[np.ndarray]:
            for row in range(0, 90, 15):
                assert sum(mask() is not None for mask in made) <= 1, "at most the one before is still there"
                mask = np.zeros((97, 131), dtype=bool)
                mask[row : row + 10, 60:110] = True
                made.append(weakref.ref(mask))
                yield mask
                del mask

        names = [f"thing {number}" for number in range(6)]
        painted = masks.overlay(self.photo(), one_by_one(), names)
        assert len(made) == 6
        assert all((painted == colour).all(axis=2).any() for colour in masks.palette(6))

    def test_absent_categories_leave_no_trace_but_their_colour(self) -> None:
        """A category's colour is its own, whoever else is in the photo."""
        mask, nothing = np.zeros((97, 131), dtype=bool), np.broadcast_to(np.zeros(131, bool), (97, 131))
        mask[50:80, 60:110] = True
        alone = masks.overlay(self.photo(), [mask], ["cat"])
        assert np.array_equal(masks.overlay(self.photo(), [mask, *[nothing] * 100], ["cat"] + ["dog"] * 100), alone)
        second = masks.overlay(self.photo(), [nothing, mask], ["dog", "cat"])
        assert second[75, 105].tolist() == [(100 + level) // 2 for level in masks.palette(2)[1]]

    def test_a_name_beyond_the_font_is_plain_or_a_number(self) -> None:
        mask = np.ones((97, 131), dtype=bool)
        for name, written in (("café", "cafe"), ("猫", "#1"), ("\u200b", "#1"), (" ", "#1")):
            expected = masks.overlay(self.photo(), [mask], [written])
            assert np.array_equal(masks.overlay(self.photo(), [mask], [name]), expected)

    def test_names_at_one_place_do_not_hide_each_other(self) -> None:
        mask = np.zeros((97, 131), dtype=bool)
        mask[90:, 120:] = True
        painted = masks.overlay(self.photo(), [mask] * 3, ["one", "two", "three"])
        assert all((painted == colour).all(axis=2).sum() > 100 for colour in masks.palette(3))

    def test_a_tiny_photo_and_a_long_name_fit(self) -> None:
        for photo_hw in ((2, 3), (13, 17)):
            mask = np.ones(photo_hw, dtype=bool)
            assert masks.overlay(np.zeros((*photo_hw, 3), np.uint8), [mask] * 5, ["x" * 64] * 5).shape == (*photo_hw, 3)

    def test_one_mask_per_name(self) -> None:
        with pytest.raises(ValueError, match="argument"):
            masks.overlay(self.photo(), [], ["cat"])
