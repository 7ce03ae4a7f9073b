"""Job records: a job ends once, and every change is published."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.errors import OverloadedError
from app.storage import jobs as jobs_module
from app.storage import keys
from app.storage.jobs import ENDED, Job, JobStore
from tests.chaos.proxy import Proxy
from tests.services.examples import all_jobs


@pytest.fixture
def jobs(redis: Redis) -> JobStore:
    return JobStore(redis, redis, ttl_s=61)


async def new(jobs: JobStore, *, category: str | None = "cat") -> Job:
    return await jobs.create("tune", category=category, steps=5)


async def test_a_new_job_is_read_back(jobs: JobStore) -> None:
    job = await new(jobs)
    assert await jobs.get(job.id) == job
    assert (job.status, job.progress, job.started_at, job.ended) == ("queued", 0, None, False)
    assert await jobs.get("other") is None


async def test_a_field_of_a_newer_version_is_ignored(jobs: JobStore, redis: Redis) -> None:
    job = await new(jobs)
    await redis.hset(keys.job(job.id), "priority", '"high"')
    assert await jobs.get(job.id) == job
    assert await all_jobs(jobs) == [job]


async def test_its_life(jobs: JobStore) -> None:
    job = await new(jobs)
    assert await jobs.start(job.id, steps=5)
    assert await jobs.step(job.id, step=2, steps=5, loss=0.25)
    running = await jobs.get(job.id)
    assert (running.status, running.step, running.progress) == ("running", 2, 0.4)
    assert running.loss == 0.25
    assert await jobs.requeue(job.id)
    assert (await jobs.get(job.id)).status == "queued"
    assert await jobs.start(job.id, steps=5)
    assert (await jobs.get(job.id)).step == 0
    assert await jobs.end(job.id, "succeeded", adapter_version=3)
    done = await jobs.get(job.id)
    assert (done.status, done.progress, done.adapter_version, done.ended) == ("succeeded", 1, 3, True)


@pytest.mark.parametrize("status", sorted(ENDED))
async def test_an_end_is_final(jobs: JobStore, redis: Redis, status: jobs_module.Status) -> None:
    job = await new(jobs)
    assert await redis.ttl(keys.job(job.id)) == -1
    assert await jobs.end(job.id, status, error="why")
    ended = await jobs.get(job.id)
    assert 0 < await redis.ttl(keys.job(job.id)) <= 61
    for change in (
        jobs.start(job.id, steps=5),
        jobs.step(job.id, step=1, steps=5),
        jobs.requeue(job.id),
        *(jobs.end(job.id, other) for other in sorted(ENDED)),
    ):
        assert not await change
    assert await jobs.get(job.id) == ended


async def test_of_many_ends_at_once_one_holds(jobs: JobStore) -> None:
    job = await new(jobs)
    answers = await asyncio.gather(*(jobs.end(job.id, status) for status in sorted(ENDED) * 5))
    assert answers.count(True) == 1


async def test_an_end_whose_reply_was_lost_is_sent_again_and_counts_once(retrying: Redis, proxy: Proxy) -> None:
    jobs = JobStore(retrying, retrying, ttl_s=61)
    job = await new(jobs)
    proxy.lose_reply(to=b"cancelled")
    assert await jobs.end(job.id, "cancelled")
    assert proxy.lost == 1
    assert (await jobs.get(job.id)).status == "cancelled"
    assert not await jobs.end(job.id, "cancelled")


async def test_only_a_running_job_takes_steps(jobs: JobStore) -> None:
    assert not await jobs.step((await new(jobs)).id, step=1, steps=5)
    assert not await jobs.step("other", step=1, steps=5)
    assert not await jobs.end("other", "failed")


async def test_deaths_are_counted(jobs: JobStore) -> None:
    job = await new(jobs)
    assert [await jobs.count_death(job.id) for _ in range(3)] == [1, 2, 3]
    assert (await jobs.get(job.id)).deaths == 3


async def test_the_list_is_the_newest_first_and_drops_what_expired(jobs: JobStore, redis: Redis) -> None:
    first, second, third = await new(jobs), await new(jobs, category="Füße"), await new(jobs, category=None)
    await jobs.end(third.id, "failed")
    assert [job.id for job in await all_jobs(jobs)] == [third.id, second.id, first.id]
    assert [job.id for job in await all_jobs(jobs, category_id=keys.category_id("FÜSSE"))] == [second.id]
    assert [job.id for job in await all_jobs(jobs, status="failed")] == [third.id]
    await redis.delete(keys.job(second.id))
    assert [job.id for job in await all_jobs(jobs)] == [third.id, first.id]
    assert await redis.zcard(keys.JOBS) == 2


async def test_a_store_that_refuses_to_drop_what_expired_has_no_empty_list(jobs: JobStore, redis: Redis) -> None:
    await new(jobs)
    await redis.delete(keys.job((await new(jobs)).id))
    await redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(ResponseError, match="NOREPLICAS"):
            await all_jobs(jobs)
    finally:
        await redis.config_set("min-replicas-to-write", 0)
    assert len(await all_jobs(jobs)) == 1


async def test_jobs_that_have_not_ended_among_many_that_have(jobs: JobStore, redis: Redis) -> None:
    ended, waiting, running, expired, damaged = [await new(jobs) for _ in range(5)]
    await jobs.end(ended.id, "succeeded")
    await jobs.start(running.id, steps=5)
    await redis.delete(keys.job(expired.id), keys.job(damaged.id))
    await redis.set(keys.job(damaged.id), "no record")
    assert [job.id for job in await jobs.unended()] == [running.id, waiting.id]
    assert jobs.unreadable(damaged.id)
    assert await redis.zscore(keys.JOBS, expired.id) is None
    assert await jobs.unended(age_s=60) == []
    page = await jobs.page(limit=1, cursor=None, status="succeeded")
    assert ([job.id for job in page.items], page.cursor) == ([ended.id], None)


class TestEvents:
    async def test_now_every_change_and_the_end(self, jobs: JobStore) -> None:
        job = await new(jobs)
        seen: list[Job] = []

        async def follow() -> None:
            async with jobs.events(job.id) as states:
                async for state in states:
                    seen.append(state)

        following = asyncio.create_task(follow())
        for change in (jobs.start(job.id, steps=5), jobs.step(job.id, step=1, steps=5), jobs.end(job.id, "failed")):
            before = len(seen)
            while len(seen) == before and not seen:
                await asyncio.sleep(0.001)
            await change
            while seen[-1] != await jobs.get(job.id):
                await asyncio.sleep(0.001)
        await following
        assert [(state.status, state.step) for state in seen] == [
            ("queued", 0), ("running", 0), ("running", 1), ("failed", 1),
        ]  # fmt: skip

    async def test_a_lost_message_delays_and_no_more(self, jobs, redis, monkeypatch) -> None:
        monkeypatch.setattr(jobs_module, "_LOOK_AGAIN_S", 0.05)
        job = await new(jobs)
        async with jobs.events(job.id) as events, asyncio.timeout(5):
            assert (await anext(events)).status == "queued"
            await redis.hset(keys.job(job.id), "status", '"cancelled"')  # without a message
            assert [state.status async for state in events] == ["cancelled"]

    async def test_a_job_that_is_gone_ends_the_stream(self, jobs, redis, monkeypatch) -> None:
        monkeypatch.setattr(jobs_module, "_LOOK_AGAIN_S", 0.05)
        job = await new(jobs)
        async with jobs.events(job.id) as events:
            await anext(events)
            await redis.delete(keys.job(job.id))
            assert [state async for state in events] == []
        async with jobs.events("other") as events:
            assert [state async for state in events] == []

    async def test_one_stream_too_many_is_refused_and_one_that_ends_makes_room(self, jobs, monkeypatch) -> None:
        monkeypatch.setattr(jobs_module, "MAX_STREAMS", 2)
        job = await new(jobs)
        async with jobs.events(job.id) as first, jobs.events(job.id):
            assert await anext(first) == job
            for _ in range(3):  # a refusal takes no place either
                with pytest.raises(OverloadedError) as refused:
                    async with jobs.events(job.id):
                        pass
            assert refused.value.retry_after_s
        async with jobs.events(job.id) as again, jobs.events(job.id):
            assert await anext(again) == job

    async def test_a_stream_that_is_cut_gives_its_connection_back(self, database, redis) -> None:
        async with Redis.from_url(database, max_connections=1) as streams:
            jobs = JobStore(redis, streams, ttl_s=61)
            job = await new(jobs)
            for _ in range(3):
                shown = asyncio.Event()

                async def follow(shown: asyncio.Event = shown) -> None:
                    async with jobs.events(job.id) as states:
                        async for _ in states:
                            shown.set()

                following = asyncio.create_task(follow())
                await asyncio.wait_for(shown.wait(), 5)
                await asyncio.sleep(0.05)  # it waits for a change by now
                following.cancel()
                await asyncio.wait([following], timeout=5)
                assert following.cancelled()
