"""Output forms: the table of the JSON forms in which an answer carries a mask.

`POST /segment` and `/segment/batch` take their `output`, its enum in the OpenAPI document and the schema of
`segmentation` from `OUTPUT_FORMS`. To add a form, add an entry here and a line to `READERS` in
`tests/api/test_output_forms.py`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import Mask
from .pictures import mask_to_png
from .polygons import mask_to_polygons
from .rle import mask_to_rle


@dataclass(frozen=True)
class OutputForm:
    """One form of a mask in JSON.

    Attributes:
        write: Mask `[height, width]` to JSON value.
        schema: JSON Schema of that value, for the OpenAPI document.
    """

    write: Callable[[Mask], Any]
    schema: Mapping[str, Any]


DEFAULT_OUTPUT_FORM = "rle"

OUTPUT_FORMS: Mapping[str, OutputForm] = {
    "rle": OutputForm(
        write=mask_to_rle,
        schema={
            "type": "object",
            "title": "rle",
            "description": "COCO run-length encoding, compressed; `size` is [height, width].",
            "properties": {
                "size": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                "counts": {"type": "string"},
            },
            "required": ["size", "counts"],
        },
    ),
    "polygons": OutputForm(
        write=mask_to_polygons,
        schema={
            "type": "array",
            "title": "polygons",
            "description": "COCO polygons [x, y, x, y, …] in pixels, one per connected part; holes are filled.",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 6},
        },
    ),
    "png": OutputForm(
        write=lambda mask: b64encode(mask_to_png(mask)).decode("ascii"),
        schema={
            "type": "string",
            "title": "png",
            "description": "1-bit PNG of the photo's size, base64; white = the category.",
            "contentEncoding": "base64",
            "contentMediaType": "image/png",
        },
    ),
}
