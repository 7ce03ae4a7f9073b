"""Routes that rank layers, list the layers in use, and list the loaded models."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse

from app.api.categories import IdempotencyKey
from app.api.context import Live, Maybe, check_count, location_of_job, read_upload
from app.api.forms import names_in
from app.api.problems import documented
from app.api.schemas import BackboneOut, JobOut, LayerOut, Started
from app.services.models import Model
from app.wiring import Service

router = APIRouter(tags=["layers"])


@router.post(
    "/layers/rank",
    status_code=202,
    response_model=Started,
    responses=documented(400, 409, 413, 415, 422)
    | {202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "Path of the job."}}}},
)
async def rank_layers(
    live: Live,
    request: Request,
    images: Annotated[list[UploadFile], File(description="Unlabelled photos.")],
    categories: Annotated[
        Maybe[list[str]], Form(description="Names to rank with; default: every taught category.")
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Rank the default backbone's layers by InfoScore.

    From two photos on, the best two layers are read, unless EXEMPLAR_LAYERS names others. Categories taught before keep
    their layers.
    """
    check_count(images, live)
    limit = live.settings.max_categories
    names = [name.text for name in names_in(categories, field="categories", limit=limit)]
    raw = [await read_upload(image, field="images", service=live) for image in images]

    async def work(id: str | None) -> dict[str, Any]:
        job = await live.ranking.start(raw, names, id=id)
        return Started(job=JobOut.of(job)).model_dump()

    parts = [request.url.path.encode(), *(name.encode() for name in names), *raw]
    answer = await live.idempotency.once(idempotency_key, parts, work)
    return JSONResponse(answer, status_code=202, headers=location_of_job(request, answer["job"]["id"]))


@router.get("/layers", responses=documented())
async def list_layers(live: Live) -> list[LayerOut]:
    """List every layer of every loaded backbone."""
    return [layer for model in live.models for layer in await _layers(live, model)]


@router.get("/backbones", responses=documented())
async def list_backbones(live: Live) -> list[BackboneOut]:
    """List the loaded models, the default first."""
    return [_backbone(model) for model in live.models]


async def _layers(live: Service, model: Model) -> list[LayerOut]:
    choice = await live.models.layers_of(model)
    scores = choice.scores
    return [
        LayerOut(
            backbone=model.info.name,
            layer=layer,
            infoscore=float(scores.infoscore[layer]) if scores else None,
            entropy_ratio=float(scores.entropy_ratio[layer]) if scores else None,
            cov=float(scores.cov[layer]) if scores else None,
            images=choice.images,
            chosen=layer in choice.layers,
            chosen_by=choice.chosen_by,
        )
        for layer in range(model.info.layer_count)
    ]


def _backbone(model: Model) -> BackboneOut:
    info = model.info
    return BackboneOut(
        name=info.name,
        family=info.family,
        revision=info.revision,
        device=info.device,
        dtype=info.dtype,
        memory_bytes=info.memory_bytes,
        layers=info.layer_count,
        patch_grid=list(info.patch_grid_hw),
        image_text_score=info.image_text_score,
        warm=model.warm,
    )
