"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence, Sized
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from exemplar_client.annotations import MaskInput
from exemplar_client.calls import Calls, Failed, Options, images_in
from exemplar_client.errors import BatchFailed, ExemplarError
from exemplar_client.jobs import JobView, label_of, note_of
from exemplar_client.masks import ClickedMask, Masks
from exemplar_client.photos import ImageInput
from exemplar_client.progress import progress_bar
from exemplar_client.records import Category, Example, Health, JobState, Taught, Version
from exemplar_client.wire import (
    Effect,
    Emit,
    Flow,
    Lost,
    NextLine,
    Pause,
    Reply,
    Request,
    Retries,
    Send,
    Service,
    Work,
    check_arguments,
    checking_proxies,
    form_of,
    lost,
    proxy_of,
)

Result = TypeVar("Result")


class AsyncClient:
    """Client of one running service, with the methods of `Client` as coroutines.

    Use it in an `async with` statement, or call `close`. Files are read and images are encoded in threads.

    Args:
        url: Address of the service, such as `http://127.0.0.1:8000`.
        key: An API key, if the service requires one.
        tries: Largest number of tries of one request, 1 or more. A service that has answered before and refuses
            connections is waited for a minute at least: it may be restarting.
        timeout_s: Seconds without a byte after which a connection counts as lost.
        transport: How requests are sent, for proxies and tests; default: over the network.

    Raises:
        Invalid: Not an address, a key that can't be sent, no try or no time; or the environment names a proxy that
            can't be used.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        tries: int = 5,
        timeout_s: float = 300.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        check_arguments(url, key, timeout_s=timeout_s)
        proxy = proxy_of(url) if transport is None else None
        self._calls = Calls(Service(url, proxy), Retries(tries))
        with checking_proxies():
            self._http = httpx2.AsyncClient(
                base_url=url, timeout=timeout_s, headers={"X-API-Key": key} if key else {}, transport=transport
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def health(self) -> Health:
        """As `Client.health`."""
        return await self._run(self._calls.health())

    async def teach(
        self,
        name: str,
        image: ImageInput,
        mask: MaskInput,
        prompts: str | Sequence[str] = (),
        replace: bool = False,
        *,
        idempotency_key: str | None = None,
    ) -> AsyncJob:
        """As `Client.teach`."""
        flow = self._calls.teach(name, image, mask, prompts=prompts, replace=replace, idempotency_key=idempotency_key)
        return self._job_of(await self._run(flow))

    async def absent(self, name: str, image: ImageInput, *, idempotency_key: str | None = None) -> AsyncJob:
        """As `Client.absent`."""
        return self._job_of(await self._run(self._calls.absent(name, image, idempotency_key=idempotency_key)))

    async def segment(
        self, image: ImageInput, categories: str | Iterable[str] | None = None, **options: Unpack[Options]
    ) -> Masks:
        """As `Client.segment`."""
        return await self._run(self._calls.segment(image, categories, options))

    async def click(self, image: ImageInput, points: Iterable[Sequence[float]], *, refine: bool = True) -> ClickedMask:
        """Propose the mask of one object from clicks; nothing needs to be taught.

        Args:
            image: The photo; `photos.open_photo` lists the accepted forms.
            points: `(x, y)` or `(x, y, 1)` on the object and `(x, y, 0)` beside it, in pixels of the upright photo.
            refine: False to leave the edges unrefined.
        """
        return await self._run(self._calls.click(image, points, refine=refine))

    def segment_many(
        self,
        images: ImageInput | Iterable[ImageInput],
        categories: str | Iterable[str] | None = None,
        *,
        progress: bool = True,
        on_failure: Callable[[object, ExemplarError], None] | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Masks, None]:
        """As `Client.segment_many`; iterate with `async for`."""
        photos = images_in(images)
        flow = self._calls.segment_many(photos, categories, options)
        return self._segmented(flow, len(photos) if isinstance(photos, Sized) else None, progress, on_failure)

    async def _segmented(
        self,
        flow: Flow[None],
        total: int | None,
        progress: bool,
        on_failure: Callable[[object, ExemplarError], None] | None,
    ) -> AsyncGenerator[Masks, None]:
        failed: list[Failed] = []
        done = 0
        with progress_bar("segmenting", total=total, enabled=progress) as show:
            async with aclosing(self._emitted(flow)) as results:
                async for result in results:
                    done += 1
                    show(done, f"{done}/{total or '?'} photos")
                    if not isinstance(result, Failed):
                        yield result
                    elif on_failure:
                        on_failure(result.source, result.error)
                    else:
                        failed.append(result)
        if failed:
            raise BatchFailed([(each.source, each.error) for each in failed], [each.name for each in failed])

    async def categories(self) -> list[Category]:
        """As `Client.categories`."""
        return await self._run(self._calls.categories())

    async def category(self, name: str) -> Category:
        """As `Client.category`."""
        return await self._run(self._calls.category(name))

    async def delete(self, name: str) -> None:
        """As `Client.delete`."""
        await self._run(self._calls.delete(name))

    async def examples(self, name: str) -> list[Example]:
        """As `Client.examples`."""
        return await self._run(self._calls.examples(name))

    async def delete_example(self, name: str, id: str) -> AsyncJob | None:
        """As `Client.delete_example`."""
        taught = await self._run(self._calls.delete_example(name, id))
        return self._job_of(taught) if taught else None

    async def versions(self, name: str) -> list[Version]:
        """As `Client.versions`."""
        return await self._run(self._calls.versions(name))

    async def rollback(self, name: str, version: int) -> Category:
        """As `Client.rollback`."""
        return await self._run(self._calls.rollback(name, version))

    async def export(self, name: str) -> bytes:
        """As `Client.export`."""
        return await self._run(self._calls.export(name))

    async def import_(self, name: str, adapter: bytes) -> Category:
        """As `Client.import_`."""
        return await self._run(self._calls.import_(name, adapter))

    async def jobs(self, category: str | None = None, status: str | None = None) -> list[AsyncJob]:
        """As `Client.jobs`."""
        return [AsyncJob(self, state) for state in await self._run(self._calls.jobs(category=category, status=status))]

    async def job(self, id: str) -> AsyncJob:
        """As `Client.job`."""
        return AsyncJob(self, await self._run(self._calls.job(id)))

    async def cancel(self, id: str) -> AsyncJob:
        """As `Client.cancel`."""
        return AsyncJob(self, await self._run(self._calls.cancel(id)))

    def follow(self, id: str, *, timeout_s: float | None = None) -> AsyncGenerator[JobState, None]:
        """As `Client.follow`; iterate with `async for`."""
        return self._emitted(self._calls.follow(id, timeout_s=timeout_s))

    def _job_of(self, taught: Taught) -> AsyncJob:
        return AsyncJob(self, taught.job, note=taught.note, warnings=taught.warnings)

    async def _run(self, flow: Flow[Result]) -> Result:
        """Perform a flow without emitted values, and return its result."""
        performer = _Performer(self._http)
        result: Any = None
        try:
            while True:
                try:
                    effect = flow.send(result)
                except StopIteration as end:
                    value: Result = end.value
                    return value
                result = await performer.perform(effect)
        finally:
            await performer.close()

    async def _emitted(self, flow: Flow[None]) -> AsyncGenerator[Any, None]:
        """Perform a flow, and yield the values that it emits."""
        performer = _Performer(self._http)
        result: Any = None
        try:
            while True:
                try:
                    effect = flow.send(result)
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    yield effect.value
                    result = None
                else:
                    result = await performer.perform(effect)
        finally:
            await performer.close()


class AsyncJob(JobView):
    """A job of the service; `await job.wait()` follows it to its end."""

    def __init__(self, client: AsyncClient, state: JobState, **parts: Any) -> None:
        super().__init__(state, **parts)
        self._client = client

    async def wait(self, progress: bool = True, timeout_s: float | None = None) -> Self:
        """As `Job.wait`."""
        with progress_bar(label_of(self.state), total=1.0, enabled=progress) as show:
            async for state in self._client.follow(self.id, timeout_s=timeout_s):
                self.state = state
                show(state.progress, note_of(state))
        self._check_outcome()
        return self

    async def refresh(self) -> Self:
        """As `Job.refresh`."""
        self.state = (await self._client.job(self.id)).state
        return self

    async def cancel(self) -> Self:
        """As `Job.cancel`."""
        self.state = (await self._client.cancel(self.id)).state
        return self


class _Performer:
    """Performs the effects of one flow; holds at most one streamed answer."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._stream: httpx2.Response | None = None
        self._lines: AsyncIterator[str] | None = None

    async def perform(self, effect: Effect) -> Any:
        """Perform an effect and return its result."""
        match effect:
            case Send(request):
                return await self._send(request)
            case NextLine():
                return await self._next_line()
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Work(function):
                return await asyncio.to_thread(function)
            case Emit():
                raise ValueError("expected a flow without emitted values")
        return None

    async def close(self) -> None:
        """Close the streamed answer."""
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None

    async def _send(self, request: Request) -> Reply | Lost:
        await self.close()
        try:
            answer = await self._http.send(self._http.build_request(**form_of(request)), stream=True)
            if request.stream and answer.is_success:
                self._stream, self._lines = answer, aiter(answer.aiter_lines())
                return Reply(answer.status_code, dict(answer.headers), b"")
            try:
                return Reply(answer.status_code, dict(answer.headers), await answer.aread())
            finally:
                await answer.aclose()
        except httpx2.RequestError as error:
            return lost(error)

    async def _next_line(self) -> str | Lost | None:
        try:
            return await anext(self._lines, None) if self._lines is not None else None
        except httpx2.RequestError as error:
            return lost(error)
