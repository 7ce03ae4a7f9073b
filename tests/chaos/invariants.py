"""What must hold once the breaking has stopped and all jobs had their time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import httpx2
from redis import Redis

from .clients import photo_of
from .journal import Journal
from .processes import wait_until

# After the last trouble: 15 s until a sweep finds what was never queued, the redelivery of a dead worker's job, and the
# jobs themselves.
JOBS_END_S = 60.0
# Ends of a job that leave a category without an adapter, although an example shows it.
_MAY_LACK_ADAPTER = ("cancelled",)
_DIED = "The worker died"

_CATEGORY = "exemplar:category:{"


def everything(http: httpx2.Client, url: str) -> list[Any]:
    """All items of a list that comes in pages."""
    items: list[Any] = []
    link: str | None = url
    while link:
        answer = http.get(link)
        answer.raise_for_status()
        items += answer.json()
        link = answer.links.get("next", {}).get("url")
    return items


def wait_for_jobs(http: httpx2.Client, *, within_s: float = JOBS_END_S) -> list[str]:
    """Wait until all jobs have ended; those that do not in this time are violations."""
    going: list[Any] = []

    def none_left() -> bool:
        going[:] = [job for status in ("queued", "running") for job in everything(http, f"/jobs?status={status}")]
        return not going

    try:
        wait_until(none_left, "all jobs end", timeout_s=within_s)
    except TimeoutError:
        return [f"job {job['id'][:8]} of {job['category']} is {job['status']}, step {job['step']}" for job in going]
    return []


def check(http: httpx2.Client, redis: Redis, journal: Journal) -> Iterator[str]:
    """Violations of what must hold in the end."""
    jobs = {job["id"]: job for job in everything(http, "/jobs?limit=1000")}
    categories = everything(http, "/categories?limit=1000")
    yield from _acknowledged_jobs(journal, jobs)
    yield from _examples(http, journal, {category["name"] for category in categories})
    for category in categories:
        yield from _adapter(http, category, jobs)
    yield from _segments(http, categories)
    yield from _keys(redis)


def _acknowledged_jobs(journal: Journal, jobs: Mapping[str, Any]) -> Iterator[str]:
    for entry in journal.entries():
        if entry.job and entry.outcome == "acknowledged" and entry.job not in jobs:
            yield f"job {entry.job[:8]} of {entry.category} was acknowledged and is not known"
    for job in jobs.values():
        if job["status"] == "failed" and not job["error"].startswith(_DIED):
            yield f"job {job['id'][:8]} of {job['category']} failed: {job['error']}"


def _examples(http: httpx2.Client, journal: Journal, existing: set[str]) -> Iterator[str]:
    for name in sorted({entry.category for entry in journal.entries()} | existing):
        listed = everything(http, f"/categories/{name}/examples?limit=1000") if name in existing else []
        yield from journal.faults(name, [example["sha256"] for example in listed])


def _adapter(http: httpx2.Client, category: Mapping[str, Any], jobs: Mapping[str, Any]) -> Iterator[str]:
    """A category with an example that shows it has an adapter, unless somebody cancelled its job."""
    examples = everything(http, f"/categories/{category['name']}/examples?limit=1000")
    if category["adapter"] or all(example["absent"] for example in examples):
        return
    job = jobs.get(category["job"], {"status": "not known", "error": None})
    if job["status"] not in _MAY_LACK_ADAPTER and not (job["error"] or "").startswith(_DIED):
        yield f"{category['name']} has examples and no adapter; its job {category['job']} is {job['status']}"


def _segments(http: httpx2.Client, categories: list[Any]) -> Iterator[str]:
    """Every category can be segmented with the adapter that it has."""
    if not categories:
        return
    answer = http.post("/segment", files={"image": photo_of(Random(1))}, data={"refine": "none"})
    if answer.status_code != 200 or "x-categories-age" in answer.headers:
        yield f"POST /segment in the end: {answer.status_code} {answer.text[:200]}"
        return
    for found in answer.json()["categories"]:
        if found.get("adapter_problem"):
            yield f"{found['name']}: {found['adapter_problem']}"


def _keys(redis: Any) -> Iterator[str]:
    """No key is left that nothing leads to, and all that is to expire will."""
    keys = {key.decode() for key in redis.scan_iter("exemplar:*", count=1000)}
    known = {id_.decode() for id_ in redis.zrange("exemplar:categories", 0, -1)}
    expected: set[str] = set()
    for id_ in known:
        expected |= _keys_of_category(redis, id_)
    of_categories = {key for key in keys if key.startswith(_CATEGORY)}
    for key in sorted(of_categories - expected):
        if not key.endswith("}:counters"):
            yield f"key {key} belongs to nothing"
    for id_ in known:
        if f"{_CATEGORY}{id_}}}" not in keys:
            yield f"category {id_} is in the list of categories and has no record"
    for kind in ("job", "idempotency", "ranking", "receipt", "docket:runs"):
        for key in sorted(key for key in keys if key.startswith(f"exemplar:{kind}:")):
            if redis.ttl(key) < 0:
                yield f"key {key} never expires"
    pending = redis.xpending("exemplar:docket:stream", "docket-workers") if "exemplar:docket:stream" in keys else None
    if pending and pending["pending"]:
        yield f"the queue has {pending['pending']} messages that no worker has finished"


def _keys_of_category(redis: Any, id_: str) -> set[str]:
    record = f"{_CATEGORY}{id_}}}"
    examples = {f"{record}:example:{example.decode()}" for example in redis.lrange(f"{record}:examples", 0, -1)}
    versions = {f"{record}:adapter:{version.decode()}" for version in redis.hkeys(f"{record}:versions")}
    return {record, f"{record}:counters", f"{record}:examples", f"{record}:versions", *examples, *versions}


def kinds_of_keys(redis: Redis) -> Counter[str]:
    """Number of keys by the first two parts of their names."""
    return Counter(":".join(key.decode().split(":")[1:2]) for key in redis.scan_iter(count=1000))


def statuses(http: httpx2.Client) -> Counter[str]:
    """Number of jobs by status."""
    return Counter(job["status"] for job in everything(http, "/jobs?limit=1000"))
