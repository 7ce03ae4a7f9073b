"""The lane of a model: the queue through which all requests and job steps reach it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch

from app.errors import OverloadedError, UnavailableError
from app.metrics import Metrics
from app.telemetry import tracer

Result = TypeVar("Result")
Kind = Literal["segment", "tune", "rank"]

# While requests come, they get so many times the duration of each step of a job.
_REQUESTS_PER_STEP = 3
# Requests come until the last one ended so long ago: a client that waits for its answers sends the next one by then.
_PAUSE_S = 0.1


@dataclass(eq=False)
class _Call:
    run: Callable[[], Any]
    future: Future[Any]
    kind: Kind
    asked_at: float


class Lane:
    """Thread that runs requests and steps of jobs, each in the order of their arrival.

    Waiting requests run side by side with one thread each, the next as soon as one ends. That is faster than one after
    the other with all threads each, because no request is parallel from end to end.

    Steps of jobs (an optimiser step on one example, or encoding one) run alone. While requests come, a step begins only
    right after a request, when the next one is still on its way, and they get a quarter of the time; otherwise they
    get all. So a request waits for the requests before it and hardly ever for more than a part of a step.

    Args:
        name: The backbone's name, for metrics and the thread.
        limit: Largest number of waiting requests. Steps of jobs are not counted: each job has at most one.
        threads: Threads of a tensor operation in a call that runs alone.
        side_by_side: Largest number of concurrent requests.
        metrics: Records waiting times.
    """

    def __init__(self, name: str, *, limit: int, threads: int, side_by_side: int, metrics: Metrics) -> None:
        self.name = name
        self._limit = limit
        self._side_by_side = side_by_side
        self._metrics = metrics
        self._requests: deque[_Call] = deque()
        self._steps: deque[_Call] = deque()
        self._running = 0
        self._counted_until = 0.0  # of the time in which calls run
        self._step_due_at = self._pause_until = 0.0
        self._waiting: set[Future[Any]] = set()
        self._closed = False
        self._changed = threading.Condition()  # guards all of the above
        metrics.queue_depth.labels(name).set(0)  # an autoscaler needs the series before the first request
        started = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(threads, started), name=f"lane-{name}", daemon=True)
        self._thread.start()
        started.wait()  # new threads get the number set last, which the caller may change from here on

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def full(self) -> bool:
        """True if one more request would be refused."""
        return len(self._waiting) >= self._limit

    def admit(self) -> None:
        """Refuse a request before any work is done for it, if the queue is full.

        Raises:
            OverloadedError: If the queue is full.
        """
        if self.full:
            self._metrics.rejected.labels(reason="queue_full").inc()
            raise OverloadedError(
                f"{self._limit} requests are waiting for the model {self.name}: try again in a second."
            )

    async def run(self, call: Callable[[], Result], *, kind: Kind) -> Result:
        """Run a call on the lane's thread; return its result or raise its exception.

        If the awaiting task is cancelled, a call that has not begun never does, and what it holds is given up at once.

        Raises:
            OverloadedError: If the queue is full; steps of jobs are always accepted.
            UnavailableError: If the lane is closed.
        """
        with tracer.start_as_current_span(f"{kind} on the lane", attributes={"exemplar.backbone": self.name}):
            return await asyncio.wrap_future(self._submit(call, kind))

    def close(self) -> None:
        """Finish the calls in the queue and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _submit(self, call: Callable[[], Result], kind: Kind) -> Future[Result]:
        """Put a call into the queue, with its caller's context for traces and log ids."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise UnavailableError("The service is stopping: send the request again in a moment.")
            if kind == "segment":
                self.admit()
                self._waiting.add(future)
                self._metrics.queue_depth.labels(self.name).set(len(self._waiting))
            calls = self._requests if kind == "segment" else self._steps
            queued = _Call(partial(copy_context().run, call), future, kind, time.perf_counter())
            calls.append(queued)
            self._changed.notify_all()
        future.add_done_callback(partial(self._end, queued))
        return future

    def _end(self, call: _Call, future: Future[Any]) -> None:
        """Give up what a call holds: it has run, or its caller has gone and only its place in the queue is left."""
        call.run = _nothing
        self._leave(future)

    def _leave(self, future: Future[Any]) -> None:
        """Remove a call from the count of waiting requests: it begins, or its caller has gone."""
        with self._changed:
            if future in self._waiting:
                self._waiting.remove(future)
                self._metrics.queue_depth.labels(self.name).set(len(self._waiting))

    def _work(self, threads: int, started: threading.Event) -> None:
        _compute_with(threads)
        started.set()
        with ThreadPoolExecutor(
            self._side_by_side, thread_name_prefix=self._thread.name, initializer=_compute_with, initargs=(1,)
        ) as others:
            answered = False
            while calls := self._next(answered=answered):
                began, answered = time.perf_counter(), calls is self._requests
                kind, asked_at = calls[0].kind, calls[0].asked_at
                if answered and self._side_by_side > 1 and len(calls) > 1:
                    wait([others.submit(self._answer_requests) for _ in range(self._side_by_side)])
                else:
                    self._answer(self._take(calls))
                self._note(kind, asked_at, began, time.perf_counter())

    def _next(self, *, answered: bool) -> deque[_Call] | None:
        """Wait for a call.

        Args:
            answered: True if a request just ended.

        Returns:
            The queue it is in; None after the last one.
        """
        with self._changed:
            if answered and self._step_is_due():
                return self._steps
            while not self._requests:
                pause_s = 0.0 if self._closed else self._pause_until - time.perf_counter()
                if self._steps and pause_s <= 0:
                    return self._steps
                if self._closed and not self._steps:
                    return None
                self._changed.wait(pause_s if self._steps else None)
            return self._requests

    def _step_is_due(self) -> bool:
        return bool(self._steps) and time.perf_counter() >= self._step_due_at

    def _note(self, kind: Kind, asked_at: float, began: float, ended: float) -> None:
        """Note the time of a step, or of some requests."""
        with self._changed:
            if kind == "segment":
                self._pause_until = ended + _PAUSE_S
            else:
                # A step that nobody asked for was not late.
                self._step_due_at = _due_after(began, ended, was_due_at=max(self._step_due_at, asked_at))

    def _answer_requests(self) -> None:
        """Answer one request after another."""
        while call := self._next_request():
            self._answer(call)
            del call  # otherwise its tensors would live until the next call

    def _next_request(self) -> _Call | None:
        """Wait for the next request while others run.

        Returns:
            None if it is a step's turn, or if no other request runs or waits: the next one then has all threads.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._requests or not self._running)
            alone = not self._running and len(self._requests) < 2
            return None if alone or self._step_is_due() else self._take(self._requests)

    def _take(self, calls: deque[_Call]) -> _Call:
        with self._changed:
            if not self._running:
                self._counted_until = time.perf_counter()
            self._running += 1
            self._metrics.lane_batch_size.labels(self.name).observe(self._running)
            return calls.popleft()

    def _answer(self, call: _Call) -> None:
        self._leave(call.future)
        answer = self._answer_of(call)
        with self._changed:  # before its caller can send the next one
            self._running -= 1
            self._count_time(call.kind)
            self._changed.notify_all()
        answer()

    def _count_time(self, kind: Kind) -> None:
        """Count the time since a call last ended or the first began; so it counts once while calls run side by side."""
        now = time.perf_counter()
        self._metrics.lane_busy.labels(self.name, kind).inc(now - self._counted_until)
        self._counted_until = now

    def _answer_of(self, call: _Call) -> Callable[[], None]:
        """Run a call; returns what tells its caller."""
        if not call.future.set_running_or_notify_cancel():
            return lambda: None
        self._metrics.queue_wait.labels(self.name, call.kind).observe(time.perf_counter() - call.asked_at)
        try:
            return partial(call.future.set_result, call.run())
        except StopIteration as error:  # a future cannot hold it: the caller would wait for ever
            return partial(call.future.set_exception, RuntimeError(f"the call ended with {error!r}"))
        except BaseException as error:  # the caller handles it, whatever it is
            return partial(call.future.set_exception, error)


def _nothing() -> None:
    """The call of a caller that has gone."""


def _due_after(began: float, ended: float, *, was_due_at: float) -> float:
    """Time from which the next step may begin. The later this one began, the sooner: up to at once."""
    requests_s = _REQUESTS_PER_STEP * (ended - began)
    return max(was_due_at, began - requests_s) + (ended - began) + requests_s


def _compute_with(threads: int) -> None:
    """Set the number of threads of this thread's tensor operations."""
    # The first read in a thread resets its number to the process's number, so read it before setting it.
    torch.get_num_threads()
    torch.set_num_threads(threads)
