"""A photo in tiles too: where they lie, and how their maps come together again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from app.backbones.blip import Blip
from app.method.crf import CrfParameters
from app.method.frame import fit_and_pad, stretch, to_photo
from app.method.segment import Query, encode, segment
from app.method.segment import class_map as one_class_map
from app.method.views import blend, views_of
from tests.models import random_adapter

SIZE = 48


def photo_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("preprocess", [stretch, fit_and_pad], ids=lambda how: how.__name__)
def test_a_photo_is_seen_whole_and_in_its_four_corners(preprocess) -> None:
    photo = photo_of(37, 101)
    inputs, views = views_of(lambda part: preprocess(part, SIZE), photo, tiles=True)
    assert [view.frame.photo_hw for view in views] == [(37, 101), *[(22, 61)] * 4]
    corners = [photo[:22, :61], photo[:22, 40:], photo[15:, :61], photo[15:, 40:]]
    for seen, part in zip(inputs, [photo, *corners], strict=True):
        assert torch.equal(seen, preprocess(np.ascontiguousarray(part), SIZE)[0])


def test_unless_tiles_are_wanted_it_is_seen_whole_only() -> None:
    assert len(views_of(lambda part: stretch(part, SIZE), photo_of(5, 7), tiles=False)[0]) == 1


@pytest.mark.parametrize("preprocess", [stretch, fit_and_pad], ids=lambda how: how.__name__)
def test_maps_come_back_to_where_they_were_cut(preprocess) -> None:
    """The network here is the eye itself: what it "finds" are the colours, so that blending must give the photo."""
    y, x = np.mgrid[:61, :83]
    photo = np.stack([y * 4, x * 3, (y + x) * 1.7], axis=-1).astype(np.uint8)
    inputs, views = views_of(lambda part: preprocess(part, 96), photo, tiles=True)
    whole = to_photo(inputs[0], views[0].frame)
    both = to_photo(blend(inputs, views), views[0].frame)
    assert (both - whole)[:, 2:-2, 2:-2].abs().max() < 0.012  # a third of a pixel of the steepest colour is 0.016
    # Only the tiles, the whole one blank: half of the photo's values.
    tiled = to_photo(blend([torch.zeros_like(inputs[0]), *inputs[1:]], views), views[0].frame)
    assert (2 * tiled - whole)[:, 2:-2, 2:-2].abs().max() < 0.024


def test_blended_by_the_book() -> None:
    """Against tiles brought to the photo one by one and weighed there, pixel by pixel."""
    photo = photo_of(20, 30)
    _, views = views_of(lambda part: stretch(part, 40), photo, tiles=True)
    maps = [torch.rand(2, 40, 40) for _ in views]
    # Rows 0 to 11 and 8 to 19, columns 0 to 17 and 12 to 29 of the photo; the input has two rows to each of its rows.
    ramp = {
        20: torch.cat([torch.ones(16), 1 - (torch.arange(8) + 0.5) / 8, torch.zeros(16)]),
        30: torch.cat([torch.ones(16), 1 - (torch.arange(8) + 0.5) / 8, torch.zeros(16)]),
    }
    tiled = torch.zeros(2, 40, 40)
    for map_, (down, across) in zip(maps[1:], [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        small = F.interpolate(map_[None], size=(24, 24), mode="bilinear", align_corners=False)[0]
        placed = torch.zeros(2, 40, 40)
        placed[:, 16 * down : 16 * down + 24, 16 * across : 16 * across + 24] = small
        rows = 1 - ramp[20] if down else ramp[20]
        columns = 1 - ramp[30] if across else ramp[30]
        tiled += rows[:, None] * columns * placed
    torch.testing.assert_close(blend(maps, views), (maps[0] + tiled) / 2)


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_probabilities_stay_probabilities_for_photos_of_any_size(height: int, width: int, padded: bool) -> None:
    preprocess = fit_and_pad if padded else stretch
    _, views = views_of(lambda part: preprocess(part, SIZE), photo_of(height, width), tiles=True)
    maps = [torch.rand(3, SIZE, SIZE).softmax(dim=0) for _ in views]
    blended = blend(maps, views)
    torch.testing.assert_close(blended.sum(dim=0), torch.ones(SIZE, SIZE))
    assert blended.min() >= 0


def test_a_photo_is_segmented_in_tiles_too(blip: Blip) -> None:
    queries = [Query(("dog", "hound")), Query(("cat",), random_adapter(blip, "cat"))]
    photo = photo_of(37, 101)
    background = ("sky", "bed")
    tiled = segment(blip, photo, queries, background=background, tiles=True)
    inputs, views = views_of(blip.preprocess, photo, tiles=True)
    each = [one_class_map(blip, encode(blip, rgb), queries, background=background).probabilities for rgb in inputs]
    torch.testing.assert_close(tiled, to_photo(blend(each, views), views[0].frame))
    whole = segment(blip, photo, queries, background=background)
    assert (tiled - whole).abs().max() > 0.01
    refined = segment(blip, photo, queries, background=background, tiles=True, crf=CrfParameters(iterations=3))
    torch.testing.assert_close(refined.sum(dim=0), torch.ones(37, 101))
