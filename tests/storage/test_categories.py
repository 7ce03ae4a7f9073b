"""Categories in the store: generations, versions, and what is left after a change."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import pytest
import torch
from redis.asyncio import Redis

from app.method.adapter import Adapter
from app.method.parameters import Parameters, TokenRows
from app.storage import keys
from app.storage.categories import CategoryStore, Example, new_example


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
    return CategoryStore(redis, versions_kept=2, max_examples=3)


async def teach(store: CategoryStore, name: str = "cat", *, job_id: str = "j", **options) -> tuple[int, str | None]:
    return await store.teach(name, example(), **{"prompts": [], "replace": False, "job_id": job_id} | options)


async def commit(store: CategoryStore, *, generation: int, name: str = "cat") -> bool:
    version = await store.next_version(keys.category_id(name))
    return await store.commit(keys.category_id(name), replace(ADAPTER, version=version), generation=generation)


class TestTeaching:
    async def test_what_is_stored_is_read_back(self, store: CategoryStore) -> None:
        given = example()
        assert await store.teach("Füße", given, prompts=["feet", "猫"], replace=False, job_id="j1") == (1, None)
        category_id = keys.category_id("füße")
        record = await store.get(category_id)
        assert (record.name, record.words, record.examples) == ("Füße", ("Füße", "feet", "猫"), 1)
        assert (record.generation, record.job, record.adapter) == (1, "j1", None)
        assert await store.example(category_id, given.id) == given
        (info,) = await store.example_infos(category_id)
        assert asdict(info) == {name: value for name, value in asdict(given).items() if name not in ("image", "mask")}
        assert await store.example(category_id, "other") is None

    async def test_each_example_is_a_generation_and_tells_the_job_before(self, store: CategoryStore) -> None:
        assert await teach(store, job_id="a") == (1, None)
        assert await teach(store, job_id="b") == (2, "a")
        assert await teach(store, job_id="c", replace=True) == (3, "b")

    async def test_at_the_limit_nothing_is_stored(self, store: CategoryStore, redis: Redis, contents) -> None:
        for _ in range(3):
            await teach(store)
        before = await contents()
        assert await teach(store) == (0, None)
        assert await contents() == before
        assert (await teach(store, replace=True))[0] == 4
        assert len(await redis.keys("*:example:*")) == 1

    async def test_sent_again_because_the_answer_was_lost_it_changes_nothing(self, store: CategoryStore) -> None:
        given = example()
        for _ in range(2):
            assert await store.teach("cat", given, prompts=[], replace=False, job_id="j") == (1, None)
        await teach(store, job_id="k")
        for _ in range(2):
            removed, left, generation, _ = await store.forget("cat", given.id, job_id="l")
            assert (removed, left, generation) == (True, 1, 3)

    async def test_fifty_at_once_lose_nothing(self, redis: Redis) -> None:
        store = CategoryStore(redis, versions_kept=2, max_examples=64)
        answers = await asyncio.gather(*(teach(store, prompts=[f"w{n}"], job_id=str(n)) for n in range(50)))
        record = await store.get("cat")
        assert sorted(generation for generation, _ in answers) == list(range(1, 51))
        assert (record.examples, record.generation, len(record.prompts)) == (50, 50, 50)


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
        assert await store.withdraw("cat", generation=generation)
        assert not await store.withdraw("cat", generation=generation)
        assert not await commit(store, generation=generation)
        assert (await teach(store))[0] == generation + 2

    async def test_what_is_in_use_is_not_withdrawn(self, store: CategoryStore) -> None:
        generation, _ = await teach(store)
        await commit(store, generation=generation)
        assert not await store.withdraw("cat", generation=generation)
        assert not await store.withdraw("nobody", generation=1)

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
        assert await store.rollback("cat", 1)
        assert (await store.get("cat")).adapter.version == 1
        assert not await store.rollback("cat", 3)
        assert not await store.rollback("nobody", 1)
        assert await store.get("nobody") is None


class TestAdopting:
    async def test_it_makes_the_category_and_ends_the_wait(self, store: CategoryStore) -> None:
        assert await store.adopt("cat", replace(ADAPTER, version=1), prompts=["kitten"]) is None
        record = await store.get("cat")
        assert (record.words, record.examples, record.adapter.version) == (("cat", "kitten"), 0, 1)
        generation, _ = await teach(store, job_id="j")
        assert await store.adopt("CAT", replace(ADAPTER, version=2), prompts=[]) == "j"
        assert not await commit(store, generation=generation)
        assert (await store.get("cat")).name == "cat"
        assert [record.name for record in await store.all()] == ["cat"]

    @pytest.mark.parametrize(("versions_kept", "kept"), [(1, [1]), (2, [3, 1])])
    async def test_of_imports_that_end_in_crossed_order_the_one_in_use_stays(self, redis, versions_kept, kept) -> None:
        store = CategoryStore(redis, versions_kept=versions_kept, max_examples=1)
        for version in (2, 3, 1):
            await store.adopt("cat", replace(ADAPTER, version=version), prompts=[])
        assert (await store.get("cat")).adapter.version == 1
        assert await store.adapter("cat", 1) is not None
        assert [info.version for info in await store.versions("cat")] == kept
        assert await store.adapter("cat", 2) is None


class TestForgetting:
    async def test_an_example_and_its_generation(self, store: CategoryStore, redis: Redis) -> None:
        await teach(store, job_id="a")
        generation, _ = await teach(store, job_id="b")
        first, second = await store.example_ids("cat")
        assert await store.forget("cat", first, job_id="c") == (True, 1, generation + 1, "b")
        assert not await commit(store, generation=generation)
        assert (await store.get("cat")).job == "c"
        assert await store.forget("cat", first, job_id="d") == (False, 0, 0, None)
        assert await store.forget("cat", second, job_id="e") == (True, 0, generation + 2, "c")
        assert ((await store.get("cat")).job, (await store.get("cat")).adapter) == (None, None)
        assert not await redis.keys("*:example:*")


class TestDeleting:
    async def test_all_but_the_counters(self, store: CategoryStore, redis: Redis) -> None:
        for _ in range(2):
            generation, _ = await teach(store)
            await commit(store, generation=generation)
        assert await store.delete("cat") == (True, "j")
        assert await store.delete("cat") == (False, None)
        assert await redis.keys() == [b"exemplar:category:{cat}:counters"]
        assert await store.next_version("cat") == 3

    async def test_one_beside_others(self, store: CategoryStore) -> None:
        for name in ("a", "ab", "a:b", "{a}", "*"):
            await teach(store, name)
        await store.delete(keys.category_id("a"))
        await store.delete(keys.category_id("*"))
        assert [record.name for record in await store.all()] == ["ab", "a:b", "{a}"]
        assert all(record.examples == 1 for record in await store.all())

    async def test_while_it_is_taught_nothing_is_left_behind(self, redis: Redis) -> None:
        store = CategoryStore(redis, versions_kept=2, max_examples=64)

        async def delete() -> None:
            for _ in range(20):
                await store.delete("cat")

        await asyncio.gather(delete(), *(teach(store) for _ in range(40)))
        await store.delete("cat")
        assert await redis.keys() == [b"exemplar:category:{cat}:counters"]


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
