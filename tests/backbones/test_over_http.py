"""Every family behind the service: teach a category, segment with it, read the description of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.method.backbone import Backbone

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_category_is_taught_and_segmented(backbone: Backbone, start, request: pytest.FixtureRequest) -> None:
    if backbone.family in ("embedded", "blip"):
        pytest.skip("the integration tests run these from end to end")
    with start(loaded=[backbone], tune_steps=2, background="sky,wall") as api:
        (shown,) = api.http.get("/backbones").json()
        assert (shown["family"], shown["image_text_score"]) == (backbone.family, backbone.image_text_score)
        assert shown["layers"] == backbone.layer_count
        photo = (EXAMPLES / "teacup.jpg").read_bytes()
        job = api.taught("cup", photo=photo, files={"mask": (EXAMPLES / "teacup_mask.png").read_bytes()})
        assert (job["status"], job["steps"]) == ("succeeded", 2)
        adapter = api.category("cup")["adapter"]
        assert adapter["backbone"] == backbone.name
        assert set(adapter["layers"]) == set(backbone.default_layers)
        answer = api.segment("cup", "saucer", photo=photo).json()
        cup, saucer = answer["categories"]
        helped = adapter["kept"] != "words"
        assert (cup["adapted"], saucer["adapted"]) == (helped, False)
        assert {cup["segmentation"]["size"][0], saucer["segmentation"]["size"][0]} == {answer["image"]["height"]}
        exported = api.http.get("/categories/cup/adapter").content
        assert api.http.put("/categories/mug/adapter", content=exported).status_code == 200
