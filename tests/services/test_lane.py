"""The lane: one queue per model; order, errors, refusals, cancelled callers, shutdown."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from app.errors import OverloadedError, UnavailableError
from app.metrics import Metrics
from app.services.lane import Lane, _due_after

LIMIT = 3


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def lane(metrics: Metrics) -> Iterator[Lane]:
    with Lane("tiny", limit=LIMIT, threads=1, side_by_side=1, metrics=metrics) as lane:
        yield lane


class Gate:
    """A call that holds the lane until it is opened."""

    def __init__(self, lane: Lane) -> None:
        self._entered, self._opened = threading.Event(), threading.Event()
        self.task = asyncio.create_task(lane.run(self._call, kind="tune"))

    async def entered(self) -> None:
        await asyncio.to_thread(self._entered.wait, 10)

    async def open(self) -> None:
        self._opened.set()
        await self.task

    def _call(self) -> None:
        self._entered.set()
        assert self._opened.wait(10)


async def blocked(lane: Lane) -> Gate:
    gate = Gate(lane)
    await gate.entered()
    return gate


async def submitted(lane: Lane, call, *, kind="segment") -> asyncio.Task:
    """A call in the queue."""
    task = asyncio.create_task(lane.run(call, kind=kind))
    await asyncio.sleep(0)
    return task


def refuse(error: BaseException) -> None:
    raise error


class TestCalls:
    async def test_they_run_one_after_the_other_in_order_on_one_thread(self, lane: Lane) -> None:
        seen: list[tuple[int, str]] = []

        def note(number: int) -> int:
            seen.append((number, threading.current_thread().name))
            return number

        results = await asyncio.gather(*(lane.run(partial(note, n), kind="tune") for n in range(7)))
        assert results == list(range(7))
        assert seen == [(n, "lane-tiny") for n in range(7)]

    @pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), SystemExit(3), KeyboardInterrupt()], ids=repr)
    async def test_an_error_reaches_its_caller_and_nobody_else(self, lane: Lane, error: BaseException) -> None:
        with pytest.raises(type(error)) as raised:
            await lane.run(partial(refuse, error), kind="segment")
        assert raised.value is error
        assert await lane.run(lambda: 5, kind="segment") == 5

    async def test_a_call_that_stops_an_iteration_does_not_leave_its_caller_waiting(self, lane: Lane) -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(lane.run(lambda: next(iter([])), kind="segment"), 5)

    async def test_waiting_is_measured(self, lane: Lane, metrics: Metrics) -> None:
        gate = await blocked(lane)
        task = await submitted(lane, lambda: 1)
        assert metrics.registry.get_sample_value("exemplar_queue_depth", {"backbone": "tiny"}) == 1
        await gate.open()
        await task
        labels = {"backbone": "tiny", "kind": "segment"}
        assert metrics.registry.get_sample_value("exemplar_queue_wait_seconds_count", labels) == 1
        assert metrics.registry.get_sample_value("exemplar_queue_depth", {"backbone": "tiny"}) == 0


class TestFullQueue:
    async def test_one_more_request_is_refused_and_counted(self, lane: Lane, metrics: Metrics) -> None:
        gate = await blocked(lane)
        waiting = [await submitted(lane, lambda: 1) for _ in range(LIMIT)]
        assert lane.full
        with pytest.raises(OverloadedError) as refused:
            await lane.run(lambda: 1, kind="segment")
        assert refused.value.retry_after_s == 1
        assert metrics.registry.get_sample_value("exemplar_rejected_total", {"reason": "queue_full"}) == 1
        await gate.open()
        assert await asyncio.gather(*waiting) == [1] * LIMIT
        assert not lane.full
        assert await lane.run(lambda: 2, kind="segment") == 2

    async def test_steps_of_jobs_are_always_taken(self, lane: Lane) -> None:
        gate = await blocked(lane)
        requests = [await submitted(lane, lambda: 1) for _ in range(LIMIT)]
        steps = [await submitted(lane, lambda: 2, kind=kind) for kind in ("tune", "rank")]
        await gate.open()
        assert await asyncio.gather(*requests, *steps) == [1] * LIMIT + [2, 2]


class TestCancelledCallers:
    async def test_what_a_call_holds_is_given_up_before_its_turn(self, lane: Lane) -> None:
        class Photo:
            pass

        photo = Photo()
        held = weakref.ref(photo)
        gate = await blocked(lane)
        task = await submitted(lane, partial(id, photo))
        del photo
        task.cancel()
        await asyncio.wait([task])
        del task  # the frames of its error hold the photo, too
        gc.collect()
        given_up = held() is None
        await gate.open()
        assert given_up

    async def test_a_call_that_has_not_begun_is_dropped(self, lane: Lane) -> None:
        ran: list[int] = []
        gate = await blocked(lane)
        first, second, third = [await submitted(lane, partial(ran.append, n)) for n in range(3)]
        second.cancel()
        await asyncio.sleep(0)
        await gate.open()
        await asyncio.gather(first, third)
        assert ran == [0, 2]

    async def test_they_make_room_at_once(self, lane: Lane) -> None:
        gate = await blocked(lane)
        waiting = [await submitted(lane, lambda: 1) for _ in range(LIMIT)]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not lane.full
        again = [await submitted(lane, lambda: 1) for _ in range(LIMIT)]
        await gate.open()
        assert await asyncio.gather(*again) == [1] * LIMIT

    async def test_a_call_that_has_begun_is_finished_before_the_next(self, lane: Lane) -> None:
        gate = await blocked(lane)
        gate.task.cancel()
        next_one = await submitted(lane, lambda: 1)
        await asyncio.sleep(0.02)
        assert not next_one.done()
        gate._opened.set()
        assert await next_one == 1


class TestSteps:
    async def test_a_request_waits_for_one_step_not_for_the_job(self, lane: Lane) -> None:
        done: list[str] = []

        async def job() -> None:
            for step in range(11):
                await lane.run(partial(done.append, f"step {step}"), kind="tune")

        async def request() -> None:
            while len(done) < 3:
                await asyncio.sleep(0)
            await lane.run(partial(done.append, "request"), kind="segment")

        await asyncio.gather(job(), request())
        assert len(done) == 12
        assert done.index("request") < 11

    async def test_the_next_step_leaves_several_requests_before_it_and_not_all(self, metrics: Metrics) -> None:
        done: list[str] = []

        def work(what: str, seconds: float) -> None:
            time.sleep(seconds)
            done.append(what)

        with Lane("tiny", limit=101, threads=1, side_by_side=1, metrics=metrics) as lane:
            first = await submitted(lane, partial(work, "step", 0.05), kind="tune")
            requests = [await submitted(lane, partial(work, "request", 0.01)) for _ in range(100)]
            await first
            await lane.run(partial(work, "step", 0.05), kind="tune")
            await asyncio.gather(*requests)
        first, second = (number for number, what in enumerate(done) if what == "step")
        assert second - first > 5  # of ten milliseconds each, in at least 150
        assert second < 90

    async def test_a_request_just_before_keeps_a_step_waiting_that_is_not_due(
        self, lane: Lane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that sends one request after another finds the lane free."""
        monkeypatch.setattr("app.services.lane._PAUSE_S", 10)
        done: list[str] = []
        await lane.run(partial(time.sleep, 0.1), kind="tune")
        await lane.run(partial(done.append, "request"), kind="segment")
        step = await submitted(lane, partial(done.append, "step"), kind="tune")
        await lane.run(partial(done.append, "next request"), kind="segment")
        await asyncio.to_thread(lane.close)  # which ends the pause
        await step
        assert done == ["request", "next request", "step"]


