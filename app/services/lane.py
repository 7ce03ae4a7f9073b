"""The lane of a model: the queue through which all requests and job steps reach it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

import torch

from app.errors import OverloadedError, UnavailableError
from app.metrics import Metrics
from app.telemetry import tracer

Result = TypeVar("Result")
Kind = Literal["segment", "tune", "rank"]


class _Call(NamedTuple):
    run: Callable[[], Any]
    future: Future[Any]
    kind: Kind
    asked_at: float


class Lane:
    """Thread that runs calls in the order of their arrival.

    Waiting requests run side by side with one thread each, the next as soon as one ends. That is faster than one after
    the other with all threads each, because no request is parallel from end to end. Steps of jobs run alone.

    A job submits its next call after the end of the last one, so it has at most one call in the queue: a request waits
    for the requests before it and for one call of each running job (a step, or encoding an example), never for a whole
    job.

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
        self._calls: deque[_Call] = deque()
        self._running = 0
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

        If the awaiting task is cancelled, a call that has not begun is removed from the queue.

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
            self._calls.append(_Call(partial(copy_context().run, call), future, kind, time.perf_counter()))
            self._changed.notify_all()
        future.add_done_callback(self._leave)
        return future

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
            while kind := self._next_kind():
                began = time.perf_counter()
                if kind == "segment" and self._side_by_side > 1 and self._pair_waits():
                    wait([others.submit(self._answer_requests) for _ in range(self._side_by_side)])
                else:
                    self._answer(self._take())
                self._metrics.lane_busy.labels(self.name, kind).inc(time.perf_counter() - began)

    def _next_kind(self) -> Kind | None:
        """Wait for a call; None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closed)
            return self._calls[0].kind if self._calls else None

    def _pair_waits(self) -> bool:
        """True if another request is right behind the next one."""
        with self._changed:
            return len(self._calls) > 1 and self._calls[1].kind == "segment"

    def _answer_requests(self) -> None:
        """Answer one request after another."""
        while call := self._next_request():
            self._answer(call)
            del call  # otherwise its tensors would live until the next call

    def _next_request(self) -> _Call | None:
        """Wait for the next request while others run.

        Returns:
            None if a job's step is next, or if no other request runs or waits: the next one then has all threads.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._calls or not self._running)
            alone = not self._running and len(self._calls) < 2
            return None if alone or self._calls[0].kind != "segment" else self._take()

    def _take(self) -> _Call:
        with self._changed:
            self._running += 1
            self._metrics.lane_batch_size.labels(self.name).observe(self._running)
            return self._calls.popleft()

    def _answer(self, call: _Call) -> None:
        self._leave(call.future)
        answer = self._answer_of(call)
        with self._changed:  # before its caller can send the next one
            self._running -= 1
            self._changed.notify_all()
        answer()

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


def _compute_with(threads: int) -> None:
    """Set the number of threads of this thread's tensor operations."""
    # The first read in a thread resets its number to the process's number, so read it before setting it.
    torch.get_num_threads()
    torch.set_num_threads(threads)
