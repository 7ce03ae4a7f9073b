"""The HTTP application: routes and middleware on top of the wired service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.types import Scope

import app as package
from app.api import (
    categories,
    docs,
    health,
    jobs,
    label_studio,
    layers,
    open_inference,
    page,
    problems,
    segment,
)
from app.api.access import Access, scope_of
from app.api.examples import add_examples
from app.api.forms import check_fields
from app.api.middleware import BodyLimit, Guarded, Heads, Identified, Measured, PlainBodies, WholeNames
from app.api.paths import MONITORED, path_of
from app.api.rate_limit import RateLimited
from app.api.schemas import BatchLine
from app.method.backbone import Backbone
from app.settings import MEBIBYTE, Settings
from app.wiring import Service, service

# Upper bounds for parsing a form, above everything that the settings allow: two lists of ten thousand names, a thousand
# photos. A form that exceeds a setting but not these bounds gets an error that names the setting.
_MAX_FORM_FIELDS = 30_000
_MAX_FORM_FILES = 2000


# Tags of the OpenAPI document.
_TAGS = {
    "categories": "Teach categories by examples; read, roll back, export, import and delete them.",
    "segment": "Segment photos into taught and merely named categories.",
    "jobs": "Follow and cancel the background jobs that teaching and ranking start.",
    "layers": "Layers of the loaded models: which are read, and their ranking by InfoScore.",
    "health": "Probes and metrics.",
    "label-studio": "Machine learning backend of Label Studio: it learns from annotations and predicts.",
    "open inference protocol": "Health and metadata as KServe asks for them.",
}


def _operation_id(route: APIRoute) -> str:
    """Name of an operation, after which generated clients name their functions."""
    return str(route.name)


def create_app(
    settings: Settings | None = None, *, loaded: Sequence[Backbone] | None = None, live: Service | None = None
) -> FastAPI:
    """Create the application.

    Args:
        settings: Read from the environment if None.
        loaded: Backbones to use instead of those named in the settings.
        live: A running service; without one, the application's lifespan starts and stops its own.
    """
    resolved = settings or Settings()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        if live is not None:
            yield {"service": live}
            return
        async with service(resolved, loaded=loaded) as own:
            yield {"service": own}

    app = _Application(
        title="Exemplar",
        version=package.__version__,
        description="Learns to segment a category from one example.",
        lifespan=lifespan,
        openapi_tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        generate_unique_id_function=_operation_id,
        dependencies=[Depends(check_fields)],
        docs_url=None,  # app/api/docs.py serves it without external files
        redoc_url=None,
        # One span per request, without spans for the framework's own operations; Prometheus has the metrics.
        telemetry={"metrics": False, "logs": False, "operation_spans": False, "exclude": _is_probe},
        # A path with an extra slash is answered with 404 and a hint: many clients lose the body at a redirect.
        redirect_slashes=False,
        form_limits={
            "max_fields": _MAX_FORM_FIELDS,
            "max_files": _MAX_FORM_FILES,
            "max_part_size": 2 * resolved.max_upload_bytes + MEBIBYTE,
        },
    )
    for module in (categories, segment, jobs, layers, label_studio, open_inference, health, page, docs):
        app.include_router(module.router)
    problems.install(app)
    # The middleware added last sees a request first.
    app.add_middleware(Heads)
    app.add_middleware(WholeNames)
    app.add_middleware(PlainBodies)
    app.add_middleware(
        BodyLimit, max_upload_bytes=resolved.max_upload_bytes, upload_space_bytes=resolved.upload_space_bytes
    )
    app.add_middleware(RateLimited, keys=resolved.key_scopes)
    app.add_middleware(Access, keys=resolved.key_scopes, allow_anonymous=resolved.allow_anonymous)
    app.add_middleware(Measured)
    app.add_middleware(Identified)
    app.add_middleware(Guarded)
    return app


def _mark_file(schema: dict[str, Any]) -> None:
    """Say of a field that it is a file as OpenAPI 3.0 says it too, since most generators of clients know only that."""
    if "contentMediaType" in schema:
        schema["format"] = "binary"


def _is_probe(scope: Scope) -> bool:
    return "path" in scope and path_of(scope) in MONITORED


class _Application(FastAPI):
    """FastAPI whose OpenAPI document also has the schemas of non-JSON responses, examples and the API keys."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, made once."""
        if not self.openapi_schema:
            self.openapi_schema = self._document()
        return self.openapi_schema

    def _document(self) -> dict[str, Any]:
        document = super().openapi()
        for model in (problems.Problem, BatchLine):
            described = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, schema in (*described.pop("$defs", {}).items(), (model.__name__, described)):
                document["components"]["schemas"].setdefault(name, schema)
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if scope_of(method.upper(), path) is None:
                    for status in ("401", "429"):
                        operation["responses"].pop(status, None)
                    operation["security"] = []
        for name, schema in document["components"]["schemas"].items():
            if name.startswith("Body_"):
                for field in schema["properties"].values():
                    _mark_file(field.get("items", field))
        add_examples(document)
        # Either header, or none where the service has no keys.
        document["components"]["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
        document["security"] = [{}, {"key": []}, {"bearer": []}]
        return document
