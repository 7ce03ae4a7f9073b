"""Teaching: an example is stored once with its job, also if the request is sent again."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image

from app.errors import ConflictError, NotFoundError
from app.services.teaching import NewExample
from app.storage import keys
from app.storage.jobs import Job
from app.storage.names import CategoryName
from tests.services.examples import CAT, all_jobs, an_example, ended


def names(*texts: str) -> tuple[CategoryName, ...]:
    return tuple(map(CategoryName, texts))


async def test_an_example_repeated_after_the_store_broke_down_is_kept_once(wire, monkeypatch) -> None:
    async with wire() as live:
        once, add = [ConnectionError()], live.engine.add

        async def breaks_down_once(job: Job) -> None:
            if once:
                raise once.pop()
            await add(job)

        monkeypatch.setattr(live.engine, "add", breaks_down_once)
        repeated = replace(an_example(), id="1" * 32)
        with pytest.raises(ConnectionError):
            await live.teaching.teach(repeated)
        jobs = [(await live.teaching.teach(repeated))[0] for _ in range(2)]
        assert (await ended(live, jobs[0])).status == "succeeded"
        assert {job.id for job in await all_jobs(live.jobs)} == {"1" * 32}
        assert len(await live.categories.examples(CAT)) == 1


async def test_an_example_is_known_whichever_release_of_pillow_wrote_its_mask(wire) -> None:
    async with wire() as live:
        job, record = await live.teaching.teach(an_example())
        await ended(live, job)
        (example,) = await live.categories.examples(CAT)
        file = io.BytesIO()
        Image.fromarray(an_example().mask).save(file, "PNG", compress_level=0)
        assert file.getvalue() != await live.redis.hget(keys.example(record.id, example.id), "mask")
        await live.redis.hset(keys.example(record.id, example.id), "mask", file.getvalue())
        assert (await live.teaching.accept(an_example())).repeated
        # One that is damaged is the same as no other.
        await live.redis.hset(keys.example(record.id, example.id), "mask", file.getvalue()[:50])
        assert not (await live.teaching.accept(an_example())).repeated


async def test_an_example_repeated_long_after_its_job_ended_is_one_more(wire) -> None:
    async with wire() as live:
        again = replace(an_example(), id="1" * 32)
        jobs = []
        for _ in range(2):
            job, _ = await live.teaching.teach(again)
            jobs.append(await ended(live, job))
        assert [job.status for job in jobs] == ["succeeded", "succeeded"]
        assert len({job.id for job in jobs}) == len(await live.categories.examples(CAT)) == 2


async def test_in_other_letters_it_is_the_same_category_with_the_same_words(wire) -> None:
    async with wire() as live:
        await live.teaching.teach(replace(an_example("Straße"), prompts=names("Kitty")))
        job, record = await live.teaching.teach(
            replace(an_example("STRASSE"), prompts=names("KITTY", "road", "straße"))
        )
        assert (job.category, record.name, record.prompts) == ("Straße", "Straße", ("Kitty", "road"))


async def test_the_job_of_a_newer_example_supersedes_the_one_before(wire) -> None:
    async with wire(worker=False) as live:
        first, _ = await live.teaching.teach(an_example())
        second, record = await live.teaching.teach(an_example(seed=5))
        assert (second.generation, record.generation, record.job) == (2, 2, second.id)
        assert [(await live.jobs.get(job.id)).status for job in (first, second)] == ["superseded", "queued"]
        counted = {"kind": "tune", "outcome": "superseded"}
        assert live.metrics.registry.get_sample_value("exemplar_jobs_total", counted) == 1


async def test_at_the_limit_an_example_is_refused_and_leaves_no_job(wire) -> None:
    async with wire(worker=False, max_examples=1) as live:
        job, _ = await live.teaching.teach(an_example())
        with pytest.raises(ConflictError, match="EXEMPLAR_MAX_EXAMPLES"):
            await live.teaching.teach(an_example(seed=5))
        assert [each.id for each in await all_jobs(live.jobs)] == [job.id]
        replacing, _ = await live.teaching.teach(replace(an_example(seed=5), replace=True))
        assert [each.id for each in await all_jobs(live.jobs, status="queued")] == [replacing.id]


async def test_forgetting_an_example_tunes_on_those_that_are_left(wire) -> None:
    async with wire() as live:
        for seed in (3, 5):
            await live.teaching.teach(an_example(seed=seed))
        first, second = await live.categories.examples(CAT)
        job = await live.teaching.forget(CAT, first.id)
        assert (await ended(live, job)).status == "succeeded"
        with pytest.raises(NotFoundError, match="no example"):
            await live.teaching.forget(CAT, first.id)
        assert await live.teaching.forget(CAT, second.id) is None
        assert (await live.categories.get(CAT)).adapter is None
        with pytest.raises(NotFoundError, match="no category"):
            await live.teaching.forget(CategoryName("dog"), first.id)


class TestDeletedMeanwhile:
    """Another client deletes the category while one teaches it."""

    async def test_before_an_example_that_it_had_is_looked_at(self, wire, monkeypatch) -> None:
        async with wire() as live:
            await live.teaching.teach(an_example())
            same = live.teaching._same_example

            async def found_and_deleted(given: NewExample) -> str | None:
                found = await same(given)
                await live.categories.delete(CAT)
                return found

            monkeypatch.setattr(live.teaching, "_same_example", found_and_deleted)
            accepted = await live.teaching.accept(an_example())
            assert not accepted.repeated
            assert (await ended(live, accepted.job)).status == "succeeded"
            assert len(await live.categories.examples(CAT)) == 1

    async def test_after_the_example_was_stored(self, wire, monkeypatch) -> None:
        async with wire() as live:
            add = live.engine.add

            async def deletes_the_category(job: Job) -> None:
                await add(job)
                await live.categories.delete(CAT)

            monkeypatch.setattr(live.engine, "add", deletes_the_category)
            with pytest.raises(ConflictError, match="was deleted while it was taught"):
                await live.teaching.accept(an_example())
