"""Photos and tasks of other hosts: what their answers mean, and how large they may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx2 as httpx
import pytest

from app.errors import InvalidInputError, TooLargeError, UnavailableError
from app.services.labelling import photos
from app.services.labelling.photos import LabelStudioClient

ADDRESS = "https://bucket.example.com/cat.jpg"


@asynccontextmanager
async def client_of(answers: Iterable[httpx.Response], *, token: str = "") -> AsyncIterator[LabelStudioClient]:
    """A client whose requests get these answers."""
    coming = iter(answers)
    client = LabelStudioClient(
        url="https://bucket.example.com",
        token=token,
        hosts=(),
        max_bytes=100,
        transport=httpx.MockTransport(lambda _: next(coming)),
    )
    try:
        yield client
    finally:
        await client.close()


async def photo_after(*answers: httpx.Response, token: str = "") -> bytes:
    """The photo that a client gets whose requests get these answers."""
    async with client_of(answers, token=token) as client:
        return await client.photo(ADDRESS)


async def test_a_photo_is_read() -> None:
    assert await photo_after(httpx.Response(200, content=b"photo")) == b"photo"


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("data:image/png,cat", InvalidInputError),
        ("data:image/png,%63%61%74", InvalidInputError),
        ("data:image/png;base64,%63%61%74", InvalidInputError),
        (f"data:image/png;base64,{'A' * 136}", TooLargeError),  # 102 bytes
        (f"data:image/png;base64,{'*' * 140}", TooLargeError),  # before it is decoded
    ],
)
async def test_a_data_url_in_another_form_or_of_more_than_an_upload_may_have_is_refused(
    address: str, error: type[Exception]
) -> None:
    async with client_of([]) as client:
        assert await client.photo("data:image/png;base64,Y2F0") == b"cat"
        with pytest.raises(error):
            await client.photo(address)


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


async def test_a_photo_above_the_limit_of_an_upload_names_the_setting() -> None:
    with pytest.raises(TooLargeError) as refusal:
        await photo_after(httpx.Response(200, content=bytes(101)))
    assert refusal.value.detail == (
        "The photo of bucket.example.com has more than 100 bytes, which are allowed (EXEMPLAR_MAX_UPLOAD_BYTES)."
    )


async def test_tasks_above_the_limit_of_what_is_read_at_once_name_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not for photos, whose limit is lower."""
    monkeypatch.setattr(photos, "_MAX_JSON_BYTES", 150)
    async with client_of([httpx.Response(200, content=b"{}" + b" " * 148)]) as client:
        assert await client.tasks(3, page=2, page_size=50) == []
    for asked, named in (("tasks", "Page 2 of the tasks of project 3"), ("annotation", "Annotation 7")):
        async with client_of([httpx.Response(200, content=bytes(151))]) as client:
            with pytest.raises(TooLargeError) as refusal:
                await (client.tasks(3, page=2, page_size=50) if asked == "tasks" else client.has_annotation(7))
        assert f"{named} of bucket.example.com has more than 150 bytes" in refusal.value.detail
        assert "no setting" in refusal.value.detail
        assert "EXEMPLAR" not in refusal.value.detail
