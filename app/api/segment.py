"""Segment a photo, or several."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from functools import cache, partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, File, Form, Header, Query, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from redis.exceptions import RedisError

from app.api import problems
from app.api.context import Live, Maybe, SingleFieldsOnce, check_count, read_upload
from app.api.problems import documented
from app.api.schemas import BackboneRef, FoundOut, ImageOut, Rle, SegmentOut
from app.errors import AppError, InvalidInputError
from app.images.photo import Photo, decode_photo
from app.masks.pictures import MAX_LABELS, label_map_to_png, mask_to_png, overlay, palette, probability_to_png
from app.masks.polygons import mask_to_polygons
from app.masks.rle import mask_to_rle
from app.services.batch import as_ready, patiently
from app.services.categories import clean_names
from app.services.clock import Clock
from app.services.prediction import CategoryPrediction
from app.services.segmentation import Request, Segmented
from app.wiring import Service

router = APIRouter(tags=["segment"])

MaskForm = Literal["rle", "polygons", "png"]

LINES_MEDIA_TYPE = "application/x-ndjson"

_PNG = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
_NAMES = {
    "X-Categories": {
        "schema": {"type": "string"},
        "description": "Of a label map: its categories as a JSON list, the i-th is the pixels of value i. Left out "
        "above 8 KiB: the PNG's iTXt chunk `categories` always has them.",
    }
}
# Clients and proxies refuse answers with longer headers, some from 8 KiB on.
_MAX_NAMES_CHARACTERS = 8 * 1024
_LINES = {
    "content": {LINES_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/BatchLine"}}},
    "description": "A line per photo.",
}

# Photos of one request in work: while one is computed another is decoded or written. More would keep others waiting.
_AT_ONCE = 2


async def asked(
    live: Live,
    categories: Annotated[Maybe[list[str]], Form(description="Names; none = every category taught.")] = None,
    background: Annotated[Maybe[list[str]], Form(description="Words for none of them.")] = None,
    threshold: Annotated[
        Maybe[float],
        Form(ge=0, le=1, allow_inf_nan=False, description="Least probability; none = the most probable class wins."),
    ] = None,
    refine: Annotated[Literal["crf", "none"], Form(description="Whether edges follow the photo's.")] = "crf",
    adapters: Annotated[Literal["auto", "none"], Form(description="none = words alone, for comparison.")] = "auto",
    backbone: Annotated[Maybe[str], Form(description="A loaded backbone's name.")] = None,
) -> Request:
    """What is asked of one photo or of many."""
    limit = live.settings.max_categories
    return Request(
        categories=clean_names(categories or [], field="categories", limit=limit),
        background=clean_names(background or [], field="background", limit=limit),
        threshold=threshold,
        refine=refine,
        adapters=adapters == "auto",
        backbone=backbone,
    )


Asked = Annotated[Request, Depends(asked)]
Output = Annotated[MaskForm, Form(description="Form of the masks.")]
Heatmaps = Annotated[bool, Form(description="Add each category's probability as a grey PNG.")]


@router.post(
    "/segment",
    dependencies=[SingleFieldsOnce],
    response_model=SegmentOut,
    responses=documented(400, 413, 415, 422)
    | {
        200: {
            "content": _PNG,
            "headers": _NAMES,
            "description": "JSON; with `Accept: image/png` a label map, with `overlay` a picture.",
        }
    },
)
async def segment(
    live: Live,
    request: Asked,
    image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, BMP or TIFF.")],
    output: Output = "rle",
    heatmaps: Heatmaps = False,
    with_overlay: Annotated[bool, Query(alias="overlay", description="The photo with masks and names.")] = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
) -> Response:
    """Segment a photo into categories, taught or merely named. Masks are of the photo's size after EXIF rotation."""
    label_map = not with_overlay and _wants_png(accept)
    if label_map:
        _check_labels(len(request.categories))
    live.segmentation.admit(request)
    clock = Clock()
    photo = await _read(live, image, "image", clock)
    segmented = await live.segmentation.segment(photo, request)
    segmented.timings_ms.update(clock.rounded())
    with clock.stage("answer"):
        if with_overlay:
            answer = Response(await asyncio.to_thread(_overlay_png, photo, segmented), media_type="image/png")
        elif label_map:
            answer = await asyncio.to_thread(_label_map, segmented)
        else:
            answer = JSONResponse(await asyncio.to_thread(_body, photo, segmented, output, heatmaps))
    clock.record(live.metrics, segmented.backbone.name)
    return answer


