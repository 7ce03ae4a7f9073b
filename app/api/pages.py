"""Parts of the routes that list things: `limit`, `cursor`, and the `Link` to the next page (RFC 8288)."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel

from app.api.context import Maybe
from app.api.paths import path_of, under_prefix

MAX_LIMIT = 1000


class PageQuery(BaseModel):
    """Which page a caller wants."""

    limit: int
    cursor: str | None

    def link_next(self, request: Request, response: Response, cursor: str | None) -> None:
        """Add the address of the next page to a response, if there is one."""
        if cursor:
            following = request.url.include_query_params(cursor=cursor)
            # As it was decoded: a name may have any characters, of which the address quotes some and not others.
            address = quote(under_prefix(request.scope, path_of(request.scope)))
            response.headers["Link"] = f'<{address}?{following.query}>; rel="next"'


async def _page_query(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most items of the answer.")] = 100,
    cursor: Annotated[
        Maybe[str], Query(description="Place in the list, from the Link header of the page before.")
    ] = None,
) -> PageQuery:
    return PageQuery(limit=limit, cursor=cursor)


WantedPage = Annotated[PageQuery, Depends(_page_query)]

# OpenAPI: the header of a list's answer.
LINKED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "Link": {
                "schema": {"type": "string"},
                "description": "Address of the next page, if there is one.",
            }
        }
    }
}
