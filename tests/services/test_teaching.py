"""The tuning job: idempotent per generation, whatever dies when; never worse than the words alone."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace

import numpy as np
from PIL import Image

from app.method.masks import mask_to_png
from app.services.decode import decode_photo
from app.services.job_engine import JobEngine
from app.services.teaching import Lesson
from app.storage import keys
from app.storage.categories import new_example
from app.storage.jobs import ENDED, Job
from app.wiring import Service

LONG = 100_000


def lesson(name: str = "cat", *, seed: int = 3) -> Lesson:
    pixels = np.random.default_rng(seed).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    mask = np.zeros((31, 47), dtype=bool)
    mask[5:20, 10:30] = True
    return Lesson(name=name, photo=decode_photo(file.getvalue(), max_pixels=10_000), mask=mask)


async def ended(live: Service, job: Job) -> Job:
    async with asyncio.timeout(20):
        async with live.jobs.events(job.id) as states:
            async for state in states:
                last = state
    assert last.ended
    return last


async def step_of(live: Service, job: Job, *, at_least: int) -> None:
    async with asyncio.timeout(20):
        while (await live.jobs.get(job.id)).step < at_least:
            await asyncio.sleep(0.005)


class TestIdempotence:
    async def test_a_job_found_while_its_example_is_being_stored_waits_for_it(self, wire) -> None:
        """A process that starts queues every job that there is: one may be between its record and its example."""
        async with wire(worker=False) as live:
            shown = lesson()
            job = await live.jobs.create("tune", category="cat", steps=3)
            await live.jobs.start(job.id, steps=3)
            found = asyncio.create_task(live.teaching.tune(job))
            await asyncio.sleep(0.1)
            example = new_example(
                image=shown.photo.raw, media_type="image/png", mask=mask_to_png(shown.mask), width=47, height=31,
                area=300, sha256=shown.photo.sha256,
            )  # fmt: skip
            await live.teaching._categories.teach("cat", example, prompts=(), replace=False, job_id=job.id)
            await found
            assert (await live.jobs.get(job.id)).status == "succeeded"

    async def test_a_job_that_committed_and_died_only_says_so(self, wire) -> None:
        async with wire() as live:
            job, _ = await live.teaching.teach(lesson())
            first = await ended(live, job)
        async with wire(worker=False) as live:
            # As if its process had died between the commit and the record's last change.
            await live.redis.hset(keys.job(job.id), mapping={"status": '"running"', "adapter_version": "null"})
            await live.teaching.tune(replace(await live.jobs.get(job.id)))
            again = await live.jobs.get(job.id)
            assert (again.status, again.adapter_version) == ("succeeded", first.adapter_version)
            assert [info.version for info in await live.categories.versions("cat")] == [1]

    async def test_two_workers_on_one_job_commit_once(self, wire) -> None:
        async with wire(worker=False, tune_steps=30) as live:
            job, _ = await live.teaching.teach(lesson())
            await live.jobs.start(job.id, steps=30)
            await asyncio.gather(live.teaching.tune(job), live.teaching.tune(job))
            after = await live.jobs.get(job.id)
            (version,) = await live.categories.versions("cat")
            assert after.status == "succeeded"
            assert after.adapter_version == version.version == (await live.categories.get("cat")).adapter.version

    async def test_a_process_that_died_before_noting_the_generation(self, wire) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(lesson())
            await live.redis.hset(keys.job(job.id), "generation", "0")
            await live.redis.delete(*[key async for key in live.redis.scan_iter("exemplar:docket*")])
        async with wire() as live:
            assert (await ended(live, job)).status == "succeeded"

    async def test_a_process_that_died_before_storing_the_example(self, wire) -> None:
        async with wire(worker=False) as live:
            job = await live.jobs.create("tune", category="cat", steps=3)
        async with wire() as live:
            assert (await ended(live, job)).status == "superseded"

    async def test_a_queued_job_outlives_the_queue(self, wire) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(lesson())
            await live.redis.delete(*[key async for key in live.redis.scan_iter("exemplar:docket*")])
        async with wire() as live:
            assert (await ended(live, job)).status == "succeeded"


class TestStopping:
    async def test_a_job_in_hand_is_given_back_and_finished_after_the_restart(self, wire) -> None:
        async with wire(tune_steps=LONG) as live:
            job, _ = await live.teaching.teach(lesson())
            await step_of(live, job, at_least=3)
        async with wire(worker=False) as live:
            assert (await live.jobs.get(job.id)).status == "queued"
        async with wire(tune_steps=3) as live:
            last = await ended(live, job)
            assert (last.status, last.deaths) == ("succeeded", 0)

    async def test_cancelling_after_the_last_step_changes_nothing_either(self, wire, monkeypatch) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(lesson())
            await live.jobs.start(job.id, steps=3)
            commit = live.teaching._commit

            async def cancelled_before(*arguments: object) -> None:
                assert await live.engine.cancel(await live.jobs.get(job.id))
                await commit(*arguments)

            monkeypatch.setattr(live.teaching, "_commit", cancelled_before)
            await live.teaching.tune(job)
            assert (await live.jobs.get(job.id)).status == "cancelled"
            assert (await live.categories.get("cat")).adapter is None

    async def test_a_result_that_is_in_use_is_not_cancelled(self, wire, monkeypatch) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(lesson())
            await live.jobs.start(job.id, steps=3)
            conclude = live.teaching._conclude

            async def cancelled_before(*arguments: object) -> None:
                assert not await live.engine.cancel(await live.jobs.get(job.id))
                await conclude(*arguments)

            monkeypatch.setattr(live.teaching, "_conclude", cancelled_before)
            await live.teaching.tune(job)
            assert (await live.jobs.get(job.id)).status == "succeeded"


class TestFailing:
    async def test_a_job_whose_example_cannot_be_read_fails_and_says_so(self, wire) -> None:
        async with wire(worker=False) as live:
            job, record = await live.teaching.teach(lesson())
            (example,) = await live.categories.examples("cat")
            await live.redis.hset(keys.example(record.id, example.id), "image", b"rubbish")
        async with wire() as live:
            failed = await ended(live, job)
            assert failed.status == "failed"
            assert "not an image" in failed.error
            assert (await live.categories.get("cat")).adapter is None

    async def test_a_category_emptied_under_its_job_is_no_failure(self, wire) -> None:
        async with wire(worker=False) as live:
            job, record = await live.teaching.teach(lesson())
            await live.jobs.start(job.id, steps=3)
            tuning = asyncio.create_task(live.teaching.tune(job))
            await live.redis.delete(keys.example_ids(record.id))
            await live.redis.hset(keys.category(record.id), "generation", "2")
            await tuning
            assert (await live.jobs.get(job.id)).status == "superseded"

    async def test_a_bug_fails_the_job_without_its_details(self, wire, monkeypatch, caplog) -> None:
        async with wire() as live:

            async def bug(*_: object) -> None:
                raise KeyError("secret")

            monkeypatch.setattr(live.teaching, "_shots", bug)
            job, _ = await live.teaching.teach(lesson())
            failed = await ended(live, job)
            assert failed.status == "failed"
            assert failed.error == "Internal error (KeyError); the log has the rest."
            assert "secret" in caplog.text

    async def test_a_job_under_which_worker_after_worker_dies_is_given_up(self, wire) -> None:
        async with wire(worker=False) as live:
            job, _ = await live.teaching.teach(lesson())
            execution = type("Redelivered", (), {"redelivered": True})()
            for _ in range(4):
                assert await live.jobs.count_death(job.id) < 5
            await live.engine._run(job.id, execution)
            failed = await live.jobs.get(job.id)
            assert (failed.status, failed.error) == ("failed", "The worker died 5 times under this job.")


class TestOutcome:
    async def test_words_alone_are_told_as_such(self, wire, monkeypatch) -> None:
        async with wire() as live:
            iou = "app.method.tuning.CategoryTuning.example_iou"
            monkeypatch.setattr(iou, lambda _, adapted: 0.5 - adapted / 4)
            job, _ = await live.teaching.teach(lesson())
            assert (await ended(live, job)).example_iou == 0.25
            record = await live.categories.get("cat")
            assert (record.adapter.example_iou, record.adapter.zero_shot_example_iou) == (0.25, 0.5)

    async def test_jobs_of_several_categories_all_end(self, wire) -> None:
        async with wire(job_concurrency=2) as live:
            jobs = [(await live.teaching.teach(lesson(f"c{n}", seed=n)))[0] for n in range(5)]
            assert {(await ended(live, job)).status for job in jobs} == {"succeeded"}
            assert all(job.status in ENDED for job in await live.jobs.list())


async def test_a_worker_that_falls_over_begins_anew(wire, monkeypatch, caplog) -> None:
    falls, work = [KeyError("secret")], JobEngine.work

    async def falls_over_once(self: JobEngine) -> None:
        if falls:
            raise falls.pop()
        await work(self)

    monkeypatch.setattr(JobEngine, "work", falls_over_once)
    monkeypatch.setattr("app.wiring._WORKER_PAUSE_S", 0.01)
    async with wire() as live:
        job, _ = await live.teaching.teach(lesson())
        assert (await ended(live, job)).status == "succeeded"
    assert "begins anew" in caplog.text
