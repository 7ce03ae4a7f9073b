"""PNG files have the pixels, colours and names that were written; overlays are painted as documented."""

from __future__ import annotations

import io
import json
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from app.masks.pictures import label_map_to_png, mask_to_png, overlay, palette, probability_to_png
from tests.masks.cases import CORNERED


class TestPictures:
    def test_a_mask_is_black_and_white(self) -> None:
        image = Image.open(io.BytesIO(mask_to_png(CORNERED)))
        assert image.mode == "1"
        assert np.array_equal(np.asarray(image.convert("L")), np.where(CORNERED, 255, 0))

    def test_a_label_map_carries_colours_and_names_of_any_script(self) -> None:
        labels = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
        names = ["Straße", "猫"]
        image = Image.open(io.BytesIO(label_map_to_png(labels, names, palette(2))))
        image.load()
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert json.loads(image.info["categories"]) == names
        assert image.getpalette()[:9] == [0, 0, 0, *palette(2)[0], *palette(2)[1]]

    def test_a_label_map_holds_255_categories(self) -> None:
        labels = np.arange(256, dtype=np.uint8).reshape(2, 128)
        png = label_map_to_png(labels, [str(i) for i in range(255)], palette(255))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), labels)

    @pytest.mark.parametrize(("names", "colours"), [(["a"], 2), (["a", "b"], 1), (["a"] * 256, 256), (["a"], 1)])
    def test_labels_names_and_colours_must_match(self, names: list[str], colours: int) -> None:
        with pytest.raises(ValueError, match="expected"):
            label_map_to_png(np.array([[0, 2]], dtype=np.uint8), names, palette(colours))

    def test_probabilities_become_grey(self) -> None:
        prob = np.array([[0.0, 0.5, 1.0], [0.2, -0.1, 1.1]], dtype=np.float32)
        image = Image.open(io.BytesIO(probability_to_png(prob)))
        assert np.asarray(image).tolist() == [[0, 128, 255], [51, 0, 255]]
        with pytest.raises(ValueError, match="NaN"):
            probability_to_png(np.full((2, 3), np.nan))

    def test_colours_are_distinct_steady_and_never_black(self) -> None:
        colours = palette(255)
        assert len(set(colours)) == 255
        assert colours == palette(1000)[:255]
        assert min(max(colour) for colour in colours) > 150
        neighbours = np.abs(np.diff(np.array(palette(20)), axis=0)).max(axis=1)
        assert neighbours.min() > 60


class TestOverlay:
    def photo(self) -> np.ndarray:
        return np.full((97, 131, 3), 100, dtype=np.uint8)

    def test_the_mask_is_tinted_and_outlined_and_the_rest_is_the_photo(self) -> None:
        mask = np.zeros((97, 131), dtype=bool)
        mask[50:80, 60:110] = True
        photo = self.photo()
        painted = overlay(photo, [mask], ["cat"])
        colour = palette(1)[0]
        assert painted[75, 105].tolist() == [(100 + level) // 2 for level in colour]
        assert painted[79, 109].tolist() == list(colour)
        assert (painted[~mask] == 100).all()
        assert (photo == 100).all()

    def test_names_are_written_and_absent_categories_have_none(self) -> None:
        mask = np.zeros((97, 131), dtype=bool)
        mask[50:80, 60:110] = True
        named = overlay(self.photo(), [mask, np.zeros_like(mask)], ["cat", "dog"])
        assert np.array_equal(named, overlay(self.photo(), [mask, np.zeros_like(mask)], ["cat", "cow"]))
        assert not np.array_equal(named, overlay(self.photo(), [mask, np.zeros_like(mask)], ["dog", "dog"]))

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
        painted = overlay(self.photo(), one_by_one(), names)
        assert len(made) == 6
        assert all((painted == colour).all(axis=2).any() for colour in palette(6))

    def test_absent_categories_leave_no_trace_but_their_colour(self) -> None:
        """A category's colour is its own, whoever else is in the photo."""
        mask, nothing = np.zeros((97, 131), dtype=bool), np.broadcast_to(np.zeros(131, bool), (97, 131))
        mask[50:80, 60:110] = True
        alone = overlay(self.photo(), [mask], ["cat"])
        assert np.array_equal(overlay(self.photo(), [mask, *[nothing] * 100], ["cat"] + ["dog"] * 100), alone)
        second = overlay(self.photo(), [nothing, mask], ["dog", "cat"])
        assert second[75, 105].tolist() == [(100 + level) // 2 for level in palette(2)[1]]

    def test_a_name_beyond_the_font_is_plain_or_a_number(self) -> None:
        mask = np.ones((97, 131), dtype=bool)
        for name, written in (("café", "cafe"), ("猫", "#1"), ("\u200b", "#1"), (" ", "#1")):
            expected = overlay(self.photo(), [mask], [written])
            assert np.array_equal(overlay(self.photo(), [mask], [name]), expected)

    def test_names_at_one_place_do_not_hide_each_other(self) -> None:
        mask = np.zeros((97, 131), dtype=bool)
        mask[90:, 120:] = True
        painted = overlay(self.photo(), [mask] * 3, ["one", "two", "three"])
        assert all((painted == colour).all(axis=2).sum() > 100 for colour in palette(3))

    def test_a_tiny_photo_and_a_long_name_fit(self) -> None:
        for photo_hw in ((2, 3), (13, 17)):
            mask = np.ones(photo_hw, dtype=bool)
            assert overlay(np.zeros((*photo_hw, 3), np.uint8), [mask] * 5, ["x" * 64] * 5).shape == (*photo_hw, 3)

    def test_one_mask_per_name(self) -> None:
        with pytest.raises(ValueError, match="argument"):
            overlay(self.photo(), [], ["cat"])
