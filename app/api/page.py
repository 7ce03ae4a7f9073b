"""The web page at / with its scripts, styles and sample photos. The page uses only the public HTTP API."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.errors import NotFoundError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "web"

# Fixed media types instead of the operating system's table: with `nosniff` a browser refuses a script of another type.
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    # Revalidated on every request, so that a browser does not mix files of two releases.
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page() -> FileResponse:
    """Return the page."""
    return _file("index.html")


@router.get("/web/{name}")
async def part(name: str) -> FileResponse:
    """Return a script, style sheet or picture of the page."""
    return _file(name)


def _file(name: str) -> FileResponse:
    # Compared with the names in the folder, so that no name can lead to another folder.
    path = next((path for path in _FOLDER.iterdir() if path.name == name and path.suffix in _TYPES), None)
    if path is None:
        raise NotFoundError(f"The page has no file {name!r}.", field="name")
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
