"""Response bodies of `/segment` and `/segment/batch`: JSON, label map, overlay and NDJSON lines."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import cache
from typing import Any

import numpy as np
from fastapi import Response

from app.api.schemas import BackboneRef, ClickedOut, FoundOut, ImageOut, SegmentOut
from app.errors import InvalidInputError
from app.images.photo import Photo
from app.masks.boxes import bbox_of
from app.masks.formats import OUTPUT_FORMS
from app.masks.pictures import MAX_LABELS, label_map_to_png, overlay, palette, probability_to_png, rgb_to_png
from app.services.clicking import Clicked
from app.services.segmentation import Segmented

LINES_MEDIA_TYPE = "application/x-ndjson"

# Only in answers given while the store is away.
AGE_HEADER = "X-Categories-Age"
_AGE_HEADER = {
    AGE_HEADER: {
        "schema": {"type": "integer", "minimum": 0},
        "description": "Present only if the store did not answer and the categories came from memory: seconds since "
        "the oldest of them was read.",
    }
}

# OpenAPI description of status 200 of the two routes.
SEGMENT_ANSWER = {
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        "X-Categories": {
            "schema": {"type": "string"},
            "description": "Of a label map: its categories as a JSON list; the i-th one has the pixel value i. Omitted "
            "if longer than 8 KiB; the PNG's iTXt chunk `categories` always has the list.",
        },
        **_AGE_HEADER,
    },
    "description": "JSON; a label map with `Accept: image/png`; the photo with masks and names with `overlay`.",
}
BATCH_ANSWER = {
    "content": {LINES_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/BatchLine"}}},
    "headers": _AGE_HEADER,
    "description": "One line per photo.",
}

# Some clients and proxies refuse responses with headers above 8 KiB.
_MAX_HEADER_CHARACTERS = 8 * 1024


def segment_json(photo: Photo, segmented: Segmented, *, output: str, heatmaps: bool) -> dict[str, Any]:
    """Build the JSON of a segmentation, as `SegmentOut`.

    Args:
        photo: The photo; its size, hash and note are reported.
        segmented: Its segmentation.
        output: Format of the masks, a key of `OUTPUT_FORMS`.
        heatmaps: True to add each category's probability as a base64 PNG, 8-bit grey.

    Returns:
        The fields; `note` and `heatmap` only if they have a value.
    """
    height, width = photo.rgb.shape[:2]
    write = OUTPUT_FORMS[output].write
    # Of a thousand categories most are absent from the photo. Encoding an empty mask for each takes seconds, encoding a
    # black heat map for each minutes; so each is encoded once.
    empty = cache(lambda: write(np.zeros((height, width), bool)))
    black = cache(lambda: _heatmap(np.zeros((height, width), np.float32)))
    categories = []
    for found in segmented.categories:
        heatmap = None
        if heatmaps:
            heatmap = _heatmap(found.probability) if found.has_probability else black()
        categories.append(
            FoundOut(
                name=found.name,
                adapted=found.adapted,
                adapter_version=found.adapter_version,
                presence=round(found.presence, 4),
                found=found.area > 0,
                match_score=round(found.match_score, 4),
                mean_probability=round(found.mean_probability, 4),
                area=found.area,
                bbox=found.bbox,
                segmentation=write(found.mask) if found.area else empty(),
                heatmap=heatmap,
                adapter_problem=found.adapter_problem,
            )
        )
    answer = SegmentOut(
        image=ImageOut(width=width, height=height, sha256=photo.sha256, note=photo.note),
        backbone=BackboneRef(name=segmented.backbone.name, revision=segmented.backbone.revision),
        layers=list(segmented.photo.prediction.layers),
        categories=categories,
        timings_ms=segmented.timings_ms,
    )
    return answer.model_dump(exclude_defaults=True)


def clicked_json(photo: Photo, clicked: Clicked, *, output: str) -> dict[str, Any]:
    """Build the JSON of a proposed object, as `ClickedOut`."""
    height, width = photo.rgb.shape[:2]
    answer = ClickedOut(
        image=ImageOut(width=width, height=height, sha256=photo.sha256, note=photo.note),
        backbone=BackboneRef(name=clicked.backbone.name, revision=clicked.backbone.revision),
        mean_probability=round(clicked.mean_probability, 4),
        area=int(clicked.mask.sum()),
        bbox=bbox_of(clicked.mask),
        segmentation=OUTPUT_FORMS[output].write(clicked.mask),
        timings_ms=clicked.timings_ms,
    )
    return answer.model_dump(exclude_defaults=True)


def batch_line(index: int, filename: str | None, body: dict[str, Any]) -> str:
    """Write one line of a batch response, as `BatchLine`.

    Args:
        index: Position of the photo in the request, from 0.
        filename: File name of the photo in the form.
        body: Its `segment_json`, or `{"problem": …}`.

    Returns:
        JSON with a line feed at the end.
    """
    return json.dumps({"index": index, "filename": filename, **body}) + "\n"


def check_label_count(count: int) -> None:
    """Refuse more categories than a label map can hold.

    Raises:
        InvalidInputError: `count` is above `MAX_LABELS`.
    """
    if count > MAX_LABELS:
        raise InvalidInputError(
            f"A label map holds at most {MAX_LABELS} categories, got {count}: request fewer, or request JSON.",
            field="categories",
        )


def age_headers(memory_age_s: float | None) -> dict[str, str]:
    """Headers that tell the age of categories from memory; none if the store answered."""
    return {} if memory_age_s is None else {AGE_HEADER: str(int(memory_age_s))}


def label_map(segmented: Segmented) -> Response:
    """Build a palette PNG of the photo's size: 0 = background, i = the i-th category, of at most `MAX_LABELS`."""
    names = [found.name for found in segmented.categories]
    png = label_map_to_png(segmented.photo.labels.astype(np.uint8), names, palette(len(names)))
    header = json.dumps(names)  # escapes every non-ASCII character: headers carry Latin-1 only
    headers = {"X-Categories": header} if len(header) <= _MAX_HEADER_CHARACTERS else {}
    return Response(png, media_type="image/png", headers=headers)


def overlay_picture(photo: Photo, segmented: Segmented) -> Response:
    """Build a PNG of the photo with masks and names painted over it."""
    masks = (found.mask for found in segmented.categories)
    painted = overlay(photo.rgb, masks, [found.name for found in segmented.categories])
    return Response(rgb_to_png(painted), media_type="image/png")


def prefers_png(accept: str) -> bool:
    """True if an Accept header allows PNG and prefers it to JSON or gives both the same quality."""
    best = {"png": 0.0, "json": 0.0}
    for part in accept.split(","):
        media, *parameters = [piece.strip() for piece in part.split(";")]
        quality = next((_quality(p[2:]) for p in parameters if p[:2].lower() == "q="), 1.0)
        for kind, names in (("png", ("image/png", "image/*")), ("json", ("application/json", "application/*", "*/*"))):
            if media.lower() in names:
                best[kind] = max(best[kind], quality)
    return best["png"] > 0 and best["png"] >= best["json"]


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _heatmap(probability: np.ndarray) -> str:
    return b64encode(probability_to_png(probability)).decode("ascii")