class TestClosing:
    async def test_the_queue_is_finished_first(self, metrics: Metrics) -> None:
        others = {thread.ident for thread in threading.enumerate()}
        lane = Lane("tiny", limit=LIMIT, threads=1, side_by_side=1, metrics=metrics)
        gate = await blocked(lane)
        waiting = [await submitted(lane, partial(int, n)) for n in range(LIMIT)]
        closing = asyncio.create_task(asyncio.to_thread(lane.close))
        await gate.open()
        assert await asyncio.gather(*waiting) == [0, 1, 2]
        await closing
        assert "lane-tiny" not in [thread.name for thread in threading.enumerate() if thread.ident not in others]

    async def test_then_calls_are_refused(self, metrics: Metrics) -> None:
        lane = Lane("tiny", limit=LIMIT, threads=1, side_by_side=1, metrics=metrics)
        lane.close()
        lane.close()
        for kind in ("segment", "tune"):
            with pytest.raises(UnavailableError):
                await lane.run(lambda: 1, kind=kind)


async def test_it_keeps_its_threads_when_the_others_are_given_one(metrics: Metrics) -> None:
    with Lane("tiny", limit=LIMIT, threads=3, side_by_side=1, metrics=metrics) as lane:
        torch.set_num_threads(1)
        assert await lane.run(torch.get_num_threads, kind="rank") == 3
        assert await asyncio.to_thread(torch.get_num_threads) == 1


@pytest.mark.parametrize(
    ("was_due_at", "began", "ended", "due"),
    [(4, 4, 6, 12), (4, 5, 7, 12), (4, 9, 11, 12), (4, 10, 12, 12), (0, 100, 102, 102)],
    ids=["in time", "late", "later", "by all there is", "and no more"],
)
def test_requests_get_three_quarters_and_what_they_take_more_is_made_up_for(
    was_due_at: float, began: float, ended: float, due: float
) -> None:
    assert _due_after(began, ended, was_due_at=was_due_at) == due


@pytest.mark.parametrize("request_s", [0.3, 0.7, 1.9, 2.5])
def test_steps_between_requests_get_a_quarter_of_the_time(request_s: float) -> None:
    now = due = steps_s = 0.0
    for _ in range(1009):
        now += request_s
        if now >= due:
            due = _due_after(now, now + 1, was_due_at=due)
            now, steps_s = now + 1, steps_s + 1
    assert steps_s / now == pytest.approx(0.25, abs=0.01)


