"""Open Inference Protocol (KServe v2): health and metadata. A category is a model, its adapter versions its versions.

Source: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from app.api.context import Live, Name
from app.api.problems import documented
from app.errors import ConflictError, NotFoundError, UnavailableError
from app.services.models import ModelInfo
from app.storage.category_records import CategoryRecord
from app.storage.names import CategoryName
from app.wiring import Service

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

_PLATFORM = "exemplar"


class ServerMetadata(BaseModel):
    """The service."""

    name: str = _PLATFORM
    version: str
    extensions: list[str] = []


class ServerLive(BaseModel):
    """The process answers."""

    live: bool = True


class ServerReady(BaseModel):
    """The service is ready."""

    ready: bool = True


class ModelMetadata(BaseModel):
    """A category, or a backbone. There are no tensors: masks are asked for with `POST /segment`."""

    name: str
    versions: list[str] = Field(description="Adapter versions that are kept, the newest first.")
    platform: str = Field(examples=["exemplar_embedded"])
    inputs: list[str] = []
    outputs: list[str] = []


class ModelReady(BaseModel):
    """The model is ready."""

    name: str
    ready: bool = True


@router.get("", responses=documented())
async def server(request: Request) -> ServerMetadata:
    """Return name and version of the service."""
    return ServerMetadata(version=request.app.version)


@router.get("/health/live", responses=documented())
async def server_live() -> ServerLive:
    """Return 200 if the process answers requests, as `/healthz`."""
    return ServerLive()


@router.get("/health/ready", responses=documented(503))
async def server_ready(live: Live) -> ServerReady:
    """Return 200 if the service is ready, else 503 with the reasons, as `/readyz`."""
    if reasons := await live.health.reasons():
        raise UnavailableError(" ".join(reasons), retry_after_s=1)
    return ServerReady()


@router.get("/models/{name}", responses=documented(404, 409, 422))
async def model(name: Name, live: Live) -> ModelMetadata:
    """Return a category and its adapter versions, or a backbone by its name."""
    record = await _category(name, live)
    if record is None:
        about = live.models.get(name.text).info
        return ModelMetadata(name=name.text, versions=[about.revision], platform=_platform(about))
    versions = [str(info.version) for info in await live.categories.versions(name)]
    return ModelMetadata(name=record.name, versions=versions, platform=_platform(live.models.default.info))


@router.get("/models/{name}/versions/{version}", responses=documented(404, 409, 422))
async def model_version(name: Name, version: str, live: Live) -> ModelMetadata:
    """Return a category, if this version of its adapter is kept."""
    found = await model(name, live)
    _check_version(found, version)
    return found


@router.get("/models/{name}/ready", responses=documented(404, 409, 422, 503))
async def model_ready(name: Name, live: Live) -> ModelReady:
    """Return 200 if the model is warm and, for a category, it has an adapter; else 503 or 409."""
    await _check_ready(name, live, version=None)
    return ModelReady(name=name.text)


@router.get("/models/{name}/versions/{version}/ready", responses=documented(404, 409, 422, 503))
async def model_version_ready(name: Name, version: str, live: Live) -> ModelReady:
    """Return 200 if this version of a category's adapter is the one in use; else 503 or 409."""
    _check_version(await model(name, live), version)
    await _check_ready(name, live, version=version)
    return ModelReady(name=name.text)


def _platform(about: ModelInfo) -> str:
    return f"{_PLATFORM}_{about.family}"


async def _check_ready(name: CategoryName, live: Service, *, version: str | None) -> None:
    record = await _category(name, live)
    backbone = live.models.default if record else live.models.get(name.text)
    if not backbone.warm and not backbone.unloaded:  # an unloaded one is loaded by the next request for it
        raise UnavailableError(f"The model {backbone.info.name} is not warm yet.", retry_after_s=1)
    if record is None:
        return
    if record.adapter is None:
        raise ConflictError(f"{record.name} has no adapter that can be used: see GET /categories/{{name}}.")
    if version is not None and version != str(record.adapter.version):
        raise ConflictError(f"Version {record.adapter.version} of {record.name} is in use, not {version}.")


async def _category(name: CategoryName, live: Service) -> CategoryRecord | None:
    """The category of a name, or None if a backbone has it.

    Raises:
        NotFoundError: If neither has it.
    """
    try:
        return await live.categories.get(name)
    except NotFoundError:
        if any(backbone.info.name == name.text for backbone in live.models):
            return None
        raise


def _check_version(found: ModelMetadata, version: str) -> None:
    if version not in found.versions:
        raise NotFoundError(f"{found.name} has no version {version!r}: kept are {', '.join(found.versions) or 'none'}.")
