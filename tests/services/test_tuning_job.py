"""The tuning job: idempotent per generation, whatever dies when; never worse than the words alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from docket import Worker

from app.method.selection import Outcome, Pieces, select
from app.method.tuning import CategoryTuning
from app.services.tuning_job import make_shot
from app.storage import keys
from app.storage.jobs import ENDED, Job
from app.storage.names import CategoryName
from app.wiring import Service
from tests.services.examples import CAT, all_jobs, an_example, ended

LONG = 100_000


async def step_of(live: Service, job: Job, *, at_least: int) -> None:
    async with asyncio.timeout(20):
        while (await live.jobs.get(job.id)).step < at_least:
            await asyncio.sleep(0.005)


class TestIdempotence:
    async def test_a_job_that_committed_and_died_only_says_so(self, wire) -> None:
        async with wire() as live:
            job, _ = await live.teaching.teach(an_example())
            first = await ended(live, job)
        async with wire(worker=False) as live:
            # As if its process had died between the commit and the record's last change.
            await live.redis.hset(keys.job(job.id), mapping={"status": '"running"', "adapter_version": "null"})
            await live.tuning_job.run(replace(await live.jobs.get(job.id)))
            again = await live.jobs.get(job.id)
            assert (again.status, again.adapter_version) == ("succeeded", first.adapter_version)
            assert [info.version for info in await live.categories.versions(CAT)] == [1]

    async def test_two_workers_on_one_job_commit_once(self, wire) -> None:
        async with wire(worker=False, tune_steps=30) as live:
            job, _ = await live.teaching.teach(an_example())
            await live.jobs.start(job.id, steps=30)
            await asyncio.gather(live.tuning_job.run(job), live.tuning_job.run(job))
            after = await live.jobs.get(job.id)
            (version,) = await live.categories.versions(CAT)
            assert after.status == "succeeded"
            assert after.adapter_version == version.version == (await live.categories.get(CAT)).adapter.version

    async def test_a_process_that_died_before_queueing_the_job(self, wire, monkeypatch) -> None:
        async def dies(_: Job) -> None:
            raise ConnectionError

        async with wire(worker=False) as live:
            monkeypatch.setattr(live.engine, "add", dies)
            with pytest.raises(ConnectionError):
                await live.teaching.teach(an_example())
            (job,) = await all_jobs(live.jobs)
        async with wire() as live:
            assert (await ended(live, job)).status == "succeeded"

    async def test_a_queued_job_outlives_the_queue(self, wire) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(an_example())
            await live.redis.delete(*[key async for key in live.redis.scan_iter("exemplar:docket*")])
        async with wire() as live:
            assert (await ended(live, job)).status == "succeeded"


@pytest.mark.parametrize(("ious", "told"), [((0.59, 0.3), True), ((0.3, 0.59), True), ((0.61, 0.3), False)])
async def test_an_example_that_is_not_learned_is_told(wire, monkeypatch, ious: tuple[float, float], told: bool) -> None:
    """The overlap is that of the better of adapter and words."""

    def selected(_: CategoryTuning) -> Pieces[Outcome]:
        yield
        return Outcome(None, None, None, 0.0, *ious)

    monkeypatch.setattr("app.services.tuning_job.select", selected)
    async with wire() as live:
        job, _ = await live.teaching.teach(an_example())
        assert (await ended(live, job)).not_learned is told
        without = replace(an_example(seed=5), mask=np.zeros((31, 47), dtype=bool))
        job, _ = await live.teaching.teach(without)
        assert (await ended(live, job)).not_learned is told  # a photo without it judges nothing


class TestStopping:
    async def test_a_job_in_hand_is_given_back_and_finished_after_the_restart(self, wire) -> None:
        async with wire(tune_steps=LONG) as live:
            job, _ = await live.teaching.teach(an_example())
            await step_of(live, job, at_least=3)
        async with wire(worker=False) as live:
            assert (await live.jobs.get(job.id)).status == "queued"
        async with wire(tune_steps=3) as live:
            last = await ended(live, job)
            assert (last.status, last.deaths) == ("succeeded", 0)

    async def test_cancelling_after_the_last_step_changes_nothing_either(self, wire, monkeypatch) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(an_example())
            await live.jobs.start(job.id, steps=3)
            commit = live.tuning_job._commit

            async def cancelled_before(*arguments: object) -> None:
                assert await live.engine.cancel(await live.jobs.get(job.id))
                await commit(*arguments)

            monkeypatch.setattr(live.tuning_job, "_commit", cancelled_before)
            await live.tuning_job.run(job)
            assert (await live.jobs.get(job.id)).status == "cancelled"
            assert (await live.categories.get(CAT)).adapter is None

    async def test_a_result_that_is_in_use_is_not_cancelled(self, wire, monkeypatch) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(an_example())
            await live.jobs.start(job.id, steps=3)
            conclude = live.tuning_job._conclude

            async def cancelled_before(*arguments: object) -> None:
                assert not await live.engine.cancel(await live.jobs.get(job.id))
                await conclude(*arguments)

            monkeypatch.setattr(live.tuning_job, "_conclude", cancelled_before)
            await live.tuning_job.run(job)
            assert (await live.jobs.get(job.id)).status == "succeeded"


class TestStoppingBesideTheSteps:
    """Before the first step and after the last a job is stopped as between them."""

    async def taught(self, live: Service, count: int) -> Job:
        for number in range(count):
            job, _ = await live.teaching.teach(an_example(seed=number))
        return job

    async def test_while_examples_are_encoded(self, wire, monkeypatch) -> None:
        async with wire(worker=False) as live:
            job, encoded = await self.taught(live, 5), []

            def cancels_after_two(*arguments: object) -> object:
                encoded.append(1)
                if len(encoded) == 2:
                    asyncio.run_coroutine_threadsafe(live.engine.cancel(job), loop).result()
                return make_shot(*arguments)

            loop = asyncio.get_running_loop()
            monkeypatch.setattr("app.services.tuning_job.make_shot", cancels_after_two)
            await live.jobs.start(job.id, steps=3)
            await live.tuning_job.run(job)
            assert len(encoded) == 2
            assert (await live.jobs.get(job.id)).status == "cancelled"

    async def test_while_its_outcome_is_weighed(self, wire, monkeypatch) -> None:
        async with wire(worker=False) as live:
            job, weighed = await self.taught(live, 5), []

            def cancels_after_two(tuning: CategoryTuning) -> Iterator[None]:
                for piece in select(tuning):
                    weighed.append(1)
                    if len(weighed) == 2:
                        asyncio.run_coroutine_threadsafe(live.engine.cancel(job), loop).result()
                    yield piece

            loop = asyncio.get_running_loop()
            monkeypatch.setattr("app.services.tuning_job.select", cancels_after_two)
            await live.jobs.start(job.id, steps=3)
            await live.tuning_job.run(job)
            assert len(weighed) == 2
            record = await live.categories.get(CAT)
            assert record.adapter is None


class TestFailing:
    async def test_a_job_whose_example_cannot_be_read_fails_and_says_so(self, wire) -> None:
        async with wire(worker=False) as live:
            job, record = await live.teaching.teach(an_example())
            (example,) = await live.categories.examples(CAT)
            await live.redis.hset(keys.example(record.id, example.id), "image", b"rubbish")
        async with wire() as live:
            failed = await ended(live, job)
            assert failed.status == "failed"
            assert "not an image" in failed.error
            assert (await live.categories.get(CAT)).adapter is None

    async def test_a_category_emptied_under_its_job_is_no_failure(self, wire) -> None:
        async with wire(worker=False) as live:
            job, record = await live.teaching.teach(an_example())
            await live.jobs.start(job.id, steps=3)
            tuning = asyncio.create_task(live.tuning_job.run(job))
            await live.redis.delete(keys.example_ids(record.id))
            await live.redis.hset(keys.category(record.id), "generation", "2")
            await tuning
            assert (await live.jobs.get(job.id)).status == "superseded"

    async def test_a_bug_fails_the_job_without_its_details(self, wire, monkeypatch, caplog) -> None:
        async with wire() as live:

            async def bug(*_: object) -> None:
                raise KeyError("secret")

            monkeypatch.setattr(live.tuning_job, "_shots", bug)
            job, _ = await live.teaching.teach(an_example())
            failed = await ended(live, job)
            assert failed.status == "failed"
            assert failed.error == "Internal error (KeyError); the log has the rest."
            assert "secret" in caplog.text

    async def test_a_job_under_which_worker_after_worker_dies_is_given_up(self, wire) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(an_example())
            execution = type("Redelivered", (), {"redelivered": True})()
            for _ in range(4):
                assert await live.jobs.count_death(job.id) < 5
            await live.engine._run(job.id, execution)
            failed = await live.jobs.get(job.id)
            assert (failed.status, failed.error) == ("failed", "The worker died 5 times under this job.")


class TestOutcome:
    async def test_words_alone_are_told_as_such(self, wire, monkeypatch) -> None:
        async with wire() as live:

            def measured(tuning: CategoryTuning) -> Pieces[Outcome]:
                """The measurements of a category that its words mark better; the decision is the service's own."""
                yield
                return Outcome(tuning.tuned(), None, None, 0.0, example_iou=0.25, zero_shot_example_iou=0.5)

            monkeypatch.setattr("app.services.tuning_job.select", measured)
            job, _ = await live.teaching.teach(an_example())
            assert (await ended(live, job)).example_iou == 0.25
            record = await live.categories.get(CAT)
            assert (record.adapter.example_iou, record.adapter.zero_shot_example_iou) == (0.25, 0.5)

    async def test_a_category_named_like_one_of_its_words_is_no_rival(self, wire, monkeypatch) -> None:
        """Rex is a dog, and dogs are taught too: one prompt on both sides would find nothing."""
        rivals: list[tuple[str, ...]] = []

        def noted(tuning: CategoryTuning) -> Pieces[Outcome]:
            rivals.append(tuple(query.words[0] for query in tuning._others.queries[1:]))
            return select(tuning)

        monkeypatch.setattr("app.services.tuning_job.select", noted)
        async with wire() as live:
            for name, words in (("Dog", ()), ("cat", ()), ("Rex", (CategoryName("dog"),))):
                example = replace(an_example(name), prompts=words)
                assert (await ended(live, (await live.teaching.teach(example))[0])).status == "succeeded"
        assert rivals == [(), ("Dog",), ("cat",)]

    async def test_jobs_of_several_categories_all_end(self, wire) -> None:
        async with wire(job_concurrency=2) as live:
            jobs = [(await live.teaching.teach(an_example(f"c{n}", seed=n)))[0] for n in range(5)]
            assert {(await ended(live, job)).status for job in jobs} == {"succeeded"}
            assert all(job.status in ENDED for job in await all_jobs(live.jobs))