class TestSideBySide:
    @pytest.fixture
    def lane(self, metrics: Metrics) -> Iterator[Lane]:
        with Lane("tiny", limit=7, threads=3, side_by_side=2, metrics=metrics) as lane:
            yield lane

    async def test_requests_that_wait_run_at_once_with_one_thread_each(self, lane: Lane, metrics: Metrics) -> None:
        gate, both = await blocked(lane), threading.Barrier(2)

        def meet() -> int:
            both.wait(10)
            return torch.get_num_threads()

        tasks = [await submitted(lane, meet) for _ in range(4)]
        await gate.open()
        assert await asyncio.gather(*tasks) == [1] * 4
        assert await lane.run(torch.get_num_threads, kind="segment") == 3
        alone, at_most_two = (
            metrics.registry.get_sample_value("exemplar_lane_batch_size_bucket", {"backbone": "tiny", "le": size})
            for size in ("1.0", "2.0")
        )
        assert at_most_two == 6
        assert 3 <= alone <= 4  # the gate, the last and the first; and the third, if both before it had ended

    async def test_nobody_waits_for_a_slow_one_that_runs_beside(self, lane: Lane) -> None:
        gate, goes_on = await blocked(lane), threading.Event()
        slow = await submitted(lane, partial(goes_on.wait, 10))
        quick = [await submitted(lane, partial(int, n)) for n in range(3)]
        await gate.open()
        assert await asyncio.gather(*quick) == [0, 1, 2]
        assert await lane.run(lambda: 3, kind="segment") == 3
        assert not slow.done()
        goes_on.set()
        assert await slow

    async def test_time_is_counted_when_a_call_ends_though_others_run_on(self, lane: Lane, metrics: Metrics) -> None:
        """Requests that overlap all the time are a lane that is busy all the time, not one that stands still."""

        def busy_s() -> float:
            labels = {"backbone": "tiny", "kind": "segment"}
            return metrics.registry.get_sample_value("exemplar_lane_busy_seconds_total", labels) or 0.0

        gate, goes_on = await blocked(lane), threading.Event()
        slow = await submitted(lane, partial(goes_on.wait, 10))
        quick = await submitted(lane, lambda: 1)
        await gate.open()
        await quick
        before_s, began = busy_s(), time.perf_counter()
        await lane.run(partial(time.sleep, 0.1), kind="segment")
        assert not slow.done()
        assert 0.1 <= busy_s() - before_s <= time.perf_counter() - began + 0.05
        goes_on.set()
        await slow

    async def test_a_step_that_is_due_waits_for_what_runs_alone(
        self, lane: Lane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.services.lane._REQUESTS_PER_STEP", 0)
        gate, goes_on, done = await blocked(lane), threading.Event(), []
        entered = threading.Barrier(3)

        def hold() -> None:
            entered.wait(10)
            goes_on.wait(10)
            done.append("running")

        running = [await submitted(lane, hold) for _ in range(2)]
        await gate.open()
        await asyncio.to_thread(entered.wait, 10)
        later = [await submitted(lane, partial(done.append, "later")) for _ in range(2)]
        step = await submitted(lane, partial(done.append, "step"), kind="tune")
        await asyncio.sleep(0.02)
        assert done == []
        goes_on.set()
        await asyncio.gather(*running, step, *later)
        assert done == ["running", "running", "step", "later", "later"]

    async def test_a_jobs_step_runs_alone(self, lane: Lane) -> None:
        gate, seen = await blocked(lane), []

        def note(what: str, running: list[str] = []) -> None:  # noqa: B006  # shared by the calls
            running.append(what)
            time.sleep(0.02)
            seen.append(tuple(sorted(running)))
            running.remove(what)

        kinds = ("segment", "tune", "segment", "segment", "rank")
        tasks = [await submitted(lane, partial(note, kind), kind=kind) for kind in kinds]
        await gate.open()
        await asyncio.gather(*tasks)
        assert {both for both in seen if "tune" in both or "rank" in both} == {("tune",), ("rank",)}
        assert ("segment", "segment") in seen

    async def test_an_error_of_one_is_not_the_others(self, lane: Lane) -> None:
        gate = await blocked(lane)
        bad, good = await submitted(lane, partial(refuse, ValueError("x"))), await submitted(lane, lambda: 5)
        await gate.open()
        assert await good == 5
        with pytest.raises(ValueError, match="x"):
            await bad

    async def test_what_waits_at_the_end_is_answered(self, metrics: Metrics) -> None:
        lane = Lane("tiny", limit=7, threads=1, side_by_side=4, metrics=metrics)
        gate = await blocked(lane)
        tasks = [await submitted(lane, lambda: 5) for _ in range(3)]
        closing = asyncio.create_task(asyncio.to_thread(lane.close))
        await asyncio.sleep(0.05)
        await gate.open()
        assert await asyncio.gather(*tasks) == [5] * 3
        await closing
