"""The tiles of a photo cover it, and their maps are joined into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from app.method.backbone import Backbone, EncodedImage
from app.method.frame import Frame, fit_and_pad, stretch
from app.method.pipeline import Pipeline, encode_one
from app.method.prediction import ClassMap
from app.method.prompts import Query
from app.method.tiles import Tile, is_long, join, pieces_of, tiles_of

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = [(31, 47), (97, 13), (1009, 1511), (8, 8), (1, 2)]


@pytest.mark.parametrize("photo_hw", SIZES, ids=str)
def test_the_parts_cover_the_photo_and_are_larger_than_a_half(photo_hw: tuple[int, int]) -> None:
    covered = np.zeros(photo_hw, dtype=int)
    photo = np.arange(np.prod(photo_hw) * 3, dtype=np.int64).reshape(*photo_hw, 3).astype(np.uint8)
    for tile in tiles_of(photo_hw):
        covered[tile.rows, tile.columns] += 1
        part = tile.of(photo)
        assert np.array_equal(part, photo[tile.rows, tile.columns])
        assert all(2 * length >= side for length, side in zip(part.shape, photo_hw, strict=False))
    assert len(tiles_of(photo_hw)) == 4
    assert covered.min() >= 1


@pytest.mark.parametrize("preprocess", [stretch, fit_and_pad])
@pytest.mark.parametrize("photo_hw", SIZES[:4], ids=str)
def test_where_all_say_the_same_nothing_changes(photo_hw: tuple[int, int], preprocess) -> None:
    size = 64
    photo = np.zeros((*photo_hw, 3), dtype=np.uint8)
    _, frame = preprocess(photo, size)
    tiles = tiles_of(photo_hw)
    same = torch.tensor([0.5, 0.2, 0.3])[:, None, None].expand(3, size, size).clone()
    joined = join(same, frame, [(tile, preprocess(tile.of(photo), size)[1], same) for tile in tiles])
    assert torch.allclose(joined, same, atol=1e-6)


def test_what_a_part_sees_comes_where_it_lies() -> None:
    """The last part alone sees something, in its last third: by hand, 0.4 of the say, in rows and columns 40 to 50."""
    photo_hw, size = (50, 50), 100
    tiles = tiles_of(photo_hw)
    parts = [torch.zeros(1, size, size) for _ in tiles]
    parts[-1][:, 67:, 67:] = 1
    frame, own = Frame(photo_hw, size, (size, size)), Frame((30, 30), size, (size, size))
    joined = join(
        torch.zeros(1, size, size), frame, [(tile, own, part) for tile, part in zip(tiles, parts, strict=True)]
    )[0]
    assert tiles[-1].rows == slice(20, 50)
    assert joined[85:, 85:].min().item() == pytest.approx(0.4)
    assert joined[:76].max().item() == joined[:, :76].max().item() == 0


def test_where_two_parts_overlap_one_fades_into_the_other() -> None:
    """Parts of 60 columns, 20 of which are shared; the last and the first 15 of each have less and less of the say."""
    frame = Frame((100, 100), 100, (100, 100))
    own = Frame((100, 60), 100, (100, 60))
    left, right = (Tile(slice(0, 100), slice(start, start + 60)) for start in (0, 40))
    seen, nothing = torch.ones(1, 100, 100), torch.zeros(1, 100, 100)
    joined = join(nothing, frame, [(left, own, seen), (right, own, nothing)], whole_weight=0.0)[0]
    assert torch.equal(joined, joined[:1].expand(100, -1))
    by_hand = {
        39: 1.0,
        40: 1 / (1 + 0.5 / 15),
        49: (10.5 / 15) / (10.5 / 15 + 9.5 / 15),
        59: 1 - 1 / (1 + 0.5 / 15),
        60: 0.0,
    }
    assert {column: joined[0, column].item() for column in by_hand} == pytest.approx(by_hand)


def test_a_map_of_the_whole_has_most_of_the_say() -> None:
    photo_hw, size = (31, 47), 40
    frame = Frame(photo_hw, size, (24, 40))
    tiles = tiles_of(photo_hw)
    whole = torch.ones(1, size, size)
    joined = join(whole, frame, [(tile, frame, torch.zeros(1, size, size)) for tile in tiles])
    assert torch.allclose(joined[:, :24], torch.full((1, 24, 40), 0.6))
    assert (joined[:, 24:] == 1).all()  # padding stays as it is


def test_classes_that_are_nowhere_are_not_shown() -> None:
    """Of a background and three classes one has a pixel; the background stays though it has none."""
    probabilities = torch.zeros(4, 5, 5)
    probabilities[2, 3, 4] = 1e-6
    whole = ClassMap((0, 3, 7, 8), probabilities, torch.zeros(8), torch.zeros(8), (0,))
    shown = whole.only_shown()
    assert shown.classes == (0, 7)
    assert torch.equal(shown.probabilities, probabilities[[0, 2]])


class TestJoinTiles:
    QUERIES = (Query(("cat",)), Query(("dog",)), Query(("zebra",)))

    def photo(self) -> np.ndarray:
        with Image.open(EXAMPLES / "chelsea.jpg") as photo:
            return np.array(photo.convert("RGB"))

    def test_only_classes_that_the_whole_shows_are_looked_for(
        self, embedded: Backbone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, plain = [], Pipeline.class_map

        def listening(pipeline: Pipeline, image: EncodedImage, queries: Sequence[Query]) -> ClassMap:
            asked.append([query.words[0] for query in queries])
            return plain(pipeline, image, queries)

        photo, pipeline = self.photo(), Pipeline(embedded)
        found = pipeline.class_map(pipeline.see(photo).encoded, self.QUERIES)
        assert found.classes == (0, 1)
        monkeypatch.setattr(Pipeline, "class_map", listening)
        _, closer = replace(pipeline, use_tiles=True).find(photo, self.QUERIES)
        assert asked == [[query.words[0] for query in self.QUERIES], *[["cat"]] * 4]
        assert closer.classes == (0, 1)
        assert torch.allclose(closer.probabilities.sum(dim=0), torch.ones(()), atol=1e-5)
        assert not torch.allclose(closer.probabilities, found.probabilities, atol=0.1)
        assert torch.equal(closer.match_score, found.match_score)

    def test_where_the_whole_shows_nothing_no_part_is_encoded(self, embedded: Backbone) -> None:
        encoded = []

        def encode(rgb: Tensor, number: int) -> EncodedImage:
            encoded.append(number)
            return encode_one(embedded, rgb)

        nothing = np.zeros((31, 47, 3), dtype=np.uint8)
        _, found = Pipeline(embedded, use_tiles=True).find(nothing, self.QUERIES, encode=encode)
        assert found.classes == (0,)
        assert encoded == [0]

    def test_a_backbone_without_a_mask_decoder_has_tiles_too(self, blip: Backbone) -> None:
        photo = np.random.default_rng(0).integers(0, 256, (37, 101, 3), dtype=np.uint8)
        found = Pipeline(blip, use_tiles=True, min_relative_score=0.0).run(photo, self.QUERIES).class_map
        assert found.classes == (0, 1, 2, 3)
        height, width = blip.preprocess(photo)[1].content_hw
        assert torch.allclose(found.probabilities[:, :height, :width].sum(dim=0), torch.ones(()), atol=1e-5)


class TestLongPhotos:
    @pytest.mark.parametrize("photo_hw", [(40, 8000), (8000, 40), (100, 401), (24, 97)], ids=str)
    def test_the_pieces_cover_it_and_overlap(self, photo_hw: tuple[int, int]) -> None:
        assert is_long(photo_hw)
        pieces = pieces_of(photo_hw)
        assert 2 <= len(pieces) <= 16
        along = [piece.rows if photo_hw[0] > photo_hw[1] else piece.columns for piece in pieces]
        assert (along[0].start, along[-1].stop) == (0, max(photo_hw))
        for one, following in pairwise(along):
            assert one.start < following.start <= one.stop
        if len(pieces) < 16:
            assert all(part.stop - part.start <= 2 * min(photo_hw) + 1 for part in along)

    @pytest.mark.parametrize("photo_hw", [(100, 400), (400, 100), (31, 47), (23, 5000), (1, 5)], ids=str)
    def test_others_are_seen_whole(self, photo_hw: tuple[int, int]) -> None:
        assert not is_long(photo_hw)

    def test_each_piece_is_encoded_and_read_once(self, embedded: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        """What one piece shows is looked for in all of them without another pass of the prompts."""
        done: list[str] = []
        for name in ("encode_image", "attend"):
            monkeypatch.setattr(embedded, name, _counted(getattr(embedded, name), done, name))
        photo = np.random.default_rng(0).integers(0, 256, (31, 173, 3), dtype=np.uint8)
        pipeline = Pipeline(embedded, min_presence=0.0, min_relative_score=0.0)
        found = pipeline.run(photo, [Query(("cat",)), Query(("dog",))])
        count = len(pieces_of((31, 173)))
        assert found.class_map.classes == (0, 1, 2)
        assert (done.count("encode_image"), done.count("attend")) == (count, count)

    def test_a_category_is_as_present_as_in_its_best_piece(self, embedded: Backbone) -> None:
        photo = np.random.default_rng(0).integers(0, 256, (31, 173, 3), dtype=np.uint8)
        pipeline, queries = Pipeline(embedded), [Query(("cat",)), Query(("dog",))]
        pieces = [pipeline.see(piece.of(photo)) for piece in pieces_of((31, 173))]
        readings = [pipeline.read(piece.encoded, queries) for piece in pieces]
        found = pipeline.run(photo, queries).class_map
        for number in range(2):
            assert found.presence[number] == max(reading.presence[number] for reading in readings)
            assert found.match_score[number] == max(reading.match_score[number] for reading in readings)

    @pytest.mark.parametrize("tall", [False, True])
    def test_a_cat_in_a_long_photo_is_found_where_it_is(self, embedded: Backbone, tall: bool) -> None:
        """A photo of a cat with grey on both sides, nine times as long as high."""
        with Image.open(EXAMPLES / "chelsea.jpg") as file, Image.open(EXAMPLES / "chelsea_mask.png") as drawn:
            cat, marked = np.array(file.convert("RGB")), np.array(drawn.convert("L")) > 0
        height, width = marked.shape
        photo = np.full((height, 9 * height, 3), 128, np.uint8)
        truth = np.zeros(photo.shape[:2], bool)
        start = 4 * height
        photo[:, start : start + width], truth[:, start : start + width] = cat, marked
        if tall:
            photo, truth = np.ascontiguousarray(np.rot90(photo)), np.rot90(truth)
            # Things lie on their side in a photo that was turned; only where they are is asked here.
        pipeline = Pipeline(embedded, min_presence=0.0)
        found = pipeline.run(photo, [Query(("cat",)), Query(("airplane",))])
        labels, _ = found.labels()
        overlap = ((labels == 1) & truth).sum() / ((labels == 1) | truth).sum()
        assert overlap > (0.3 if tall else 0.7)
        assert found.presence[0] > found.presence[1]


def _counted(call: Callable[..., Any], done: list[str], name: str) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        done.append(name)
        return call(*args, **kwargs)

    return counted
