"""Which examples were made of which annotation."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from app.storage import keys
from app.storage.annotations import Annotation, AnnotationStore, LabelExample

CAT = LabelExample("cat", "e1", "c1")


@pytest.fixture
async def redis(database: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(database) as client:
        yield client


async def test_what_is_put_is_read_and_deleted(redis: Redis) -> None:
    store = AnnotationStore(redis)
    assert await store.get(3) is None
    annotation = Annotation(5, "2026-11-28T18:41:17Z", (CAT, LabelExample("Ñandú", "e2", "c2")), project=4)
    await store.put(3, annotation)
    assert await store.get(3) == annotation
    await store.delete(3)
    assert await store.get(3) is None


async def test_a_key_of_another_type_has_none(redis: Redis) -> None:
    await redis.set(keys.ANNOTATIONS, "no hash")
    assert await AnnotationStore(redis).get(3) is None


async def test_nothing_is_kept_of_one_without_examples(redis: Redis) -> None:
    store = AnnotationStore(redis)
    await store.put(3, Annotation(5, "", (CAT,)))
    await store.put(3, Annotation(5, "", ()))
    assert not await redis.exists(keys.ANNOTATIONS)


async def test_those_of_tasks_and_of_a_project(redis: Redis) -> None:
    store = AnnotationStore(redis)
    for id, task, project in ((1, 5, 1), (2, 7, 2), (3, 5, 1), (4, 9, 2)):
        await store.put(id, Annotation(task, "", (CAT,), project))
    assert sorted(await store.of_tasks([5])) == [1, 3]
    assert sorted(await store.of_tasks([7, 9, 11])) == [2, 4]
    assert await store.of_tasks([11]) == []
    assert sorted(await store.of_project(2)) == [2, 4]
    assert await store.of_project(3) == []


async def test_one_of_an_older_release_has_no_project(redis: Redis) -> None:
    example = '{"category": "cat", "id": "e1", "content": "c1"}'
    await redis.hset(keys.ANNOTATIONS, "3", f'{{"task": 5, "updated_at": "", "examples": [{example}]}}')
    store = AnnotationStore(redis)
    assert await store.get(3) == Annotation(5, "", (CAT,), project=None)
    assert await store.of_tasks([5]) == [3]
    assert await store.of_project(1) == []


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"\xff", b'{"task": "x"}'])
async def test_one_that_cannot_be_read_counts_as_none(redis: Redis, junk: bytes) -> None:
    await redis.hset(keys.ANNOTATIONS, "3", junk)
    store = AnnotationStore(redis)
    assert await store.get(3) is None
    assert await store.of_tasks([5]) == []
    await store.put(3, Annotation(5, "", (CAT,)))
    assert await store.of_tasks([5]) == [3]


@pytest.mark.parametrize("first", ["get", "of_tasks"])
async def test_where_somebody_else_wrote_the_key_annotations_are_learnt_anew(redis: Redis, first: str, caplog) -> None:
    await redis.set(keys.ANNOTATIONS, "of another type")
    store = AnnotationStore(redis)
    assert not await (store.get(3) if first == "get" else store.of_tasks([5]))
    await store.put(3, Annotation(5, "", (CAT,)))
    assert await store.of_tasks([5]) == [3]
    assert "who else writes to the store?" in caplog.text
