"""Inputs of ranking jobs: read back, replaced, deleted, and gone after a day."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from app.storage import keys
from app.storage.rankings import RankingStore


@pytest.fixture
def rankings(redis: Redis) -> RankingStore:
    return RankingStore(redis)


async def test_photos_and_names_are_read_back(rankings: RankingStore, redis: Redis) -> None:
    await rankings.put("j", images=[b"\x00a", b"b"], names=["Füße", "猫"])
    assert await rankings.image_count("j") == 2
    assert [await rankings.image("j", index) for index in range(3)] == [b"\x00a", b"b", None]
    assert await rankings.names("j") == ["Füße", "猫"]
    for key in (keys.ranking_images("j"), keys.ranking_names("j")):
        assert 0 < await redis.ttl(key) <= keys.RANKING_IMAGES_TTL_S


async def test_what_is_put_again_replaces_what_was_there(rankings: RankingStore) -> None:
    await rankings.put("j", images=[b"a", b"b"], names=["cat"])
    await rankings.put("j", images=[b"c"], names=[])
    assert [await rankings.image("j", index) for index in range(2)] == [b"c", None]
    assert await rankings.names("j") == []


async def test_nothing_is_left_after_deleting(rankings: RankingStore, redis: Redis) -> None:
    await rankings.put("j", images=[b"a"], names=["cat"])
    await rankings.delete("j")
    assert await rankings.image_count("j") == 0
    assert await redis.keys() == []
