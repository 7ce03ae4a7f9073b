"""Photos of other hosts: what their answers mean."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from app.errors import InvalidInputError, UnavailableError
from app.services.labelling.photos import LabelStudioClient

ADDRESS = "https://bucket.example.com/cat.jpg"


async def photo_after(*answers: httpx.Response, token: str = "") -> bytes:
    """The photo that a client gets whose requests get these answers."""
    coming = iter(answers)
    client = LabelStudioClient(
        url="https://bucket.example.com",
        token=token,
        hosts=(),
        max_bytes=100,
        transport=httpx.MockTransport(lambda _: next(coming)),
    )
    try:
        return await client.photo(ADDRESS)
    finally:
        await client.close()


async def test_a_photo_is_read() -> None:
    assert await photo_after(httpx.Response(200, content=b"photo")) == b"photo"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
@pytest.mark.parametrize(("named", "pause_s"), [({}, 5), ({"Retry-After": "30"}, 30), ({"Retry-After": "soon"}, 5)])
async def test_a_host_that_is_busy_or_fails_may_be_asked_again(
    status: int, named: dict[str, str], pause_s: int
) -> None:
    with pytest.raises(UnavailableError, match=f"bucket.example.com answers with {status}") as busy:
        await photo_after(httpx.Response(status, headers=named))
    assert busy.value.retry_after_s == pause_s


async def test_so_it_is_where_an_access_token_is_renewed() -> None:
    with pytest.raises(UnavailableError) as busy:
        await photo_after(httpx.Response(429, headers={"Retry-After": "30"}), token="a.b.c")
    assert busy.value.retry_after_s == 30


@pytest.mark.parametrize("status", [400, 403, 404, 410])
async def test_a_photo_that_is_refused_is_not_asked_for_again(status: int) -> None:
    with pytest.raises(InvalidInputError):
        await photo_after(httpx.Response(status))
