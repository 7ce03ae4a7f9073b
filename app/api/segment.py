"""Routes that segment one photo or several, or one object that was clicked."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Depends, File, Form, Header, Query, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse

from app.api import answers, problems
from app.api.context import Live, Maybe, check_count, check_text, read_upload
from app.api.forms import names_in
from app.api.problems import documented
from app.api.schemas import ClickedOut, SegmentOut
from app.errors import AppError
from app.images.photo import Photo
from app.images.points import MAX_POINTS, MAX_POINTS_CHARACTERS, parse_points
from app.masks.formats import DEFAULT_OUTPUT_FORM, OUTPUT_FORMS
from app.services.batch import as_ready, patiently
from app.services.clock import Clock
from app.services.photo_reader import RequestReader
from app.services.segmentation import SegmentationRequest
from app.storage.connection import StoreError
from app.wiring import Service

router = APIRouter(tags=["segment"])

if TYPE_CHECKING:
    OutputForm = str
else:
    OutputForm = Literal[tuple(OUTPUT_FORMS)]

# Photos of one batch that are processed at a time: while one is computed, another is decoded or encoded. With more,
# other requests would wait longer.
_AT_ONCE = 2


Refine = Annotated[
    Literal["crf", "none"], Form(description="crf = refine the edges of the masks along the photo's edges.")
]
BackboneName = Annotated[Maybe[str], Form(description="Name of a loaded backbone.")]


async def options(
    live: Live,
    categories: Annotated[Maybe[list[str]], Form(description="Names; default: every taught category.")] = None,
    background: Annotated[Maybe[list[str]], Form(description="Words for everything else in the photo.")] = None,
    threshold: Annotated[
        Maybe[float],
        Form(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="Minimum probability of a pixel; default: the most probable class wins.",
        ),
    ] = None,
    min_presence: Annotated[
        Maybe[float],
        Form(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="Least presence of a category that gets a mask; none = EXEMPLAR_MIN_PRESENCE, 0 = all.",
        ),
    ] = None,
    refine: Refine = "crf",
    adapters: Annotated[
        Literal["auto", "none"], Form(description="none = use the words alone, for comparison.")
    ] = "auto",
    backbone: BackboneName = None,
) -> SegmentationRequest:
    """Read the options of a segmentation from the form."""
    limit = live.settings.max_categories
    return SegmentationRequest(
        categories=names_in(categories, field="categories", limit=limit) or None,
        background=tuple(word.text for word in names_in(background, field="background", limit=limit)),
        threshold=threshold,
        min_presence=min_presence,
        refine=refine,
        adapters=adapters == "auto",
        backbone=backbone,
    )


Options = Annotated[SegmentationRequest, Depends(options)]
Output = Annotated[OutputForm, Form(description="Format of the masks.")]
Heatmaps = Annotated[bool, Form(description="Add each category's probability as a grey PNG.")]


@router.post(
    "/segment",
    response_model=SegmentOut,
    responses=documented(400, 413, 415, 422) | {200: answers.SEGMENT_ANSWER},
)
async def segment(
    live: Live,
    request: Options,
    image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, HEIC, AVIF, BMP or TIFF.")],
    output: Output = DEFAULT_OUTPUT_FORM,
    heatmaps: Heatmaps = False,
    with_overlay: Annotated[
        bool, Query(alias="overlay", description="Return the photo with masks and names as PNG.")
    ] = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
) -> Response:
    """Segment a photo into categories, taught or only named. Masks have the photo's size after EXIF rotation."""
    with_label_map = not with_overlay and answers.prefers_png(accept)
    live.segmentation.admit(request)
    found = await live.segmentation.look_up(request) if with_label_map else None
    if found:
        answers.check_label_count(len(found.records))
    clock = Clock()
    with live.photos.request() as reader:
        photo = await _read(live, image, "image", clock, reader)
        segmented = await live.segmentation.segment(photo, request, found)
        segmented.timings_ms.update(clock.rounded())
        with clock.stage("answer"):
            answer: Response
            if with_overlay:
                answer = await asyncio.to_thread(answers.overlay_picture, photo, segmented)
            elif with_label_map:
                answer = await asyncio.to_thread(answers.label_map, segmented)
            else:
                write = partial(answers.segment_json, photo, segmented, output=output, heatmaps=heatmaps)
                answer = JSONResponse(await asyncio.to_thread(write))
    answer.headers.update(answers.age_headers(segmented.memory_age_s))
    clock.record(live.metrics, segmented.backbone.name)
    return answer


