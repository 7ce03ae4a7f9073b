"""What the calls send, and what they make of answers, for both clients without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx2
import numpy as np
import pytest

from exemplar_client import AsyncClient, Client, ExemplarError, Invalid, Overloaded
from exemplar_client.wire import Retries

PHOTO = np.zeros((5, 7, 3), np.uint8)
HALF_A_PAIR = "caf\udce9"


def line(index: int, status: int = 200) -> dict[str, Any]:
    """One line of a batch."""
    if status != 200:
        title = "Overloaded" if status == 503 else "Refused"
        return {"index": index, "problem": {"status": status, "title": title, "detail": f"It is a {status}."}}
    return {
        "index": index,
        "image": {"width": 7, "height": 5, "sha256": ""},
        "backbone": {"name": "tiny", "revision": ""},
        "layers": [0],
        "categories": [],
        "timings_ms": {},
    }


class Service:
    """Answers each batch with the next lines, and notes how many photos it was sent."""

    def __init__(self, *answers: Iterable[dict[str, Any]]) -> None:
        self.sent: list[int] = []
        self._answers = iter(answers)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(request.read().count(b'name="images"'))
        body = "\n".join(json.dumps(each) for each in next(self._answers))
        return httpx2.Response(200, text=body, headers={"content-type": "application/x-ndjson"})


@pytest.mark.parametrize("odd", [{}, {"index": 7}, {"index": "0"}, [1], 3], ids=repr)
def test_an_odd_line_is_an_error_of_the_client(odd: Any) -> None:
    with pytest.raises(ExemplarError, match="not what this version of exemplar-client expects"):
        in_turn(Service([odd]), [PHOTO])


def in_turn(service: Service, photos: list[Any], **options: Any) -> tuple[list[int], list[ExemplarError]]:
    """Positions of the photos with a result, and the errors of those without, by the client for ordinary code."""
    errors: list[ExemplarError] = []
    with Client("http://service", transport=httpx2.MockTransport(service), **options) as client:
        many = client.segment_many(photos, "cat", on_failure=lambda source, error: errors.append(error), progress=False)
        return [masks.position for masks in many], errors


async def in_asyncio(service: Service, photos: list[Any], **options: Any) -> tuple[list[int], list[ExemplarError]]:
    """The same by the client for asyncio."""
    errors: list[ExemplarError] = []
    async with AsyncClient("http://service", transport=httpx2.MockTransport(service), **options) as client:
        many = client.segment_many(photos, "cat", on_failure=lambda source, error: errors.append(error), progress=False)
        return [masks.position async for masks in many], errors


@pytest.fixture(params=["sync", "async"])
def segmented(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Segments photos with either client, without pauses."""
    monkeypatch.setattr(Retries, "backoff_s", lambda self, tried: 0.0)

    async def segment(*given: Any, **options: Any) -> tuple[list[int], list[ExemplarError]]:
        return in_turn(*given, **options) if request.param == "sync" else await in_asyncio(*given, **options)

    return segment


@pytest.mark.parametrize("status", [503, 429])
async def test_photos_of_a_batch_that_came_while_the_service_was_busy_are_sent_again(segmented, status: int) -> None:
    service = Service([line(0, status), line(1), line(2, status)], [line(1, status), line(0)], [line(0)])
    assert await segmented(service, [PHOTO] * 3) == ([1, 0, 2], [])
    assert service.sent == [3, 2, 1]


async def test_a_photo_that_is_refused_is_not_sent_again(segmented) -> None:
    service = Service([line(0, 422), line(1)])
    found, errors = await segmented(service, [PHOTO] * 2)
    assert (found, [type(error) for error in errors], service.sent) == ([1], [Invalid], [2])


async def test_a_service_that_stays_busy_fails_the_photos_after_the_last_try(segmented) -> None:
    service = Service(*[[line(0, 503), line(1, 503)]] * 3)
    found, errors = await segmented(service, [PHOTO] * 2, tries=3)
    assert (found, [type(error) for error in errors], service.sent) == ([], [Overloaded] * 2, [2, 2, 2])


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.category(HALF_A_PAIR),
        lambda client: client.delete(HALF_A_PAIR),
        lambda client: client.teach(HALF_A_PAIR, PHOTO, [1, 1, 2, 2]),
        lambda client: client.teach("cat", PHOTO, [1, 1, 2, 2], prompts=HALF_A_PAIR),
        lambda client: client.segment(PHOTO, HALF_A_PAIR),
        lambda client: client.segment(PHOTO, ["a, b", HALF_A_PAIR]),
        lambda client: client.segment(PHOTO, "cat", background=HALF_A_PAIR),
        lambda client: client.segment(PHOTO, "cat", backbone=HALF_A_PAIR),
        lambda client: client.jobs(HALF_A_PAIR),
        lambda client: client.job(HALF_A_PAIR),
    ],
)
async def test_text_that_is_not_utf_8_is_refused_before_it_is_sent(call) -> None:
    network = httpx2.MockTransport(Service())
    with Client("http://service", transport=network) as client, pytest.raises(Invalid, match="UTF-8"):
        call(client)
    async with AsyncClient("http://service", transport=network) as client:
        with pytest.raises(Invalid, match="UTF-8"):
            await call(client)
