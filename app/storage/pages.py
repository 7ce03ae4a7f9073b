"""Pages of a long list: a sorted set of ids by time, read from a place on."""

from __future__ import annotations

import base64
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from redis.asyncio import Redis

from app.errors import InvalidInputError

from .replies import as_texts

Item = TypeVar("Item")

# Most ids read at once. Of a filtered list most items may be left out, so each read takes twice as many as the last.
_MOST_AT_ONCE = 1000


@dataclass(frozen=True)
class Place:
    """Place in a sorted set: after an id with its score, whether the id is still there or not."""

    score: float
    id: str

    @property
    def cursor(self) -> str:
        """The place as text for a caller."""
        return base64.urlsafe_b64encode(f"{self.score!r} {self.id}".encode()).decode().rstrip("=")

    @staticmethod
    def of(cursor: str) -> Place:
        """The place that a caller sent back.

        Raises:
            InvalidInputError: If no list gave this cursor.
        """
        try:
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
            score, _, id_ = text.partition(" ")
            place = Place(float(score), id_)
        except ValueError as error:
            raise _unknown_cursor() from error
        if not math.isfinite(place.score):
            raise _unknown_cursor()
        return place


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some items of a list, and the cursor of the next page; None on the last one."""

    items: Sequence[Item]
    cursor: str | None


async def read_page(
    redis: Redis,
    key: str,
    read: Callable[[list[str]], Awaitable[Sequence[Item | None]]],
    *,
    limit: int,
    cursor: str | None,
    newest_first: bool,
) -> Page[Item]:
    """Read a page.

    Args:
        redis: Client that returns bytes.
        key: Sorted set of ids by time.
        read: Gives the item of each id, None for those to leave out.
        limit: Most items of the page.
        cursor: Of the page before; None for the first page.
        newest_first: Order of the list.

    Raises:
        InvalidInputError: If no list gave this cursor.
        ResponseError: If the key is no sorted set.
    """
    after = Place.of(cursor) if cursor else None
    items: list[Item] = []
    last = after
    count = limit + 1  # one more tells whether there is a next page
    while True:
        places = await _places(redis, key, after, count=min(count, _MOST_AT_ONCE), newest_first=newest_first)
        for place, item in zip(places, await read([place.id for place in places]), strict=True):
            if item is None:
                continue
            if len(items) == limit and last:
                return Page(items, last.cursor)
            items.append(item)
            last = place
        if not places:
            return Page(items, None)
        after, count = places[-1], 2 * count


async def _places(redis: Redis, key: str, after: Place | None, *, count: int, newest_first: bool) -> list[Place]:
    """`count` places of the list or somewhat more, from the first one or behind one; none at its end."""
    first, last = ("+inf", "-inf") if newest_first else ("-inf", "+inf")
    offset = 0
    if after:
        count += 1  # it is read again, unless it was deleted
    while True:
        found = await redis.zrange(
            key,
            repr(after.score) if after else first,
            last,
            desc=newest_first,
            byscore=True,
            offset=offset,
            num=count,
            withscores=True,
        )
        pairs = cast("list[tuple[bytes, float]]", found)
        ids = as_texts(id_ for id_, _ in pairs)
        places = [Place(score, id_) for id_, (_, score) in zip(ids, pairs, strict=True)]
        beyond = [place for place in places if after is None or _follows(place, after, newest_first=newest_first)]
        if beyond or len(places) < count:
            return beyond
        offset += count  # all of them have the score of the place before, and were listed before it


def _follows(place: Place, other: Place, *, newest_first: bool) -> bool:
    """True if a place comes behind another one; ids of one score are in the order of their bytes."""
    order, of_other = ((one.score, one.id.encode()) for one in (place, other))
    return order < of_other if newest_first else order > of_other


def page_of(items: Sequence[Item], place_of: Callable[[Item], Place], *, limit: int, cursor: str | None) -> Page[Item]:
    """A page of a short list that was read as a whole.

    Args:
        items: All of the list.
        place_of: Place of an item; the scores are in the list's order.
        limit: Most items of the page.
        cursor: Of the page before, whose last item may be gone; None for the first page.

    Raises:
        InvalidInputError: If no list gave this cursor.
    """
    start = 0
    if cursor:
        after, places = Place.of(cursor), [place_of(item) for item in items]
        if after in places:
            start = places.index(after) + 1
        else:
            start = next((at for at, place in enumerate(places) if place.score > after.score), len(items))
    some = items[start : start + limit]
    return Page(some, place_of(some[-1]).cursor if some and start + limit < len(items) else None)


def _unknown_cursor() -> InvalidInputError:
    return InvalidInputError(
        "No list gave this cursor: send the one of the Link header, or none for the first page.", field="cursor"
    )
