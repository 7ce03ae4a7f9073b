"""Look-ups of categories: from the store while it answers, from memory while it is away."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.errors import InvalidInputError
from app.metrics import Metrics
from app.services.category_lookup import CategoryLookup, Found
from app.storage.breaker import StoreAwayError
from app.storage.category_records import CategoryRecord


def record(name: str, *, generation: int = 1, created_at: str = "2026-01-01") -> CategoryRecord:
    return CategoryRecord(
        id=name, name=name, prompts=(), examples=1, generation=generation, job=None, adapter=None,
        adapter_generation=None, result=None, created_at=created_at,
    )  # fmt: skip


class FakeStore:
    """Categories by id; away if told so."""

    def __init__(self, *records: CategoryRecord) -> None:
        self.away = False
        self.records = {one.id: one for one in records}

    async def get_many(self, ids: Sequence[str]) -> list[CategoryRecord | None]:
        self._answer()
        return [self.records.get(id_) for id_ in ids]

    async def all(self) -> list[CategoryRecord]:
        self._answer()
        return list(self.records.values())

    async def count(self) -> int:
        self._answer()
        return len(self.records)

    def _answer(self) -> None:
        if self.away:
            raise StoreAwayError


class Bench:
    """A look-up on a fake store; `now` is the time."""

    def __init__(self, *records: CategoryRecord, most: int = 7, max_bytes: int = 100_000) -> None:
        self.now = 0.0
        self.store = FakeStore(*records)
        self.metrics = Metrics()
        self.lookup = CategoryLookup(
            self.store, most=most, metrics=self.metrics, max_bytes=max_bytes, clock=lambda: self.now
        )

    async def while_away(self, *ids: str) -> Found:
        """A look-up of these ids, or of all, while the store is away."""
        self.store.away = True
        try:
            return await (self.lookup.named(ids) if ids else self.lookup.taught())
        finally:
            self.store.away = False


CAT, DOG, COW = (record(name, created_at=f"2026-01-0{day}") for day, name in enumerate(("cat", "dog", "cow"), 1))


async def test_while_the_store_answers_nothing_comes_from_memory() -> None:
    bench = Bench(CAT)
    assert await bench.lookup.named(["cat", "sofa"]) == Found([CAT, None])
    newer = bench.store.records["cat"] = record("cat", generation=2)
    assert await bench.lookup.named(["cat"]) == Found([newer])
    assert await bench.lookup.taught() == Found([newer])
    assert bench.metrics.registry.get_sample_value("exemplar_lookups_from_memory_total") == 0


async def test_names_come_from_memory_with_the_age_of_the_oldest() -> None:
    bench = Bench(CAT, DOG)
    bench.now = 100
    await bench.lookup.named(["cat"])
    bench.now = 103
    await bench.lookup.named(["dog"])
    bench.now = 110
    assert await bench.while_away("dog") == Found([DOG], 7)
    assert await bench.while_away("dog", "cat") == Found([DOG, CAT], 10)
    assert bench.metrics.registry.get_sample_value("exemplar_lookups_from_memory_total") == 2
    assert await bench.lookup.named(["dog"]) == Found([DOG])


async def test_a_name_that_is_not_in_memory_was_not_taught_when_the_list_was_read() -> None:
    bench = Bench(CAT)
    bench.now = 5
    assert await bench.while_away("cat") == Found([None], 5)  # since the start
    await bench.lookup.taught()
    bench.now = 8
    assert await bench.while_away("sofa", "cat") == Found([None, CAT], 3)


async def test_all_come_from_memory_the_oldest_first() -> None:
    bench = Bench(CAT, COW)
    await bench.lookup.taught()
    bench.now = 2
    bench.store.records["dog"] = DOG
    assert await bench.lookup.named(["dog"]) == Found([DOG])
    bench.now = 11
    assert await bench.while_away() == Found([CAT, DOG, COW], 11)


async def test_without_having_read_the_list_it_is_not_made_up() -> None:
    bench = Bench(CAT, DOG)
    await bench.lookup.named(["cat"])
    with pytest.raises(StoreAwayError):
        await bench.while_away()


async def test_what_was_deleted_is_forgotten() -> None:
    bench = Bench(CAT, DOG, COW)
    await bench.lookup.taught()
    del bench.store.records["cat"]
    await bench.lookup.named(["cat"])
    assert (await bench.while_away()).records == [DOG, COW]
    del bench.store.records["dog"]
    bench.now = 1
    await bench.lookup.taught()
    assert (await bench.while_away()).records == [COW]
    assert (await bench.while_away("dog")).records == [None]


async def test_a_look_up_that_was_overtaken_does_not_undo_the_later_one() -> None:
    bench = Bench(CAT)
    late = bench.lookup.named(["cat"])

    async def get_many(ids: Sequence[str]) -> list[CategoryRecord | None]:
        """Reads the old record; before its reply comes, a later look-up reads the new one."""
        del bench.store.get_many
        bench.now = 1
        bench.store.records["cat"] = record("cat", generation=2)
        await bench.lookup.named(["cat"])
        return [CAT]

    bench.store.get_many = get_many
    assert await late == Found([CAT])
    (remembered,) = (await bench.while_away("cat")).records
    assert remembered
    assert remembered.generation == 2


async def test_more_than_a_request_may_have() -> None:
    bench = Bench(CAT, DOG, most=2)
    await bench.lookup.taught()
    bench.store.records["cow"] = COW
    with pytest.raises(InvalidInputError, match="3 categories are taught, at most 2"):
        await bench.lookup.taught()
    await bench.lookup.named(["cow"])
    with pytest.raises(InvalidInputError, match="3 categories are taught, at most 2"):
        await bench.while_away()


async def test_memory_is_bounded_and_a_list_with_gaps_is_not_used() -> None:
    bench = Bench(CAT, DOG, COW, max_bytes=3500)  # of two records
    await bench.lookup.taught()
    assert (await bench.while_away("dog", "cow")).records == [DOG, COW]
    assert (await bench.while_away("cat")).records == [None]
    with pytest.raises(StoreAwayError):
        await bench.while_away()
    del bench.store.records["cat"]
    await bench.lookup.taught()
    assert (await bench.while_away()).records == [DOG, COW]


async def test_names_that_nobody_taught_take_no_memory() -> None:
    bench = Bench(CAT, max_bytes=3500)
    await bench.lookup.taught()
    for number in range(5):
        await bench.lookup.named([f"sofa {number}"])
    assert (await bench.while_away()).records == [CAT]


async def test_more_names_than_one_request_may_have_are_refused_before_the_store_is_asked() -> None:
    bench = Bench(CAT, most=2)
    bench.store.away = True
    with pytest.raises(InvalidInputError, match=r"3 categories are too many: at most 2 .*EXEMPLAR_MAX_CATEGORIES"):
        await bench.lookup.named(["cat", "dog", "cow"])
    assert bench.metrics.registry.get_sample_value("exemplar_lookups_from_memory_total") == 0