@router.post(
    "/segment/batch",
    dependencies=[SingleFieldsOnce],
    response_class=StreamingResponse,
    responses=documented(400, 413, 422) | {200: _LINES},
)
async def segment_batch(
    live: Live,
    request: Asked,
    images: Annotated[list[UploadFile], File(description="JPEG, PNG, WebP, BMP or TIFF.")],
    output: Output = "rle",
    heatmaps: Heatmaps = False,
) -> StreamingResponse:
    """Segment several photos alike: a line of JSON for each as soon as it is ready, in any order.

    `index` and `filename` tell which photo it is. One that can't be read has a `problem` instead of categories, and the
    others go on.
    """
    check_count(images, live)
    live.segmentation.admit(request)

    async def line(index: int, image: UploadFile) -> str:
        clock = Clock()
        try:
            photo = await _read(live, image, "images", clock)
            segmented = await patiently(partial(live.segmentation.segment, photo, request))
            segmented.timings_ms.update(clock.rounded())
            with clock.stage("answer"):
                body = await asyncio.to_thread(_body, photo, segmented, output, heatmaps)
            clock.record(live.metrics, segmented.backbone.name)
        except (AppError, RedisError) as error:
            body = {"problem": problems.about(error).model_dump()}
        return json.dumps({"index": index, "filename": image.filename, **body}) + "\n"

    lines = as_ready((partial(line, *each) for each in enumerate(images)), at_once=_AT_ONCE)
    return StreamingResponse(lines, media_type=LINES_MEDIA_TYPE)


async def _read(live: Service, image: UploadFile, field: str, clock: Clock) -> Photo:
    raw = await read_upload(image, field=field, service=live)
    with clock.stage("decode"):
        return await asyncio.to_thread(decode_photo, raw, max_pixels=live.settings.max_image_pixels, field=field)


def _body(photo: Photo, segmented: Segmented, output: MaskForm, heatmaps: bool) -> dict[str, Any]:
    height, width = photo.rgb.shape[:2]
    # Most of a thousand categories are not in a photo; writing the same empty mask a thousand times takes seconds, and
    # the same black heat map minutes.
    nothing = _segmentation(np.zeros((height, width), bool), output)
    black = cache(lambda: _heatmap(np.zeros((height, width), np.float32)))

    def heatmap(found: CategoryPrediction) -> str | None:
        if not heatmaps:
            return None
        return _heatmap(found.probability) if found.has_probability else black()

    answer = SegmentOut(
        image=ImageOut(width=width, height=height, sha256=photo.sha256, note=photo.note),
        backbone=BackboneRef(name=segmented.backbone.name, revision=segmented.backbone.revision),
        layers=list(segmented.photo.prediction.layers),
        categories=[
            _found(found, _segmentation(found.mask, output) if found.area else nothing, heatmap(found))
            for found in segmented.categories
        ],
        timings_ms=segmented.timings_ms,
    )
    # Fields that are only there when asked for, or when there is something to say.
    return answer.model_dump(exclude_defaults=True) | {"timings_ms": segmented.timings_ms}


def _found(found: CategoryPrediction, segmentation: Rle | list[list[float]] | str, heatmap: str | None) -> FoundOut:
    return FoundOut(
        name=found.name,
        adapted=found.adapted,
        adapter_version=found.adapter_version,
        match_score=round(found.match_score, 4),
        mean_probability=round(found.mean_probability, 4),
        area=found.area,
        bbox=found.bbox,
        segmentation=segmentation,
        heatmap=heatmap,
    )


def _segmentation(mask: np.ndarray, output: MaskForm) -> Rle | list[list[float]] | str:
    if output == "rle":
        return Rle(**mask_to_rle(mask))
    if output == "polygons":
        return mask_to_polygons(mask)
    return _base64(mask_to_png(mask))


def _heatmap(probability: np.ndarray) -> str:
    return _base64(probability_to_png(probability))


def _check_labels(count: int) -> None:
    if count > MAX_LABELS:
        raise InvalidInputError(
            f"A label map has room for {MAX_LABELS} categories and {count} are asked for: name fewer, or ask for JSON.",
            field="categories",
        )


def _label_map(segmented: Segmented) -> Response:
    names = [found.name for found in segmented.categories]
    _check_labels(len(names))  # known only now if every category taught was asked for
    png = label_map_to_png(segmented.photo.labels.astype(np.uint8), names, palette(len(names)))
    # JSON with every non-ASCII character escaped: headers carry Latin-1 only.
    told = json.dumps(names)
    headers = {"X-Categories": told} if len(told) <= _MAX_NAMES_CHARACTERS else {}
    return Response(png, media_type="image/png", headers=headers)


def _overlay_png(photo: Photo, segmented: Segmented) -> bytes:
    painted = overlay(
        photo.rgb, (found.mask for found in segmented.categories), [found.name for found in segmented.categories]
    )
    buffer = io.BytesIO()
    Image.fromarray(painted).save(buffer, "PNG")
    return buffer.getvalue()


def _wants_png(accept: str) -> bool:
    """Whether the caller would rather have a PNG than JSON, or as much, by the qualities in the Accept header."""
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
