"""Routes that teach, read and change categories."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Header, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from app.api.conditional import (
    TAGGED,
    IfMatch,
    IfNoneMatch,
    UnlessMatch,
    check_if_match,
    check_unless_match,
    etag_of,
    etag_of_hash,
    matches,
    names_state,
)
from app.api.context import Live, Maybe, Name, NewName, check_text, location_of_job, read_upload
from app.api.forms import names_in
from app.api.pages import LINKED, WantedPage
from app.api.problems import documented
from app.api.schemas import AdapterOut, CategoryOut, Doubt, ExampleOut, JobOut, Rollback, Taught, VersionOut
from app.errors import CHANGED, InvalidInputError, NotFoundError, PreconditionFailedError
from app.images.doubts import mask_doubts
from app.images.masks import MAX_BOX_CHARACTERS
from app.images.photo import Photo
from app.masks import Mask
from app.services.photo_reader import RequestReader
from app.services.teaching import Accepted, NewExample
from app.storage.category_records import NOT_THERE, Seen
from app.storage.names import CategoryName, other_words
from app.wiring import Service

router = APIRouter(prefix="/categories", tags=["categories"])

IdempotencyKey = Annotated[
    Maybe[str], Header(alias="Idempotency-Key", description="A retry with the same key gets the first response.")
]
ADAPTER_MEDIA_TYPE = "application/octet-stream"

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_NONE_SHOWS_IT = "No example that shows the category is left, so it has no adapter."


@router.post(
    "/{name}/example",
    status_code=202,
    response_model=Taught,
    responses=documented(400, 409, 413, 415, 422)
    | {202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "Path of the job."}}}},
)
async def teach(
    name: NewName,
    request: Request,
    live: Live,
    image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, HEIC, AVIF, BMP or TIFF.")],
    mask: Annotated[Maybe[UploadFile], File(description="Image of the photo's size; non-zero = the category.")] = None,
    segmentation: Annotated[Maybe[str], Form(description="COCO RLE or polygons, as JSON.")] = None,
    box: Annotated[Maybe[str], Form(description="[x, y, width, height] in pixels, as JSON; a coarse mask.")] = None,
    absent: Annotated[
        bool, Form(description="true = the photo does not show the category; then no mask is sent, and mode is append.")
    ] = False,
    prompts: Annotated[Maybe[list[str]], Form(description="Other words for the category.")] = None,
    mode: Annotated[
        Literal["append", "replace"], Form(description="append = add an example; replace = remove the earlier ones.")
    ] = "append",
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Teach a category from one photo with exactly one of `mask`, `segmentation` and `box`.

    A photo that does not show the category, where it was marked in error, is sent with `absent=true` instead.
    """
    if absent and mode == "replace":
        raise InvalidInputError(
            "A photo without the category can't replace the examples that show it: send mode=append.", field="mode"
        )
    words = names_in(prompts, field="prompts", limit=live.settings.max_prompts, setting="EXEMPLAR_MAX_PROMPTS")
    check_text(segmentation, field="segmentation", service=live)
    check_text(box, field="box", service=live, limit=MAX_BOX_CHARACTERS)
    raw_image = await read_upload(image, field="image", service=live)
    raw_mask = await read_upload(mask, field="mask", service=live) if mask is not None else None

    async def work(id: str | None) -> dict[str, Any]:
        with live.photos.request() as reader:
            photo, marked, doubts = await _read_example(
                reader, raw_image, mask=raw_mask, segmentation=segmentation, box=box, absent=absent
            )
            new = NewExample(
                name=name,
                photo=photo,
                mask=marked,
                prompts=other_words(words, name),
                replace=mode == "replace",
                id=id,
            )
            accepted = await live.teaching.accept(new)
        taught = Taught(
            job=JobOut.of(accepted.job),
            category=CategoryOut.of(accepted.category),
            note=photo.note,
            warnings=_warnings(doubts, accepted, absent=absent),
        )
        return taught.model_dump(exclude_defaults=True)

    form = "absent" if absent else mode
    # The name as it was understood: in the path two names may look alike, one of them quoted twice.
    fields = ["example", name.id, segmentation or "", box or "", form, *(word.text for word in words)]
    answer = await live.idempotency.once(
        idempotency_key, [*(text.encode() for text in fields), raw_image, raw_mask or b""], work
    )
    return JSONResponse(answer, status_code=202, headers=location_of_job(request, answer["job"]["id"]))


