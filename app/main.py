"""The HTTP application: routes on top of the wired service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

import app as package
from app.api import categories, health, jobs, layers, problems, segment
from app.api.middleware import BodyLimit, LoopbackOnly, Measured
from app.method.backbone import Backbone
from app.settings import Settings
from app.wiring import service

_MANY_IMAGES = frozenset({"/layers/rank"})

# More fields than any request may use, so that a request with too many is refused by the limit's own name.
_MAX_FORM_FIELDS = 20_000


def create_app(settings: Settings | None = None, *, loaded: Sequence[Backbone] | None = None) -> FastAPI:
    """The application.

    Args:
        settings: From the environment if None.
        loaded: Backbones to use instead of those that the settings name.
    """
    resolved = settings or Settings()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with service(resolved, loaded=loaded) as live:
            yield {"service": live}

    app = FastAPI(
        title="Exemplar",
        version=package.__version__,
        description="Learns to segment a category from one example.",
        lifespan=lifespan,
        form_limits={"max_fields": _MAX_FORM_FIELDS, "max_part_size": resolved.max_upload_bytes},
    )
    for module in (categories, segment, jobs, layers, health):
        app.include_router(module.router)
    problems.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, max_upload_bytes=resolved.max_upload_bytes, many_images_paths=_MANY_IMAGES)
    app.add_middleware(LoopbackOnly, allow_anonymous=resolved.allow_anonymous)
    app.add_middleware(Measured)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Put the schema that every error has into the OpenAPI document."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        schemas = document["components"]["schemas"]
        if "Problem" not in schemas:
            described = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(described.pop("$defs"))
            schemas["Problem"] = described
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way of extending the document
