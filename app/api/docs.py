"""The API documentation page at /docs, with Swagger UI from local files."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from app.api.paths import under_prefix
from app.errors import NotFoundError

router = APIRouter(prefix="/docs", include_in_schema=False)

_FOLDER = Path(str(files("fastapi_swagger.resources")))
_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}


@router.get("")
async def document(request: Request) -> HTMLResponse:
    """Return the Swagger UI page for /openapi.json."""
    script, style, icon = (under_prefix(request.scope, f"/docs/{name}") for name in _TYPES)
    page = get_swagger_ui_html(
        openapi_url=under_prefix(request.scope, "/openapi.json"),
        title=f"{request.app.title}: all calls",
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
        swagger_ui_parameters={"persistAuthorization": True, "displayRequestDuration": True},
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body))
    return page


@router.get("/{name}")
async def part(name: str) -> FileResponse:
    """Return a script, style sheet or icon of the page."""
    if name not in _TYPES:
        raise NotFoundError(
            f"The API documentation has no file {name!r}. If a call is meant: the service's address ends before /docs.",
            field="name",
        )
    return FileResponse(_FOLDER / name, media_type=_TYPES[name])


def _policy(page: bytes) -> str:
    """Allows the local files and the inline script of the page; Swagger UI writes styles and draws icons by itself."""
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    hashes = " ".join(f"'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'self'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