async def _read_example(
    reader: RequestReader,
    image: bytes,
    *,
    mask: bytes | None,
    segmentation: str | None,
    box: str | None,
    absent: bool,
) -> tuple[Photo, Mask, dict[str, str]]:
    """The photo and the mask of a request, and what looks wrong; the mask of a photo without the category is empty."""
    if absent and (mask or segmentation or box):
        raise InvalidInputError(
            "The photo does not show the category (absent=true), but has a mask: send one or the other.", field="absent"
        )
    photo = await reader.photo(image)
    if absent:
        return photo, np.zeros(photo.rgb.shape[:2], bool), {}
    marked = await reader.mask(photo, mask=mask, segmentation=segmentation, box=box)
    return photo, marked, await asyncio.to_thread(mask_doubts, marked)


def _warnings(doubts: dict[str, str], accepted: Accepted, *, absent: bool) -> list[Doubt]:
    name = accepted.category.name
    if accepted.repeated:
        example = "this photo as one without it" if absent else "this photo with this mask"
        doubts = doubts | {
            "duplicate-example": f"{name} has {example} already, and it is kept once: send another photo to teach more."
        }
    if accepted.contradicted:
        doubts = doubts | {
            "contradicts-example": f"Of this photo {name} has both an example that shows it and one that does not: if "
            f"the earlier one is wrong, delete it (id {', '.join(accepted.contradicted)})."
        }
    return [Doubt.model_validate({"code": code, "detail": detail}) for code, detail in doubts.items()]


@router.get("", responses=documented(422) | LINKED)
async def list_categories(request: Request, response: Response, wanted: WantedPage, live: Live) -> list[CategoryOut]:
    """List the categories, the oldest first, a page at a time."""
    page = await live.categories.page(limit=wanted.limit, cursor=wanted.cursor)
    wanted.link_next(request, response, page.cursor)
    return [CategoryOut.of(record) for record in page.items]


@router.get("/{name}", responses=documented(404, 409, 422) | TAGGED, response_model=CategoryOut)
async def get_category(name: Name, live: Live, response: Response, if_none_match: IfNoneMatch = None) -> Any:
    """Return one category."""
    category = CategoryOut.of(await live.categories.get(name))
    response.headers["ETag"] = etag = etag_of(category)
    return (
        Response(status_code=304, headers={"ETag": etag})
        if if_none_match and matches(if_none_match, etag)
        else category
    )


@router.delete("/{name}", status_code=204, responses=documented(404, 409, 412, 422))
async def delete_category(name: Name, live: Live, if_match: IfMatch = None) -> None:
    """Delete a category with its examples and adapter versions, also one that can't be read."""
    await live.categories.delete(name, seen=await _seen(if_match, name, live))


async def _seen(
    if_match: str | None, name: CategoryName, live: Service, *, unless_match: str | None = None
) -> Seen | None:
    """State of the category that the caller knows, for the store to compare; None if the caller names none.

    Raises:
        NotFoundError: If there is no such category.
        PreconditionFailedError: If it is no longer what the caller knows, or is what it must not be.
    """
    if if_match is None and unless_match is None:
        return None
    record = await live.categories.get(name)
    etags = [etag_of(CategoryOut.of(record))]
    # That of the adapter only if it may count: one that an earlier release stored is read for it.
    may_count = unless_match is not None or (if_match is not None and not names_state(if_match, *etags))
    if may_count and (sha256 := await live.categories.adapter_sha256(record)):
        etags.append(etag_of_hash(sha256))
    check_if_match(if_match, *etags)
    check_unless_match(unless_match, *etags, name=record.name)
    return record.seen


@router.get("/{name}/versions", responses=documented(404, 409, 422) | LINKED)
async def list_versions(
    name: Name, request: Request, response: Response, wanted: WantedPage, live: Live
) -> list[VersionOut]:
    """List the adapter versions that are kept, the newest first."""
    record = await live.categories.get(name)
    current = record.adapter.version if record.adapter else None
    page = await live.categories.versions_page(name, limit=wanted.limit, cursor=wanted.cursor)
    wanted.link_next(request, response, page.cursor)
    return [VersionOut(**AdapterOut.of(info).model_dump(), current=info.version == current) for info in page.items]


