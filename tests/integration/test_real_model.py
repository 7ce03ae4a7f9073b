"""The embedded model on real photos, from end to end."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

EXAMPLES = Path(__file__).parents[2] / "examples"


def photo(name: str) -> bytes:
    return (EXAMPLES / f"{name}.jpg").read_bytes()


def mask(name: str) -> bytes:
    return (EXAMPLES / f"{name}_mask.png").read_bytes()


def iou(found: dict, name: str) -> float:
    wanted = np.asarray(Image.open(io.BytesIO(mask(name))), dtype=bool)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # pycocotools' own, under numpy 2
        got = coco.decode(found["segmentation"]).astype(bool)
    return float((got & wanted).sum() / (got | wanted).sum())


def weights_of(backbone) -> str:
    total = hashlib.sha256()
    for name in sorted(backbone._weights):
        total.update(backbone._weights[name].numpy().tobytes())
    return total.hexdigest()


def test_one_example_each_and_other_photos_are_segmented_into_all(start, embedded) -> None:
    before = weights_of(embedded)
    with start(loaded=[embedded], tune_steps=0) as api:
        by_words = api.segment("cup", "giraffe", photo=photo("coffee")).json()
        job = api.taught("cup", photo=photo("teacup"), files={"mask": mask("teacup")})
        assert job["steps"] == 20
        adapter = api.category("cup")["adapter"]
        assert adapter["example_iou"] >= adapter["zero_shot_example_iou"]
        api.taught("giraffe", photo=photo("giraffes"), files={"mask": mask("giraffes")})

        cup, giraffe = api.segment(photo=photo("coffee")).json()["categories"]
        # The words alone may mark the example's giraffes better than any adapter: then they stay in use.
        scores = api.category("giraffe")["adapter"]
        helped = scores["kept"] != "words"
        assert (cup["name"], cup["adapted"], giraffe["adapted"]) == ("cup", True, helped)
        assert iou(cup, "coffee") > 0.5
        assert giraffe["area"] < 0.05 * 600 * 400
        cup, giraffe = api.segment(photo=photo("giraffe_head")).json()["categories"]
        assert iou(giraffe, "giraffe_head") > 0.5

        exported = api.http.get("/categories/cup/adapter").content
        assert api.http.put("/categories/mug/adapter", content=exported).status_code == 200
        one, other = (
            api.segment(name, photo=photo("coffee"), heatmaps="true").json()["categories"][0] for name in ("cup", "mug")
        )
        assert {**one, "name": ""} == {**other, "name": ""}

        again = api.segment("cup", "giraffe", photo=photo("coffee"), adapters="none").json()
        assert again["categories"] == by_words["categories"]
    assert weights_of(embedded) == before
