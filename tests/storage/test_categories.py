"""Categories in the store: generations, versions, and what is left after a change."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import pytest
import torch
from redis.asyncio import Redis

from app.errors import PreconditionFailedError
from app.method.adapter import Adapter
from app.method.parameters import Parameters, TokenRows
from app.storage import keys
from app.storage.categories import CategoryStore
from app.storage.category_records import Example, Seen, new_example
from app.storage.jobs import Job, JobStore, new_job
from app.storage.names import CategoryName
from tests.chaos.proxy import Proxy
from tests.services.examples import all_jobs


def parameters_of(weight: torch.Tensor) -> Parameters:
    """One changed parameter, and one row of the token `5`."""
    return Parameters({"w": weight}, TokenRows(torch.tensor([5]), torch.tensor([[0.5, -0.5, 2.0]])))


ADAPTER = Adapter(
    backbone="tiny",
    revision="r",
    category="cat",
    version=1,
    prompts=("cat",),
    layers=(0, 3),
    ensemble=(0.25, 0.75),
    example_iou=0.7,
    zero_shot_example_iou=0.3,
    created_at="2026-01-01T00:00:00.000Z",
    parameters=parameters_of(torch.arange(6, dtype=torch.float32).reshape(2, 3)),
)


def example() -> Example:
    return new_example(
        image=b"\x00photo", media_type="image/png", mask=b"mask", width=7, height=5, area=3, sha256="abc"
    )


@pytest.fixture
def store(redis: Redis) -> CategoryStore:
    return CategoryStore(redis, versions_kept=2, max_examples=3, job_ttl_s=61)


@pytest.fixture
def jobs(redis: Redis) -> JobStore:
    return JobStore(redis, redis, ttl_s=61)


def job(job_id: str = "j", name: str = "cat") -> Job:
    return new_job("tune", category=name, steps=3, id=job_id)


async def teach(
    store: CategoryStore, name: str = "cat", *, job_id: str | None = None, **options
) -> tuple[int, str | None] | str:
    """Adds an example; returns the generation and the job that was superseded, or why it was refused."""
    new = new_job("tune", category=name, steps=3, id=job_id)
    taught = await store.teach(CategoryName(name), example(), **{"prompts": [], "replace": False, "job": new} | options)
    return taught if isinstance(taught, str) else (taught[0].generation, taught[1])


async def commit(store: CategoryStore, *, generation: int, name: str = "cat") -> bool:
    version = await store.next_version(keys.category_id(name))
    return await store.commit(keys.category_id(name), replace(ADAPTER, version=version), generation=generation)


class TestTeaching:
    async def test_what_is_stored_is_read_back(self, store: CategoryStore) -> None:
        given = example()
        await store.teach(CategoryName("Füße"), given, prompts=["feet", "猫"], replace=False, job=job("j1", "Füße"))
        category_id = keys.category_id("füße")
        record = await store.get(category_id)
        assert (record.name, record.words, record.examples) == ("Füße", ("Füße", "feet", "猫"), 1)
        assert (record.generation, record.job, record.adapter) == (1, "j1", None)
        assert await store.example(category_id, given.id) == given
        (info,) = await store.example_infos(category_id)
        assert asdict(info) == {name: value for name, value in asdict(given).items() if name not in ("image", "mask")}
        assert await store.example(category_id, "other") is None

    async def test_the_job_has_its_generation_from_birth(self, store: CategoryStore, jobs: JobStore) -> None:
        for generation in (1, 2):
            scheduled, _ = await store.teach(CategoryName("Füße"), example(), prompts=[], replace=False, job=new_job(
                "tune", category="Füße", steps=3
            ))  # fmt: skip
            assert scheduled.generation == generation
            assert await jobs.get(scheduled.id) == scheduled
            assert [each.id for each in await all_jobs(jobs, status="queued")] == [scheduled.id]

    async def test_each_example_is_a_generation_and_supersedes_the_job_before(self, store, jobs, redis) -> None:
        assert await teach(store, job_id="a") == (1, None)
        await jobs.start("a", steps=3)
        assert await teach(store, job_id="b") == (2, "a")
        await jobs.end("b", "succeeded")
        assert await teach(store, job_id="c", replace=True) == (3, None)
        first = await jobs.get("a")
        assert (first.status, first.error) == ("superseded", "A newer example came in.")
        assert first.finished_at is not None
        assert 0 < await redis.ttl(keys.job("a")) <= 61
        assert [(await jobs.get(id)).status for id in "bc"] == ["succeeded", "queued"]

    async def test_who_follows_a_superseded_job_is_told(self, store: CategoryStore, jobs: JobStore) -> None:
        await teach(store, job_id="a")
        async with asyncio.timeout(1.5), jobs.events("a") as states:  # sooner than a stream looks for itself
            assert (await anext(states)).status == "queued"
            await teach(store, job_id="b")
            assert (await anext(states)).status == "superseded"

    async def test_at_the_limit_nothing_is_stored(self, store: CategoryStore, redis: Redis, contents) -> None:
        for _ in range(3):
            await teach(store)
        before = await contents()
        assert await teach(store) == "full"
        assert await contents() == before
        assert (await teach(store, replace=True))[0] == 4
        assert len(await redis.keys("*:example:*")) == 1

    async def test_sent_again_because_the_answer_was_lost_it_changes_nothing(self, store, contents) -> None:
        given = example()
        await store.teach(CategoryName("cat"), given, prompts=[], replace=False, job=job("j"))
        await teach(store, job_id="k")
        before = await contents()
        for replaces in (False, True):
            again, superseded = await store.teach(
                CategoryName("cat"), given, prompts=["x"], replace=replaces, job=job("j")
            )
            assert (again.generation, superseded) == (1, None)
        assert await contents() == before

    async def test_a_word_in_other_letters_is_the_same(self, store: CategoryStore) -> None:
        await teach(store, prompts=["Kitty"])
        await teach(store, prompts=["kitty", "猫"])
        assert (await store.get("cat")).prompts == ("Kitty", "猫")

    async def test_fifty_at_once_lose_nothing(self, redis: Redis, jobs: JobStore) -> None:
        store = CategoryStore(redis, versions_kept=2, max_examples=64, max_prompts=64, job_ttl_s=61)
        answers = await asyncio.gather(*(teach(store, prompts=[f"w{n}"], job_id=str(n)) for n in range(50)))
        record = await store.get("cat")
        assert sorted(generation for generation, _ in answers) == list(range(1, 51))
        assert (record.examples, record.generation, len(record.prompts)) == (50, 50, 50)
        assert [each.id for each in await all_jobs(jobs, status="queued")] == [record.job]
        assert len(await all_jobs(jobs, status="superseded")) == 49


class TestCommitting:
    async def test_an_adapter_comes_back_bit_by_bit(self, store: CategoryStore) -> None:
        generation, _ = await teach(store)
        assert await commit(store, generation=generation)
        record = await store.get("cat")
        read = await store.adapter("cat", 1)
        assert all(torch.equal(*pair) for pair in zip(read.tensors, ADAPTER.tensors, strict=True))
        assert replace(read, parameters=None) == replace(ADAPTER, parameters=None)
        assert (record.adapter.version, record.adapter.ensemble) == (1, (0.25, 0.75))
        assert record.adapter.bytes == len(await store.adapter_bytes("cat", 1))
        assert record.adapter_generation == generation

    async def test_a_late_commit_of_an_older_generation_changes_nothing(self, store, contents) -> None:
        older, _ = await teach(store)
        newer, _ = await teach(store)
        before = await contents()
        assert not await commit(store, generation=older)
        after = await contents()
        counters = keys.counters("cat").encode()
        assert after.pop(counters) == before.pop(counters) | {b"version": b"1"}
        assert after == before
        assert await commit(store, generation=newer)
        assert not await commit(store, generation=older)
        assert (await store.get("cat")).adapter.version == 2

    async def test_a_generation_is_committed_once(self, store: CategoryStore) -> None:
        generation, _ = await teach(store)
        assert await commit(store, generation=generation)
        assert not await commit(store, generation=generation)
        assert [info.version for info in await store.versions("cat")] == [1]

    async def test_nothing_is_committed_to_a_deleted_category(self, store, redis) -> None:
        generation, _ = await teach(store)
        await store.delete("cat")
        assert not await commit(store, generation=generation)
        again, _ = await teach(store)
        assert again > generation
        assert not await commit(store, generation=generation)
        assert not await redis.keys("*:adapter:*")

    async def test_a_withdrawn_generation_is_not_committed(self, store: CategoryStore) -> None:
        generation, _ = await teach(store)
        for _ in range(2):  # again, as by a caller who was not told that it had succeeded
            assert await store.withdraw("cat", generation=generation)
        assert not await commit(store, generation=generation)
        assert (await teach(store))[0] == generation + 2

    async def test_what_is_in_use_is_not_withdrawn(self, store: CategoryStore) -> None:
        generation, _ = await teach(store)
        await commit(store, generation=generation)
        assert not await store.withdraw("cat", generation=generation)

    async def test_the_oldest_versions_go_with_their_tensors(self, store, redis) -> None:
        for _ in range(12):  # two digits: 10 is newer than 9
            generation, _ = await teach(store, replace=True)
            await commit(store, generation=generation)
        assert [info.version for info in await store.versions("cat")] == [12, 11]
        assert len(await redis.keys("*:adapter:*")) == 2


class TestRollback:
    async def test_to_a_version_that_is_kept(self, store: CategoryStore) -> None:
        for _ in range(2):
            generation, _ = await teach(store)
            await commit(store, generation=generation)
        assert await store.rollback("cat", 1) == (True, None)
        assert (await store.get("cat")).adapter.version == 1
        assert await store.rollback("cat", 3) == (False, None)
        assert await store.rollback("nobody", 1) == (False, None)
        assert await store.get("nobody") is None

    async def test_the_job_that_was_waited_for_commits_nothing(self, store: CategoryStore) -> None:
        generation, _ = await teach(store)
        await commit(store, generation=generation)
        generation, _ = await teach(store, job_id="waited")
        assert await store.rollback("cat", 3) == (False, None)
        assert await store.rollback("cat", 1) == (True, "waited")
        assert not await commit(store, generation=generation)
        assert (await store.get("cat")).adapter.version == 1
        assert (await teach(store))[0] == generation + 2

    async def test_a_job_whose_adapter_is_in_use_is_left_to_end(self, store: CategoryStore) -> None:
        for _ in range(2):
            generation, _ = await teach(store)
            await commit(store, generation=generation)
        assert await store.rollback("cat", 1) == (True, None)
        assert (await store.get("cat")).generation == generation


class TestAdopting:
    async def test_it_makes_the_category_and_ends_the_wait(self, store: CategoryStore) -> None:
        assert await store.adopt(CategoryName("cat"), replace(ADAPTER, version=1), prompts=["kitten"]) is None
        record = await store.get("cat")
        assert (record.words, record.examples, record.adapter.version) == (("cat", "kitten"), 0, 1)
        generation, _ = await teach(store, job_id="j")
        assert await store.adopt(CategoryName("CAT"), replace(ADAPTER, version=2), prompts=[]) == "j"
        assert not await commit(store, generation=generation)
        assert (await store.get("cat")).name == "cat"
        assert [record.name for record in await store.all()] == ["cat"]

    @pytest.mark.parametrize(("versions_kept", "kept"), [(1, [1]), (2, [3, 1])])
    async def test_of_imports_that_end_in_crossed_order_the_one_in_use_stays(self, redis, versions_kept, kept) -> None:
        store = CategoryStore(redis, versions_kept=versions_kept, max_examples=1, job_ttl_s=61)
        for version in (2, 3, 1):
            await store.adopt(CategoryName("cat"), replace(ADAPTER, version=version), prompts=[])
        assert (await store.get("cat")).adapter.version == 1
        assert await store.adapter("cat", 1) is not None
        assert [info.version for info in await store.versions("cat")] == kept
        assert await store.adapter("cat", 2) is None


class TestForgetting:
    async def test_an_example_and_its_generation(self, store: CategoryStore, jobs: JobStore, redis: Redis) -> None:
        await teach(store, job_id="a")
        generation, _ = await teach(store, job_id="b")
        first, second = await store.example_ids("cat")
        scheduled, superseded = await store.forget("cat", first, job=job("c"))
        assert (scheduled.id, scheduled.generation, superseded) == ("c", generation + 1, "b")
        assert await jobs.get("c") == scheduled
        assert (await jobs.get("b")).status == "superseded"
        assert not await commit(store, generation=generation)
        assert (await store.get("cat")).job == "c"
        assert await store.forget("cat", first, job=job("d")) is None
        assert await store.forget("cat", second, job=job("e")) == (None, "c")
        assert ((await store.get("cat")).job, (await store.get("cat")).adapter) == (None, None)
        assert (await store.get("cat")).generation == generation + 2
        assert not await redis.keys("*:example:*")
        assert [await jobs.get(id) for id in "de"] == [None, None]


class TestDeleting:
    async def test_all_but_the_counters(self, store: CategoryStore, jobs: JobStore, redis: Redis) -> None:
        for _ in range(2):
            generation, _ = await teach(store)
            await commit(store, generation=generation)
        await teach(store, job_id="j")
        assert await store.delete("cat") == "j"
        assert (await jobs.get("j")).error == "The category was deleted."
        assert await store.delete("cat") is None
        assert await redis.keys("exemplar:categor*") == [b"exemplar:category:{cat}:counters"]
        assert await store.next_version("cat") == 3

    async def test_one_beside_others(self, store: CategoryStore) -> None:
        for name in ("a", "ab", "a:b", "{a}", "*"):
            await teach(store, name)
        await store.delete(keys.category_id("a"))
        await store.delete(keys.category_id("*"))
        assert [record.name for record in await store.all()] == ["ab", "a:b", "{a}"]
        assert all(record.examples == 1 for record in await store.all())

    async def test_while_it_is_taught_nothing_is_left_behind(self, redis: Redis) -> None:
        store = CategoryStore(redis, versions_kept=2, max_examples=64, max_prompts=64, job_ttl_s=61)

        async def delete() -> None:
            for _ in range(20):
                await store.delete("cat")

        await asyncio.gather(delete(), *(teach(store) for _ in range(40)))
        await store.delete("cat")
        assert await redis.keys("exemplar:categor*") == [b"exemplar:category:{cat}:counters"]


class TestLostReplies:
    """The store made a change, the connection broke before it said so, and the client sends the command again."""

    @pytest.fixture
    def store(self, retrying: Redis) -> CategoryStore:
        return CategoryStore(retrying, versions_kept=2, max_examples=3, job_ttl_s=61)

    @pytest.fixture
    async def seen(self, store: CategoryStore) -> Seen:
        """State of a category with two versions, which waits for a job."""
        for _ in range(2):
            generation, _ = await teach(store)
            await commit(store, generation=generation)
        await teach(store, job_id="waited")
        return (await store.get("cat")).seen

    async def test_a_rollback_is_made_once(self, store: CategoryStore, seen: Seen, proxy: Proxy) -> None:
        proxy.lose_reply(to=b"An older version was put in use.")
        assert await store.rollback("cat", 1, seen=seen) == (True, "waited")
        assert proxy.lost == 1
        record = await store.get("cat")
        assert (record.adapter.version, record.generation) == (1, 4)
        with pytest.raises(PreconditionFailedError):  # of another caller who saw the same
            await store.rollback("cat", 2, seen=seen)

    async def test_an_import_is_made_once(self, store: CategoryStore, seen: Seen, proxy: Proxy) -> None:
        given = replace(ADAPTER, version=await store.next_version("cat"))
        proxy.lose_reply(to=b"An adapter was imported.")
        assert await store.adopt(CategoryName("cat"), given, prompts=[], seen=seen) == "waited"
        assert proxy.lost == 1
        record = await store.get("cat")
        assert (record.adapter.version, record.generation) == (3, 4)

    async def test_a_category_is_deleted_once(self, store: CategoryStore, seen: Seen, proxy: Proxy) -> None:
        proxy.lose_reply(to=b"The category was deleted.")
        assert await store.delete("cat", seen=seen) == "waited"
        assert proxy.lost == 1
        assert await store.get("cat") is None

    async def test_an_example_is_deleted_once(self, store: CategoryStore, seen: Seen, proxy: Proxy) -> None:
        waits = "waited"
        for left, example_id in reversed(list(enumerate(await store.example_ids("cat")))):
            proxy.lose_reply(to=b"An example was deleted.")
            scheduled, superseded = await store.forget("cat", example_id, job=job(f"on {left}"))
            assert (scheduled and scheduled.id, superseded) == (f"on {left}" if left else None, waits)
            assert len(await store.example_ids("cat")) == left
            waits = f"on {left}"
        assert proxy.lost == 3
        assert (await store.get("cat")).generation == 6

    async def test_what_was_taught_since_is_not_deleted(self, store, seen, proxy, redis) -> None:
        proxy.lose_reply(to=b"The category was deleted.", then_refuse=True)
        deleting = asyncio.create_task(store.delete("cat"))
        while not proxy.lost:
            await asyncio.sleep(0.001)
        elsewhere = CategoryStore(redis, versions_kept=2, max_examples=3, job_ttl_s=61)
        await teach(elsewhere)
        proxy.mend()
        assert await deleting == "waited"
        assert (await store.get("cat")).examples == 1

    async def test_nothing_is_kept_of_it_for_long(self, store, seen, redis) -> None:
        await store.rollback("cat", 1, seen=seen)
        (receipt,) = await redis.keys(keys.receipt("*"))
        assert 0 < await redis.ttl(receipt) <= keys.RECEIPT_TTL_S

    async def test_a_change_that_was_refused_is_refused_again(self, store, seen, proxy) -> None:
        proxy.lose_reply(to=b"An older version was put in use.")
        assert await store.rollback("cat", 7, seen=seen) == (False, None)
        assert proxy.lost == 1
        proxy.lose_reply(to=b"The category was deleted.")
        with pytest.raises(PreconditionFailedError):
            await store.delete("cat", seen=("1", ""))
        assert proxy.lost == 2
        assert (await store.get("cat")).seen == seen

    async def test_a_commit_is_told_as_made(self, store: CategoryStore, seen: Seen, proxy: Proxy) -> None:
        given = replace(ADAPTER, version=await store.next_version("cat"))
        proxy.lose_reply(to=keys.adapter("cat", 3).encode())
        assert await store.commit("cat", given, generation=3)
        assert proxy.lost == 1
        assert (await store.get("cat")).adapter.version == 3


async def test_many_are_read_in_their_order(store: CategoryStore) -> None:
    for name in ("b", "a"):
        await teach(store, name)
    assert [record and record.name for record in await store.get_many(["a", "x", "b"])] == ["a", None, "b"]
    assert await store.get_many([]) == []
    assert [record.name for record in await store.all()] == ["b", "a"]


async def test_the_youngest_are_read_without_the_others(store: CategoryStore) -> None:
    assert (await store.count(), await store.latest(2)) == (0, [])
    for name in ("c", "a", "b"):
        await teach(store, name)
    assert await store.count() == 3
    assert [record.name for record in await store.latest(2)] == ["a", "b"]
    assert [record.name for record in await store.latest(7)] == ["c", "a", "b"]
    assert await store.latest(0) == []
