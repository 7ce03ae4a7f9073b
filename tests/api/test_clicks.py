"""`POST /segment/clicks`: the object that was clicked."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from app.images.points import MAX_POINTS
from app.masks.rle import rle_to_mask

EXAMPLES = Path(__file__).parents[2] / "examples"


def click(api, points: object, *, photo: bytes | None = None, **fields: str) -> httpx2.Response:
    text = points if isinstance(points, str) else json.dumps(points)
    return api.http.post("/segment/clicks", files={"image": photo or api.photo}, data={"points": text, **fields})


def test_the_answer(api, tiny) -> None:
    answer = click(api, [[20, 12, 1], [2, 2, 0]])
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["image"] | {"sha256": ""} == {"width": 47, "height": 31, "sha256": ""}
    assert body["backbone"] == {"name": "tiny", "revision": tiny.revision}
    assert body.keys() == {
        "image", "backbone", "mean_probability", "area", "bbox", "segmentation", "timings_ms",
    }  # fmt: skip
    mask = rle_to_mask(body["segmentation"])
    assert mask.shape == (31, 47)
    assert body["area"] == mask.sum()
    assert 0 <= body["mean_probability"] <= 1
    assert body["timings_ms"].keys() == {"decode", "load", "queue", "preprocess", "encode_image", "clicks", "masks"}


def test_forms_of_masks(api) -> None:
    rle, polygons, png = (
        click(api, [[20, 12]], output=form).json()["segmentation"] for form in ("rle", "polygons", "png")
    )
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        assert (np.asarray(picture) == rle_to_mask(rle)).all()
    assert bool(polygons) == rle_to_mask(rle).any()


def test_the_next_click_does_not_encode_the_photo_again(api) -> None:
    def hits() -> float:
        lines = api.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("exemplar_image_cache_hits"))

    click(api, [[20, 12]])
    before = hits()
    click(api, [[20, 12], [5, 5, 0]])
    assert hits() == before + 1


@pytest.mark.parametrize("points", ["", "x", "[]", "[[1, 2, 0]]", "[[99, 2]]", [[1, 1]] * (MAX_POINTS + 1)])
def test_points_that_can_not_be_used(api, points: object) -> None:
    answer = click(api, points)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in answer.json()["errors"]] == ["points"]


def test_more_text_than_points_have_is_not_read(api) -> None:
    answer = click(api, "[" + " " * 20_000 + "[20, 12, 1]]")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (413, "points")
    longest = json.dumps([[20.123456789012345, 12.123456789012345, 1]] * MAX_POINTS, indent=4)
    assert click(api, longest).status_code == 200


def test_other_fields_that_can_not_be_used(api) -> None:
    for fields, field in (({"output": "xml"}, "output"), ({"refine": "x"}, "refine"), ({"backbone": "x"}, "backbone")):
        answer = click(api, [[20, 12]], **fields)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert click(api, [[20, 12]], photo=b"no photo").status_code == 422


def test_a_full_queue_is_told(start) -> None:
    with start(queue_limit=1, tune_steps=1) as api, ThreadPoolExecutor(16) as people:
        answers = list(people.map(lambda _: click(api, [[20, 12]]), range(48)))
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"]


def test_a_dog_is_found_by_one_click(start, embedded) -> None:
    with start(loaded=[embedded]) as api, Image.open(EXAMPLES / "dog_mask.png") as marked:
        true = np.asarray(marked.convert("L")) > 0
        photo = (EXAMPLES / "dog.jpg").read_bytes()
        found = rle_to_mask(click(api, [[419.5, 220.5]], photo=photo).json()["segmentation"])
        assert (found & true).sum() / (found | true).sum() > 0.75
        rows, columns = np.nonzero(found)
        highest = int(rows.argmin())
        beside = [columns[highest] + 0.5, rows[highest] + 0.5, 0]
        less = rle_to_mask(click(api, [[419.5, 220.5], beside], photo=photo).json()["segmentation"])
        assert not less[rows[highest], columns[highest]]
