"""Segment a photo: the response in every format."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco

from app.backbones.blip import Blip
from app.masks.pictures import probability_to_png

FOUND = {
    "name", "adapted", "adapter_version", "presence", "found", "match_score", "mean_probability", "area", "bbox",
    "segmentation",
}  # fmt: skip
# One background word and no refinement give masks of the random model that are neither empty nor everything.
PLAIN = {"background": ["sky"], "refine": "none"}


@pytest.fixture
def api(shared) -> Iterator:
    """The application, which is taught nothing; tests that teach start their own."""
    with shared.unchanged():
        yield shared


def image_of(raw: bytes) -> Image.Image:
    return Image.open(io.BytesIO(raw))


def mask_of(found: dict) -> np.ndarray:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # pycocotools' own, under numpy 2
        return coco.decode(found["segmentation"]).astype(bool)


class TestAnswer:
    def test_it_has_the_contracts_fields(self, api, tiny) -> None:
        answer = api.segment("cat")
        body = answer.json()
        assert answer.status_code == 200
        assert body.keys() == {"image", "backbone", "layers", "categories", "timings_ms"}
        assert body["image"] == {"width": 47, "height": 31, "sha256": hashlib.sha256(api.photo).hexdigest()}
        assert body["backbone"] == {"name": "tiny", "revision": tiny.revision}
        assert body["layers"] == [0, 3]
        (found,) = body["categories"]
        assert found.keys() == FOUND
        assert 0 <= found["match_score"] <= 1
        assert 0 <= found["presence"] <= 1
        stages = {"decode", "load", "queue", "preprocess", "encode_image", "attend", "refine", "resize", "masks"}
        assert body["timings_ms"].keys() == stages
        assert all(ms >= 0 for ms in body["timings_ms"].values())

    def test_numbers_agree_with_the_mask(self, api) -> None:
        for found in api.segment("cat", "dog", **PLAIN).json()["categories"]:
            mask = mask_of(found)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert mask.shape == (31, 47)
            assert 0 < found["area"] == mask.sum() < mask.size
            assert found["bbox"] == [
                columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1,
            ]  # fmt: skip
            assert 0 < found["mean_probability"] <= 1

    def test_an_empty_mask_is_told_too(self, api) -> None:
        (found,) = api.segment("cat", threshold="1").json()["categories"]
        assert not mask_of(found).any()
        assert (found["area"], found["bbox"], found["mean_probability"]) == (0, [0, 0, 0, 0], 0)

    def test_every_category_asked_for_in_order_and_once(self, start) -> None:
        with start() as api:
            api.taught("dog")
            found = api.segment("猫", "Dog", "bird", "DOG").json()["categories"]
            assert [(one["name"], one["adapted"], one["adapter_version"]) for one in found] == [
                ("猫", False, None),
                ("dog", True, 1),
                ("bird", False, None),
            ]

    def test_without_names_every_category_taught(self, start) -> None:
        with start() as api:
            assert api.segment().json()["categories"] == []
            api.taught("dog")
            api.taught("cat")
            assert [one["name"] for one in api.segment().json()["categories"]] == ["dog", "cat"]

    def test_more_categories_taught_than_may_be_asked_for(self, start) -> None:
        with start(worker=False, max_categories=2) as api:
            for name in ("a", "b", "c"):
                api.teach(name)
            answer = api.segment()
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] == "categories"
            assert "EXEMPLAR_MAX_CATEGORIES" in answer.json()["detail"]
            assert api.segment("a", "b").status_code == 200

    def test_a_category_waiting_for_its_adapter_goes_by_its_words(self, start) -> None:
        with start(worker=False) as api:
            words = api.segment("cat", **PLAIN).json()["categories"]
            api.teach("cat")
            assert api.segment("cat", **PLAIN).json()["categories"] == words

    def test_rotation_is_applied_and_sizes_are_those_after_it(self, api) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        file = io.BytesIO()
        image_of(api.photo).save(file, "PNG", exif=exif)
        body = api.segment("cat", photo=file.getvalue()).json()
        assert (body["image"]["width"], body["image"]["height"]) == (31, 47)
        assert body["categories"][0]["segmentation"]["size"] == [47, 31]

    def test_the_first_frame_of_an_animation_is_used_and_it_is_said(self, api) -> None:
        file = io.BytesIO()
        frames = [image_of(api.photo), image_of(api.other_photo)]
        frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
        still, moving = (api.segment("cat", photo=photo, **PLAIN).json() for photo in (api.photo, file.getvalue()))
        assert "note" not in still["image"]
        assert "first frame" in moving["image"]["note"]
        assert moving["categories"] == still["categories"]


class TestOptions:
    def test_a_category_below_the_least_presence_has_no_mask(self, api) -> None:
        both = api.segment("cat", "dog", **PLAIN).json()["categories"]
        bound = sum(found["presence"] for found in both) / 2
        asked = api.segment("cat", "dog", min_presence=str(bound), **PLAIN).json()["categories"]
        assert [found["presence"] for found in asked] == [found["presence"] for found in both]
        assert sorted(found["area"] > 0 for found in asked) == [False, True]
        assert all((found["area"] > 0) == found["found"] == (found["presence"] >= bound) for found in asked)

    @pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "likely"])
    def test_a_least_presence_out_of_range_is_refused(self, api, value: str) -> None:
        assert api.segment("cat", min_presence=value).status_code == 422

    def test_threshold(self, api) -> None:
        plain = api.segment("cat", "dog", heatmaps="true", **PLAIN).json()["categories"]
        everything = api.segment("cat", "dog", threshold="0", **PLAIN).json()["categories"]
        half = api.segment("cat", "dog", threshold="0.4", **PLAIN).json()["categories"]
        assert [one["area"] for one in everything] == [31 * 47, 31 * 47]
        for one, other in zip(plain, half, strict=True):
            probability = np.asarray(image_of(base64.b64decode(one["heatmap"]))) / 255
            sure = np.abs(probability - 0.4) > 0.01  # heat maps have 256 steps
            assert np.array_equal(mask_of(other)[sure], (probability >= 0.4)[sure])

    def test_masks_of_the_most_probable_class_do_not_overlap(self, api) -> None:
        one, other = api.segment("cat", "dog", **PLAIN).json()["categories"]
        assert not (mask_of(one) & mask_of(other)).any()

    def test_refine(self, api) -> None:
        refined = api.segment("cat", "dog", background=["sky"]).json()
        plain = api.segment("cat", "dog", **PLAIN).json()
        assert "refine" not in plain["timings_ms"]
        assert refined["categories"] != plain["categories"]
        assert api.segment("cat", "dog", background=["sky"], refine="crf").json()["categories"] == refined["categories"]

    def test_adapters_none_is_the_words_alone(self, start) -> None:
        with start(tune_steps=50) as api:
            before = api.segment("cat", heatmaps="true", **PLAIN).json()["categories"]
            api.taught("cat")
            tuned = api.segment("cat", heatmaps="true", **PLAIN).json()["categories"]
            words = api.segment("cat", heatmaps="true", adapters="none", **PLAIN).json()["categories"]
            assert tuned != before
            assert words == before

    def test_background_words(self, api) -> None:
        one = api.segment("cat", background=["sky"], refine="none", heatmaps="true").json()["categories"]
        other = api.segment("cat", background=["sea", "grass"], refine="none", heatmaps="true").json()["categories"]
        assert one != other

    def test_a_background_word_that_is_asked_for_is_a_category(self, api) -> None:
        answer = api.segment("sky", background=["sky"])
        assert answer.status_code == 200
        assert [one["name"] for one in answer.json()["categories"]] == ["sky"]

    def test_heatmaps_are_the_probabilities(self, api) -> None:
        (found,) = api.segment("cat", heatmaps="true").json()["categories"]
        assert found.keys() == FOUND | {"heatmap"}
        heat = image_of(base64.b64decode(found["heatmap"]))
        assert (heat.mode, heat.size) == ("L", (47, 31))

    def test_categories_that_are_nowhere_share_one_black_heat_map(self, api, monkeypatch) -> None:
        """Of forty names on 25 patches at most 25 are somewhere the best; the others are nowhere."""
        written: list[bytes] = []

        def write(probability: np.ndarray) -> bytes:
            written.append(probability_to_png(probability))
            return written[-1]

        monkeypatch.setattr("app.api.answers.probability_to_png", write)
        monkeypatch.setattr("app.services.segmentation.MIN_RELATIVE_SCORE", 1.0)
        found = api.segment(*(f"thing {number}" for number in range(40)), heatmaps="true", **PLAIN).json()["categories"]
        maps = [base64.b64decode(one["heatmap"]) for one in found]
        black = probability_to_png(np.zeros((31, 47), np.float32))
        assert len(found) == 40
        assert maps.count(black) >= 15
        assert written.count(black) == 1
        assert set(maps) == set(written)

    def test_a_backbone_by_name(self, start, tiny) -> None:
        other = Blip(tiny._model, tiny._tokenizer, name="other", input_size=80)
        with start(loaded=(tiny, other)) as api:
            api.taught("cat")
            by_default = api.segment("cat").json()
            by_name = api.segment("cat", backbone="other").json()
            assert by_default["backbone"] == {"name": "tiny", "revision": tiny.revision}
            assert by_name["backbone"] == {"name": "other", "revision": other.revision}
            assert by_default["categories"][0]["adapted"] is True
            assert by_name["categories"][0]["adapted"] is False


class TestForms:
    def test_polygons_can_be_taught_from(self, start) -> None:
        with start() as api:
            as_rle, as_polygons = (
                api.segment("cat", "dog", output=output, **PLAIN).json()["categories"] for output in ("rle", "polygons")
            )
            for rle, polygons in zip(as_rle, as_polygons, strict=True):
                rings = polygons["segmentation"]
                assert all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in rings)
                answer = api.teach("copy", segmentation=json.dumps(rings), mode="replace")
                example = api.http.get("/categories/copy/examples").json()[0]
                assert answer.status_code == 202
                assert example["area"] == rle["area"]

    def test_a_label_map(self, api) -> None:
        names = ["cat", "猫", "fire truck"]
        found = api.segment(*names, **PLAIN).json()["categories"]
        answer = api.segment(*names, headers={"Accept": "image/png"}, **PLAIN)
        image = image_of(answer.content)
        labels = np.asarray(image)
        assert answer.headers["content-type"] == "image/png"
        assert json.loads(answer.headers["x-categories"]) == names
        assert json.loads(image.text["categories"]) == names
        assert image.mode == "P"
        assert image.getpalette()[:3] == [0, 0, 0]
        for number, one in enumerate(found, 1):
            assert np.array_equal(labels == number, mask_of(one))

    def test_its_names_are_documented(self, api) -> None:
        answer = api.http.get("/openapi.json").json()["paths"]["/segment"]["post"]["responses"]["200"]
        assert "`categories`" in answer["headers"]["X-Categories"]["description"]

    def test_names_that_are_more_than_a_header_holds_are_in_the_png_alone(self, api) -> None:
        names = [f"{number:03} {'x' * 60}" for number in range(130)]
        for asked, in_header in ((names[:100], True), (names, False)):  # 6,800 and 8,840 characters
            answer = api.segment(*asked, headers={"Accept": "image/png"}, **PLAIN)
            assert ("x-categories" in answer.headers) is in_header
            assert json.loads(image_of(answer.content).text["categories"]) == asked

    def test_a_label_map_under_a_threshold_has_the_most_probable_class(self, api) -> None:
        options = {"threshold": "0.3", **PLAIN}
        found = api.segment("cat", "dog", **options).json()["categories"]
        labels = np.asarray(image_of(api.segment("cat", "dog", headers={"Accept": "image/png"}, **options).content))
        assert np.array_equal(labels > 0, mask_of(found[0]) | mask_of(found[1]))
        assert (mask_of(found[0])[labels == 1]).all()
        assert (mask_of(found[1])[labels == 2]).all()

    def test_a_label_map_of_nothing(self, api) -> None:
        answer = api.segment(headers={"Accept": "image/png"})
        assert answer.headers["x-categories"] == "[]"
        assert not np.asarray(image_of(answer.content)).any()

    def test_an_overlay(self, api) -> None:
        answer = api.segment("cat", "dog", query="?overlay=true", **PLAIN)
        painted = image_of(answer.content)
        assert answer.headers["content-type"] == "image/png"
        assert painted.size == (47, 31)
        assert not np.array_equal(np.asarray(painted.convert("RGB")), np.asarray(image_of(api.photo)))

    @pytest.mark.parametrize(
        ("accept", "is_png"),
        [
            ("*/*", False),
            ("application/json", False),
            ("image/png", True),
            ("image/*", True),
            ("text/html, image/png;q=0.9, */*;q=0.8", True),
            ("application/json, image/png;q=0.5", False),
            ("image/png;Q=0.1,application/json", False),
            ("image/png;q=0", False),
            ("image/png;q=x", False),
        ],
    )
    def test_the_accept_header(self, api, accept, is_png) -> None:
        answer = api.segment("cat", headers={"Accept": accept})
        assert (answer.headers["content-type"] == "image/png") is is_png

    def test_more_taught_categories_than_a_label_map_holds_are_refused_unseen(self, start, monkeypatch) -> None:
        monkeypatch.setattr("app.api.answers.MAX_LABELS", 2)
        with start(worker=False) as api:
            for name in ("cat", "dog", "cow"):
                api.teach(name)
            encoded = metric(api, "exemplar_image_cache_misses_total")
            answer = api.http.post("/segment", files={"image": api.photo}, headers={"Accept": "image/png"})
            assert answer.status_code == 422
            assert "at most 2 categories, got 3" in answer.json()["detail"]
            assert metric(api, "exemplar_image_cache_misses_total") == encoded

    def test_more_categories_than_a_label_map_holds(self, start) -> None:
        with start() as api:
            answer = api.segment(*(f"c{n}" for n in range(256)), headers={"Accept": "image/png"}, refine="none")
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] == "categories"


class TestCache:
    def test_an_adapter_is_read_from_the_store_once(self, start) -> None:
        with start() as api:
            api.taught("cat")
            before = metric(api, "exemplar_adapter_cache_misses_total")
            for _ in range(3):
                api.segment("cat")
            assert metric(api, "exemplar_adapter_cache_misses_total") - before == 1
            assert metric(api, "exemplar_adapter_cache_hits_total") == 2
            assert metric(api, "exemplar_adapters_loaded") == 1

    def test_without_memory_for_it_nothing_is_kept(self, start) -> None:
        with start(adapter_cache_bytes=0) as api:
            api.taught("cat")
            for _ in range(2):
                assert api.segment("cat").json()["categories"][0]["adapted"]
            assert metric(api, "exemplar_adapter_cache_misses_total") == 2
            assert metric(api, "exemplar_adapters_loaded") == 0
            assert metric(api, "exemplar_adapter_cache_bytes") == 0

    def test_a_photo_asked_again_is_not_encoded_again(self, start) -> None:
        with start() as api:
            first, again = (api.segment("cat", "dog").json()["categories"] for _ in range(2))
            assert first == again
            assert metric(api, "exemplar_image_cache_misses_total") == 1
            assert metric(api, "exemplar_image_cache_hits_total") == 1
            assert metric(api, "exemplar_image_cache_bytes") > 0

    def test_without_memory_for_photos_each_is_encoded(self, start) -> None:
        with start(image_cache_bytes=0) as api:
            for _ in range(2):
                api.segment("cat")
            assert metric(api, "exemplar_image_cache_misses_total") == 2
            assert metric(api, "exemplar_image_cache_bytes") == 0


def metric(api, name: str) -> float:
    lines = api.http.get("/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))


class TestTiles:
    """EXEMPLAR_TILES: each photo is looked at in parts too."""

    def test_the_parts_are_encoded_once_and_change_the_masks(self, start) -> None:
        with start(tiles=True) as api, start() as plain:
            api.taught("cat")
            first, second = (api.segment("cat", "dog", refine="none", heatmaps="true").json() for _ in range(2))
            metrics = api.http.app_state["service"].metrics.registry
            assert metrics.get_sample_value("exemplar_image_cache_hits_total") == 5
            assert metrics.get_sample_value("exemplar_image_cache_misses_total") == 5
            assert first["categories"] == second["categories"]
            assert "tiles" in first["timings_ms"]
            whole = plain.segment("cat", "dog", refine="none", heatmaps="true").json()
            assert "tiles" not in whole["timings_ms"]
            assert whole["categories"] != first["categories"]
