"""The register of unreadable records: each is logged once and counted until it is gone."""

from __future__ import annotations

from redis.asyncio import Redis

from app.storage.unreadable import Unreadable, UnreadableRecord

JOB = UnreadableRecord("job", "1", "status: not JSON", "exemplar:job:1")
OTHER = UnreadableRecord("job", "2", "status: not JSON", "exemplar:job:2")
ADAPTER = UnreadableRecord("adapter", "cat, version 3", "not JSON", "versions", "3")


def test_a_record_is_logged_once_and_counted_until_it_is_forgotten(caplog) -> None:
    counts: list[tuple[str, int]] = []
    register = Unreadable(lambda kind, number: counts.append((kind, number)))
    for record in (JOB, JOB, OTHER, ADAPTER, JOB):
        register.note(record)
    assert [record.getMessage() for record in caplog.records] == [
        "the stored job '1' can't be read and is skipped: status: not JSON",
        "the stored job '2' can't be read and is skipped: status: not JSON",
        "the stored adapter 'cat, version 3' can't be read and is skipped: not JSON",
    ]
    register.forget(JOB.key)
    register.forget(JOB.key)
    register.forget("versions", "4")
    assert counts == [("job", 1), ("job", 2), ("adapter", 1), ("job", 1)]
    assert list(register) == [OTHER, ADAPTER]
    assert (register.find(JOB.key), register.find("versions"), register.find("versions", "3")) == (None, None, ADAPTER)


async def test_what_is_gone_from_the_store_is_forgotten(redis: Redis) -> None:
    register = Unreadable()
    await register.refresh(redis)
    for record in (JOB, OTHER, ADAPTER):
        register.note(record)
    await redis.set(JOB.key, "junk")
    await redis.hset(ADAPTER.key, "3", "junk")
    await register.refresh(redis)
    assert list(register) == [JOB, ADAPTER]
    await redis.delete(ADAPTER.key)
    await redis.set(ADAPTER.key, "of another type")  # there is still something to delete
    await register.refresh(redis)
    assert list(register) == [JOB, ADAPTER]
    await redis.delete(ADAPTER.key, JOB.key)
    await register.refresh(redis)
    assert list(register) == []
