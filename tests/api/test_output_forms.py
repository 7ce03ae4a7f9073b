"""Every output format gives the mask that the label map shows, as described by the OpenAPI document."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from app.masks.formats import DEFAULT_OUTPUT_FORM, OUTPUT_FORMS
from app.masks.polygons import polygons_to_mask
from app.masks.rle import rle_to_mask

# A reader for each form: JSON value and (height, width) to mask.
READERS: dict[str, Callable[[Any, tuple[int, int]], np.ndarray]] = {
    "rle": lambda value, _: rle_to_mask(value),
    "polygons": lambda value, hw: polygons_to_mask(value, hw) if value else np.zeros(hw, dtype=bool),
    "png": lambda value, _: np.asarray(Image.open(io.BytesIO(base64.b64decode(value))), dtype=bool),
}
# One background word and no refinement give masks of the random model that are neither empty nor everything.
PLAIN = {"background": ["sky"], "refine": "none"}


@pytest.mark.parametrize("form", OUTPUT_FORMS)
@pytest.mark.parametrize("options", [{}, {"threshold": "1"}], ids=["found", "empty"])
def test_a_form_holds_the_mask_of_the_label_map(api, form: str, options: dict[str, str]) -> None:
    options = options | PLAIN
    png = api.segment("cat", "dog", headers={"Accept": "image/png"}, **options).content
    labels = np.asarray(Image.open(io.BytesIO(png)))
    for number, found in enumerate(api.segment("cat", "dog", output=form, **options).json()["categories"], 1):
        jsonschema.validate(found["segmentation"], dict(OUTPUT_FORMS[form].schema))
        mask = READERS[form](found["segmentation"], api.hw)
        assert np.array_equal(mask, labels == number)
        assert mask.any() == ("threshold" not in options)


def test_the_document_lists_the_forms(api) -> None:
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    for body in ("Body_segment", "Body_segment_batch"):
        output = schemas[body]["properties"]["output"]
        assert (output["enum"], output["default"]) == (list(OUTPUT_FORMS), DEFAULT_OUTPUT_FORM)
    described = schemas["FoundOut"]["properties"]["segmentation"]["anyOf"]
    assert described == [form.schema for form in OUTPUT_FORMS.values()]


def test_another_form_is_refused(api) -> None:
    answer = api.segment("cat", output="gif")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "output"