@router.post("/{name}/rollback", responses=documented(400, 404, 409, 412, 413, 422))
async def rollback(name: Name, body: Rollback, live: Live, if_match: IfMatch = None) -> CategoryOut:
    """Use an older adapter version again, and supersede the job that is queued or running."""
    seen = await _seen(if_match, name, live)
    return CategoryOut.of(await live.categories.rollback(name, body.version, seen=seen))


@router.get(
    "/{name}/adapter",
    response_class=Response,
    responses=documented(404, 409, 422) | TAGGED | {200: TAGGED[200] | {"content": {ADAPTER_MEDIA_TYPE: _BINARY}}},
)
async def export_adapter(name: Name, live: Live, if_none_match: IfNoneMatch = None) -> Response:
    """Export the adapter in use, as safetensors."""
    raw = await live.categories.export(name)
    etag = await asyncio.to_thread(etag_of, raw)  # it may be tens of MiB
    if if_none_match and matches(if_none_match, etag):
        return Response(status_code=304, headers={"ETag": etag})
    return Response(
        raw,
        media_type=ADAPTER_MEDIA_TYPE,
        headers={"Content-Disposition": 'attachment; filename="adapter.safetensors"', "ETag": etag},
    )


@router.put(
    "/{name}/adapter",
    responses=documented(404, 409, 412, 413, 422),
    openapi_extra={"requestBody": {"required": True, "content": {ADAPTER_MEDIA_TYPE: _BINARY}}},
)
async def import_adapter(
    name: NewName, request: Request, live: Live, if_match: IfMatch = None, if_none_match: UnlessMatch = None
) -> CategoryOut:
    """Import an adapter that another deployment of the same backbone exported."""
    # Limited by the request size, not by the upload size: full-rank adapters of a large model (EXEMPLAR_METHOD=paper)
    # exceed one upload.
    adapter = await live.categories.read_adapter(await request.body())
    try:  # after the body: a condition counts for requests that would else succeed (RFC 9110, 13.2.1)
        seen = await _seen(if_match, name, live, unless_match=if_none_match)
    except NotFoundError as error:  # the import makes it, so at most the condition fails
        if if_match is not None:
            raise PreconditionFailedError(CHANGED) from error
        seen = NOT_THERE
    return CategoryOut.of(await live.categories.import_(name, adapter, seen=seen))


@router.get("/{name}/examples", responses=documented(404, 409, 422) | LINKED)
async def list_examples(
    name: Name, request: Request, response: Response, wanted: WantedPage, live: Live
) -> list[ExampleOut]:
    """List the examples that the category was taught from, the oldest first."""
    page = await live.categories.examples_page(name, limit=wanted.limit, cursor=wanted.cursor)
    wanted.link_next(request, response, page.cursor)
    return [ExampleOut.of(example) for example in page.items]


@router.get(
    "/{name}/examples/{id}/image",
    response_class=Response,
    responses=documented(404, 409, 422) | {200: {"content": {"image/*": _BINARY}}},
)
async def example_image(name: Name, id: str, live: Live) -> Response:
    """Return the photo file of an example as it was sent."""
    example = await live.categories.example(name, id)
    return Response(example.image, media_type=example.media_type)


@router.get(
    "/{name}/examples/{id}/mask",
    response_class=Response,
    responses=documented(404, 409, 422) | {200: {"content": {"image/png": _BINARY}}},
)
async def example_mask(name: Name, id: str, live: Live) -> Response:
    """Return the mask of an example as a PNG of the photo's size after EXIF rotation; white = the category."""
    return Response((await live.categories.example(name, id)).mask, media_type="image/png")


@router.delete(
    "/{name}/examples/{id}",
    status_code=202,
    response_model=Taught,
    responses=documented(404, 409, 422) | {204: {"description": _NONE_SHOWS_IT}},
)
async def delete_example(name: Name, id: str, request: Request, live: Live) -> Response:
    """Remove an example and tune the category again on the remaining ones."""
    job = await live.teaching.forget(name, id)
    if job is None:
        return Response(status_code=204)
    category = CategoryOut.of(await live.categories.get(name))
    taught = Taught(job=JobOut.of(job), category=category, warnings=[])
    return JSONResponse(
        taught.model_dump(exclude_defaults=True),
        status_code=202,
        headers=location_of_job(request, job.id),
    )
