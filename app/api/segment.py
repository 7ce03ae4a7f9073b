"""Segment a photo."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Header, Query, Response, UploadFile
from fastapi.responses import JSONResponse
from PIL import Image

from app.api.context import Live, Maybe, read_upload
from app.api.problems import documented
from app.api.schemas import BackboneRef, FoundOut, ImageOut, Rle, SegmentOut
from app.errors import InvalidInputError
from app.method.masks import (
    MAX_LABELS,
    label_map_to_png,
    mask_to_png,
    mask_to_polygons,
    mask_to_rle,
    overlay,
    palette,
    probability_to_png,
)
from app.services.categories import clean_names
from app.services.decode import Photo, decode_photo
from app.services.segmentation import Clock, Found, Request, Segmented

router = APIRouter(tags=["segment"])

Output = Literal["rle", "polygons", "png"]

_PNG = {"image/png": {"schema": {"type": "string", "format": "binary"}}}


@router.post(
    "/segment",
    response_model=SegmentOut,
    responses=documented(400, 413, 415, 422)
    | {200: {"content": _PNG, "description": "JSON; with `Accept: image/png` a label map, with `overlay` a picture."}},
)
async def segment(
    live: Live,
    image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, BMP or TIFF.")],
    categories: Annotated[Maybe[list[str]], Form(description="Names; none = every category taught.")] = None,
    background: Annotated[Maybe[list[str]], Form(description="Words for none of them.")] = None,
    output: Annotated[Output, Form(description="Form of the masks.")] = "rle",
    threshold: Annotated[
        Maybe[float],
        Form(ge=0, le=1, allow_inf_nan=False, description="Least probability; none = the most probable class wins."),
    ] = None,
    refine: Annotated[Literal["crf", "none"], Form(description="Whether edges follow the photo's.")] = "crf",
    heatmaps: Annotated[bool, Form(description="Add each category's probability as a grey PNG.")] = False,
    adapters: Annotated[Literal["auto", "none"], Form(description="none = words alone, for comparison.")] = "auto",
    backbone: Annotated[Maybe[str], Form(description="A loaded backbone's name.")] = None,
    with_overlay: Annotated[bool, Query(alias="overlay", description="The photo with masks and names.")] = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
) -> Response:
    """Segment a photo into categories, taught or merely named. Masks are of the photo's size after EXIF rotation."""
    limit = live.settings.max_categories
    names = clean_names(categories or [], field="categories", limit=limit)
    words = clean_names(background or [], field="background", limit=limit)
    raw = await read_upload(image, field="image", service=live)
    clock = Clock()
    with clock.stage("decode"):
        photo = await asyncio.to_thread(decode_photo, raw, max_pixels=live.settings.max_image_pixels)
    segmented = await live.segmentation.segment(
        Request(
            photo=photo,
            categories=names,
            background=words,
            threshold=threshold,
            refine=refine == "crf",
            adapters=adapters == "auto",
            backbone=backbone,
        )
    )
    segmented.timings_ms.update(clock.rounded())
    with clock.stage("answer"):
        if with_overlay:
            answer = Response(await asyncio.to_thread(_overlay_png, photo, segmented), media_type="image/png")
        elif _wants_png(accept):
            answer = await asyncio.to_thread(_label_map, segmented)
        else:
            answer = await asyncio.to_thread(_json, photo, segmented, output, heatmaps)
    clock.record(live.metrics, segmented.backbone.name)
    return answer


def _json(photo: Photo, segmented: Segmented, output: Output, heatmaps: bool) -> JSONResponse:
    height, width = photo.rgb.shape[:2]
    # Most of a thousand categories are not in a photo; writing the same empty mask a thousand times takes seconds.
    nothing = _segmentation(np.zeros((height, width), bool), output)
    answer = SegmentOut(
        image=ImageOut(width=width, height=height, sha256=photo.sha256, note=photo.note),
        backbone=BackboneRef(name=segmented.backbone.name, revision=segmented.backbone.revision),
        layers=list(segmented.layers),
        categories=[
            _found(found, _segmentation(found.mask, output) if found.area else nothing, heatmaps)
            for found in segmented.found
        ],
        timings_ms=segmented.timings_ms,
    )
    # Fields that are only there when asked for, or when there is something to say.
    return JSONResponse(answer.model_dump(exclude_defaults=True) | {"timings_ms": segmented.timings_ms})


def _found(found: Found, segmentation: Rle | list[list[float]] | str, heatmaps: bool) -> FoundOut:
    return FoundOut(
        name=found.name,
        adapted=found.adapted,
        adapter_version=found.adapter_version,
        match_score=round(found.match_score, 4),
        mean_probability=round(found.mean_probability, 4),
        area=found.area,
        bbox=found.bbox,
        segmentation=segmentation,
        heatmap=_base64(probability_to_png(found.probability)) if heatmaps else None,
    )


def _segmentation(mask: np.ndarray, output: Output) -> Rle | list[list[float]] | str:
    if output == "rle":
        return Rle(**mask_to_rle(mask))
    if output == "polygons":
        return mask_to_polygons(mask)
    return _base64(mask_to_png(mask))


def _label_map(segmented: Segmented) -> Response:
    names = [found.name for found in segmented.found]
    if len(names) > MAX_LABELS:
        raise InvalidInputError(
            f"A label map has room for {MAX_LABELS} categories and {len(names)} are asked for: name fewer, or ask for "
            "JSON.",
            field="categories",
        )
    png = label_map_to_png(segmented.labels.astype(np.uint8), names, palette(len(names)))
    # JSON with every non-ASCII character escaped: headers carry Latin-1 only.
    return Response(png, media_type="image/png", headers={"X-Categories": json.dumps(names)})


def _overlay_png(photo: Photo, segmented: Segmented) -> bytes:
    painted = overlay(photo.rgb, (found.mask for found in segmented.found), [found.name for found in segmented.found])
    buffer = io.BytesIO()
    Image.fromarray(painted).save(buffer, "PNG")
    return buffer.getvalue()


def _wants_png(accept: str) -> bool:
    """Whether the caller would rather have a PNG than JSON, by the order and quality of the Accept header."""
    best = {"png": 0.0, "json": 0.0}
    for part in accept.split(","):
        media, *parameters = [piece.strip() for piece in part.split(";")]
        quality = next((_quality(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        for kind, names in (("png", ("image/png", "image/*")), ("json", ("application/json", "application/*", "*/*"))):
            if media.lower() in names:
                best[kind] = max(best[kind], quality)
    return best["png"] > 0 and best["png"] >= best["json"]


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
