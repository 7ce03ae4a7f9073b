"""Segment several photos in one request: one line of JSON for each."""

from __future__ import annotations

import json
import threading
import time

import httpx2
import pytest
from redis.exceptions import ConnectionError

from app.services.segmentation import Segmentation

PLAIN = {"background": ["sky"], "refine": "none"}


def batch(api, photos: list[bytes], *categories: str, **fields) -> httpx2.Response:
    files = [("images", (f"{number}.png", photo)) for number, photo in enumerate(photos)]
    return api.http.post("/segment/batch", files=files, data={"categories": categories, **fields})


def lines(answer: httpx2.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return sorted((json.loads(line) for line in answer.text.splitlines()), key=lambda line: line["index"])


def without_times(answer: dict) -> dict:
    return {key: value for key, value in answer.items() if key not in ("timings_ms", "index", "filename")}


class TestAnswer:
    def test_each_photo_is_answered_as_if_alone(self, api) -> None:
        api.taught("dog")
        options = PLAIN | {"output": "polygons", "heatmaps": "true", "threshold": "0.3"}
        found = lines(batch(api, [api.photo, api.other_photo, api.photo], "cat", "dog", **options))
        assert [(one["index"], one["filename"]) for one in found] == [(0, "0.png"), (1, "1.png"), (2, "2.png")]
        for line, photo in zip(found, (api.photo, api.other_photo, api.photo), strict=True):
            assert without_times(line) == without_times(api.segment("cat", "dog", photo=photo, **options).json())
            assert line["timings_ms"].keys() >= {"decode", "queue", "encode_image"}
        assert [one["adapted"] for one in found[0]["categories"]] == [False, True]

    def test_a_photo_that_cannot_be_read_does_not_stop_the_others(self, api) -> None:
        first, second, third = lines(batch(api, [api.photo, b"no photo", api.other_photo], "cat"))
        assert first["categories"]
        assert third["categories"]
        assert second["problem"]["status"] == 422
        assert second["problem"]["errors"][0]["field"] == "images"
        assert "not an image" in second["problem"]["detail"]
        assert "categories" not in second

    def test_without_names_every_category_taught(self, api) -> None:
        api.taught("dog")
        (found,) = lines(batch(api, [api.photo]))
        assert [one["name"] for one in found["categories"]] == ["dog"]

    def test_a_store_that_fails_for_one_photo_is_told_in_its_line(self, api, monkeypatch) -> None:
        calls, segment = [], Segmentation.segment

        async def fails_once(self, photo, request, found):
            calls.append(photo)
            if len(calls) == 1:
                raise ConnectionError("gone")
            return await segment(self, photo, request, found)

        monkeypatch.setattr(Segmentation, "segment", fails_once)
        found = lines(batch(api, [api.photo, api.photo], "cat"))
        assert sorted("problem" in line for line in found) == [False, True]  # the two run beside each other
        (failed,) = (line["problem"] for line in found if "problem" in line)
        assert failed["status"] == 503


class TestRefusals:
    def test_too_many_photos(self, start) -> None:
        with start(worker=False, max_batch_images=2) as api:
            answer = batch(api, [api.photo] * 3, "cat")
            assert answer.status_code == 422
            assert "EXEMPLAR_MAX_BATCH_IMAGES" in answer.json()["detail"]
            assert answer.json()["errors"][0]["field"] == "images"
            assert len(lines(batch(api, [api.photo] * 2, "cat"))) == 2

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"threshold": "2"}, "threshold"),
            ({"backbone": "other"}, "backbone"),
            ({"background": ["a/b"]}, "background"),
        ],
    )
    def test_what_holds_for_all_photos_is_refused_before_the_first(self, api, fields: dict, field: str) -> None:
        answer = batch(api, [api.photo], "cat", **fields)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == field

    def test_no_photo(self, api) -> None:
        answer = api.http.post("/segment/batch", data={"categories": "cat"})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "images"

    def test_a_photo_too_large_is_told_in_its_line(self, start) -> None:
        with start(worker=False, max_upload_bytes=8000) as api:
            first, second = lines(batch(api, [api.photo, b"x" * 9000], "cat"))
            assert first["categories"]
            assert second["problem"]["status"] == 413


class TestBesideOthers:
    def test_a_full_queue_is_waited_for_once_the_answer_has_begun(self, start, tiny) -> None:
        with start(worker=False, queue_limit=1) as api:
            assert [one["index"] for one in lines(batch(api, [api.photo] * 5, "cat"))] == [0, 1, 2, 3, 4]

    def test_a_full_queue_refuses_a_new_batch(self, start, tiny, monkeypatch) -> None:
        at_work, go_on, encode_image = threading.Event(), threading.Event(), tiny.encode_image

        def held(rgb):
            at_work.set()
            go_on.wait(10)
            return encode_image(rgb)

        with start(worker=False, queue_limit=1) as api:
            monkeypatch.setattr(tiny, "encode_image", held)
            waiting = [threading.Thread(target=api.segment, args=("cat",)) for _ in range(2)]
            waiting[0].start()
            assert at_work.wait(10)
            waiting[1].start()
            deadline = time.monotonic() + 10
            while api.http.get("/readyz").status_code == 200:
                assert time.monotonic() < deadline
            answer = batch(api, [api.photo], "cat")
            go_on.set()
            for thread in waiting:
                thread.join()
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
