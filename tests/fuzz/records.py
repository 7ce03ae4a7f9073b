"""Stored records that somebody damaged: what is damaged costs itself alone, and can be deleted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from redis import Redis

from tests.chaos.calls import Calls, Told

from .uploads import mangled, seeds

# The category whose records are damaged, and one that must not notice.
VICTIM, NEIGHBOUR = "victim", "neighbour"
# Text that a damaged field may hold.
_JUNK: tuple[bytes, ...] = (
    b"", b"{{{", b"null", b"[]", b"{}", b'"\\ud800"', b"\xff\xfe", b"-1", b"1e999", b"NaN", b"9" * 400, b"[" * 100_000,
    b"\0", b'"x"', b"true",
)  # fmt: skip
_PREFIX = f"exemplar:category:{{{VICTIM}}}"
_SHARED = ("exemplar:categories", "exemplar:jobs", "exemplar:probe")


def damage(redis: Any, random: Random) -> str:
    """Damage one key of the victim, or one that belongs to no category; what was done."""
    keys = sorted(key.decode() for key in redis.scan_iter("exemplar:*", count=1000))
    victims = [key for key in keys if key.startswith(_PREFIX)]
    others = [key for key in keys if not key.startswith(("exemplar:category:", "exemplar:docket", *_SHARED))]
    mine = others if others and random.random() < 0.3 else victims
    key = random.choice(mine)
    kind = redis.type(key).decode()
    if kind == "hash" and random.random() < 0.8:
        field = random.choice(sorted(redis.hkeys(key)))
        raw = None if random.random() < 0.2 else _junk(random, redis.hget(key, field))
        if raw is None:
            redis.hdel(key, field)
        else:
            redis.hset(key, field, raw)
        return f"{key}: field {field!r} is {_short(raw)}"
    if kind == "string" and random.random() < 0.8:
        raw = _junk(random, redis.get(key))
        redis.set(key, raw, keepttl=True)
        return f"{key} is {_short(raw)}"
    if kind == "list" and random.random() < 0.6:
        raw = _junk(random, b"")
        redis.rpush(key, raw)
        return f"{key} has the item {_short(raw)}"
    redis.delete(key)
    other = random.choice(["string", "hash", "list", "zset", "none"])
    _make(redis, key, other)
    return f"{key} is of the type {other}"


def _junk(random: Random, stored: bytes | None) -> bytes:
    return random.choice(_JUNK) if random.random() < 0.5 else mangled(random, stored or b"")


def _short(raw: bytes | None) -> str:
    return "gone" if raw is None else repr(raw[:40])


def _make(redis: Any, key: str, kind: str) -> None:
    if kind == "string":
        redis.set(key, "junk")
    elif kind == "hash":
        redis.hset(key, "junk", "junk")
    elif kind == "list":
        redis.rpush(key, "junk")
    elif kind == "zset":
        redis.zadd(key, {"junk": 1.0})


def look_everywhere(calls: Calls) -> Iterator[str]:
    """Call everything that reads records; what is wrong beyond what `calls` checks."""
    ready = calls.once("GET", "/readyz")
    if ready.status != 200:
        yield f"/readyz: {ready.status}"
    for template in ("/categories", "/jobs", "/layers", "/backbones"):
        told = calls.once("GET", template)
        if told.status != 200:
            yield f"{template}: {told.status}"
    for name in (VICTIM, NEIGHBOUR):
        for part in ("", "/examples", "/versions", "/adapter"):
            told = calls.once("GET", "/categories/{name}" + part, {"name": name})
            if name == NEIGHBOUR and told.status != 200:
                yield f"the neighbour's {part or 'record'}: {told.status}"
    for job in _items(calls.once("GET", "/jobs")):
        calls.once("GET", "/jobs/{id}", {"id": job["id"]})
    for example in _items(calls.once("GET", "/categories/{name}/examples", {"name": VICTIM})):
        for part in ("image", "mask"):
            calls.once("GET", f"/categories/{{name}}/examples/{{id}}/{part}", {"name": VICTIM, "id": example["id"]})
    yield from _segmented(calls)


def _segmented(calls: Calls) -> Iterator[str]:
    for names in ([], [VICTIM, NEIGHBOUR]):
        told = calls.once("POST", "/segment", files={"image": seeds()[0]}, data={"categories": names, "refine": "none"})
        if told.status != 200:
            yield f"/segment of {names or 'all'}: {told.status}"
            continue
        found = {one["name"]: one for one in told.json()["categories"]}
        if not found.get(NEIGHBOUR, {}).get("adapted"):
            yield f"/segment of {names or 'all'}: the neighbour's adapter is not in use"


def change(calls: Calls, random: Random) -> None:
    """Change the victim in some way; `calls` checks the answer."""
    names = {"name": VICTIM}
    match random.randrange(5):
        case 0:
            teach(calls, VICTIM)
        case 1:
            for example in _items(calls.once("GET", "/categories/{name}/examples", names)):
                calls.once("DELETE", "/categories/{name}/examples/{id}", names | {"id": example["id"]})
        case 2:
            calls.once("POST", "/categories/{name}/rollback", names, json={"version": 1})
        case 3:
            adapter = calls.once("GET", "/categories/{name}/adapter", {"name": NEIGHBOUR})
            if adapter.answer is not None:
                calls.once("PUT", "/categories/{name}/adapter", names, content=adapter.answer.content)
        case 4:
            for job in _items(calls.once("GET", "/jobs", params={"category": VICTIM})):
                calls.once("DELETE", "/jobs/{id}", {"id": job["id"]})


def teach(calls: Calls, name: str) -> Told:
    """Teach a category from a photo and a box."""
    fields = {"box": json.dumps([2, 3, 7, 5]), "mode": "replace"}
    return calls.once("POST", "/categories/{name}/example", {"name": name}, files={"image": seeds()[0]}, data=fields)


def delete(calls: Calls, redis: Redis, done: Iterable[str]) -> Iterator[str]:
    """Delete the victim, whatever is left of it; what is wrong with that.

    What a damaged list does not name any more may be left over.
    """
    status = calls.once("DELETE", "/categories/{name}", {"name": VICTIM}).status
    if status not in (204, 404):
        yield f"the victim could not be deleted: {status}"
    left = {key.decode().removeprefix(_PREFIX) for key in redis.scan_iter(f"{_PREFIX}*", count=1000)} - {":counters"}
    if left and not any(one.startswith((f"{_PREFIX}:versions", f"{_PREFIX}:examples")) for one in done):
        yield f"of the victim is left {sorted(left)}"
    redis.delete(*(_PREFIX + suffix for suffix in {*left, ":none"}))


def _items(told: Told) -> list[Any]:
    return list(told.json()) if told.status == 200 else []
