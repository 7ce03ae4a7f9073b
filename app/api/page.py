"""The page at /, and its scripts. It uses the public HTTP API only."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.errors import NotFoundError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "web"

# Types by name, not by the machine's own table: with `nosniff` a browser runs no script that comes as anything else.
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    # Asked for again every time: files of two releases would not fit each other.
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page() -> FileResponse:
    """The page."""
    return _file("index.html")


@router.get("/web/{name}")
async def part(name: str) -> FileResponse:
    """A script or style of the page."""
    return _file(name)


def _file(name: str) -> FileResponse:
    # Found among what is there, so that no name leads anywhere else.
    path = next((path for path in _FOLDER.iterdir() if path.name == name and path.suffix in _TYPES), None)
    if path is None:
        raise NotFoundError(f"The page has no file {name!r}.", field="name")
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