@router.post(
    "/segment/batch",
    response_class=StreamingResponse,
    responses=documented(400, 413, 415, 422) | {200: answers.BATCH_ANSWER},
)
async def segment_batch(
    live: Live,
    request: Options,
    images: Annotated[list[UploadFile], File(description="JPEG, PNG, WebP, HEIC, AVIF, BMP or TIFF.")],
    output: Output = DEFAULT_OUTPUT_FORM,
    heatmaps: Heatmaps = False,
) -> StreamingResponse:
    """Segment several photos with the same options; return one JSON line per photo as soon as it is ready.

    The categories are looked up once for all photos. The lines come in any order; `index` and `filename` identify the
    photo. A photo that can't be read has a `problem` instead of categories; the others are not affected.
    """
    check_count(images, live)
    live.segmentation.admit(request)
    found = await live.segmentation.look_up(request)

    async def line(index: int, image: UploadFile) -> str:
        clock = Clock()
        try:
            with live.photos.request() as reader:
                photo = await patiently(partial(_read, live, image, "images", clock, reader))
                segmented = await patiently(partial(live.segmentation.segment, photo, request, found))
                segmented.timings_ms.update(clock.rounded())
                with clock.stage("answer"):
                    write = partial(answers.segment_json, photo, segmented, output=output, heatmaps=heatmaps)
                    body = await asyncio.to_thread(write)
            clock.record(live.metrics, segmented.backbone.name)
        except (AppError, StoreError) as error:
            body = {"problem": problems.about(error).model_dump()}
        return answers.batch_line(index, image.filename, body)

    lines = as_ready((partial(line, *each) for each in enumerate(images)), at_once=_AT_ONCE)
    headers = answers.age_headers(found.age_s)
    return StreamingResponse(lines, media_type=answers.LINES_MEDIA_TYPE, headers=headers)


@router.post(
    "/segment/clicks",
    response_model=ClickedOut,
    responses=documented(400, 413, 415, 422),
)
async def segment_clicks(
    live: Live,
    image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, HEIC, AVIF, BMP or TIFF.")],
    points: Annotated[
        str,
        Form(
            description="JSON [[x, y, 1], [x, y, 0], …] in pixels of the photo after EXIF rotation: 1 on the object, "
            f"0 beside it; at most {MAX_POINTS}, at least one of them on the object."
        ),
    ],
    output: Output = DEFAULT_OUTPUT_FORM,
    refine: Refine = "crf",
    backbone: BackboneName = None,
) -> JSONResponse:
    """Propose the mask of one object from clicks on it and beside it; nothing needs to be taught.

    A photo sent again with more clicks is not encoded again.
    """
    check_text(points, field="points", service=live, limit=MAX_POINTS_CHARACTERS)
    live.clicking.admit(backbone)
    clock = Clock()
    with live.photos.request() as reader:
        photo = await _read(live, image, "image", clock, reader)
        placed = parse_points(points, photo_hw=(photo.rgb.shape[0], photo.rgb.shape[1]))
        clicked = await live.clicking.propose(photo, placed, refine=refine, backbone=backbone)
        clicked.timings_ms.update(clock.rounded())
        with clock.stage("answer"):
            body = await asyncio.to_thread(partial(answers.clicked_json, photo, clicked, output=output))
    clock.record(live.metrics, clicked.backbone.name)
    return JSONResponse(body)


async def _read(live: Service, image: UploadFile, field: str, clock: Clock, reader: RequestReader) -> Photo:
    raw = await read_upload(image, field=field, service=live)
    with clock.stage("decode"):
        return await reader.photo(raw, field=field)