async def test_a_worker_that_falls_over_begins_anew(wire, monkeypatch, caplog) -> None:
    falls, run_forever = [KeyError("secret")], Worker.run_forever

    async def falls_over_once(self: Worker) -> None:
        if falls:
            raise falls.pop()
        await run_forever(self)

    monkeypatch.setattr(Worker, "run_forever", falls_over_once)
    monkeypatch.setattr("app.wiring._WORKER_PAUSE_S", 0.01)
    async with wire() as live:
        job, _ = await live.teaching.teach(an_example())
        assert (await ended(live, job)).status == "succeeded"
    assert "is restarted" in caplog.text
    assert "given back" not in caplog.text


async def test_a_job_tells_what_it_made_also_after_a_rollback(wire) -> None:
    async with wire() as live:
        for _ in range(2):
            job, _ = await live.teaching.teach(an_example())
            await ended(live, job)
        await live.categories.rollback(CAT, 1)
    async with wire(worker=False) as live:
        # As if its process had died before the record's last change, and somebody had gone back meanwhile.
        await live.redis.hset(keys.job(job.id), mapping={"status": '"running"', "adapter_version": "null"})
        await live.tuning_job.run(await live.jobs.get(job.id))
        assert (await live.jobs.get(job.id)).adapter_version == 2
        assert (await live.categories.get(CAT)).adapter.version == 1


def test_a_small_thing_on_a_large_photo_is_not_lost(tiny) -> None:
    mask = np.zeros((1009, 1511), dtype=bool)
    mask[500, 700] = True
    photo = np.zeros((*mask.shape, 3), dtype=np.uint8)
    for marked in (mask, ~mask):
        shot = make_shot(tiny, photo, marked)
        inside, outside = shot.sides(tiny.patch_grid_hw)
        assert min(inside.sum(), outside.sum()) > 0
