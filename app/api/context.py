"""How a route gets at the service, and reads an upload."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request, UploadFile

from app.errors import TooLargeError
from app.wiring import Service


def live_service(request: Request) -> Service:
    """The service that the lifespan started."""
    return cast(Service, request.state.service)


Live = Annotated[Service, Depends(live_service)]


async def read_upload(file: UploadFile, *, field: str, service: Service) -> bytes:
    """An uploaded file's bytes.

    Raises:
        TooLargeError: If it is larger than one upload may be.
    """
    limit = service.settings.max_upload_bytes
    if (file.size or 0) > limit:
        raise TooLargeError(
            f"{field} has {file.size} bytes: at most {limit} are taken (EXEMPLAR_MAX_UPLOAD_BYTES).", field=field
        )
    return await file.read()
