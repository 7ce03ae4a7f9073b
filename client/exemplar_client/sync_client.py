"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
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


class Client:
    """Client of one running service; threads may share it.

    Use it in a `with` statement, or call `close`.

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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        check_arguments(url, key, timeout_s=timeout_s)
        proxy = proxy_of(url) if transport is None else None
        self._calls = Calls(Service(url, proxy), Retries(tries))
        with checking_proxies():
            self._http = httpx2.Client(
                base_url=url, timeout=timeout_s, headers={"X-API-Key": key} if key else {}, transport=transport
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> Health:
        """Return whether the service answers and is ready; an unreachable one is no error."""
        return self._run(self._calls.health())

    def teach(
        self,
        name: str,
        image: ImageInput,
        mask: MaskInput,
        prompts: str | Sequence[str] = (),
        replace: bool = False,
        *,
        idempotency_key: str | None = None,
    ) -> Job:
        """Teach a category from a photo and a mask.

        Args:
            name: The category, 1 to 64 characters without a slash.
            image: The photo; `photos.open_photo` lists the accepted forms.
            mask: Where the category is; `annotations.read_mask` lists the accepted forms.
            prompts: Other words for the category.
            replace: True to remove the earlier examples, False to add one.
            idempotency_key: Visible ASCII; the service does the work once for each key. Default: a new key for each
                call, so that a try that is repeated after a lost connection adds no second example.

        Returns:
            The job that learns from the example; call its `wait`.

        Raises:
            Invalid: The photo or the mask can't be used.
            ExemplarError: The service refuses it or can't be reached; this holds for every method.
        """
        flow = self._calls.teach(name, image, mask, prompts=prompts, replace=replace, idempotency_key=idempotency_key)
        return self._job_of(self._run(flow))

    def absent(self, name: str, image: ImageInput, *, idempotency_key: str | None = None) -> Job:
        """Teach that a photo does not show a category, such as one in which it was marked in error.

        Raises:
            Conflict: The category has no example that shows it.
        """
        return self._job_of(self._run(self._calls.absent(name, image, idempotency_key=idempotency_key)))

    def segment(
        self, image: ImageInput, categories: str | Iterable[str] | None = None, **options: Unpack[Options]
    ) -> Masks:
        """Segment a photo.

        Args:
            image: The photo; `photos.open_photo` lists the accepted forms.
            categories: Names; one that was not taught is segmented by its words. None = every category taught.
            **options: See `Options`.

        Returns:
            One mask per category, in order; those of categories that were not found are empty.
        """
        return self._run(self._calls.segment(image, categories, options))

    def click(self, image: ImageInput, points: Iterable[Sequence[float]], *, refine: bool = True) -> ClickedMask:
        """Propose the mask of one object from clicks; nothing needs to be taught.

        Args:
            image: The photo; `photos.open_photo` lists the accepted forms.
            points: `(x, y)` or `(x, y, 1)` on the object and `(x, y, 0)` beside it, in pixels of the upright photo.
            refine: False to leave the edges unrefined.
        """
        return self._run(self._calls.click(image, points, refine=refine))

    def segment_many(
        self,
        images: ImageInput | Iterable[ImageInput],
        categories: str | Iterable[str] | None = None,
        *,
        progress: bool = True,
        on_failure: Callable[[object, ExemplarError], None] | None = None,
        **options: Unpack[Options],
    ) -> Generator[Masks, None, None]:
        """Segment the photos of a folder or a list.

        Args:
            images: A folder (its image files in the order of their names, without hidden ones and subfolders) or photos
                in any form.
            categories: As for `segment`.
            progress: True to show a bar.
            on_failure: Called with each photo that has no result and its error; without it, the first error is raised
                after the last photo, see below.
            **options: See `Options`.

        Yields:
            The masks of each photo as soon as they arrive, so in any order: `source` is the photo, `position`
            its place among them.

        Raises:
            BatchFailed: After the last photo, if some have no result and `on_failure` is not given.
        """
        photos = images_in(images)
        flow = self._calls.segment_many(photos, categories, options)
        return self._segmented(flow, len(photos) if isinstance(photos, Sized) else None, progress, on_failure)

    def _segmented(
        self,
        flow: Flow[None],
        total: int | None,
        progress: bool,
        on_failure: Callable[[object, ExemplarError], None] | None,
    ) -> Generator[Masks, None, None]:
        failed: list[Failed] = []
        with progress_bar("segmenting", total=total, enabled=progress) as show, closing(self._emitted(flow)) as results:
            for done, result in enumerate(results, start=1):
                show(done, f"{done}/{total or '?'} photos")
                if not isinstance(result, Failed):
                    yield result
                elif on_failure:
                    on_failure(result.source, result.error)
                else:
                    failed.append(result)
        if failed:
            raise BatchFailed([(each.source, each.error) for each in failed], [each.name for each in failed])

    def categories(self) -> list[Category]:
        """Return all categories, the oldest first."""
        return self._run(self._calls.categories())

    def category(self, name: str) -> Category:
        """Return one category."""
        return self._run(self._calls.category(name))

    def delete(self, name: str) -> None:
        """Delete a category with its examples and adapter versions."""
        self._run(self._calls.delete(name))

    def examples(self, name: str) -> list[Example]:
        """Return the examples that a category was taught from."""
        return self._run(self._calls.examples(name))

    def delete_example(self, name: str, id: str) -> Job | None:
        """Remove an example; return the job that learns from the others, None if no example is left."""
        taught = self._run(self._calls.delete_example(name, id))
        return self._job_of(taught) if taught else None

    def versions(self, name: str) -> list[Version]:
        """Return the adapter versions that are kept, the newest first."""
        return self._run(self._calls.versions(name))

    def rollback(self, name: str, version: int) -> Category:
        """Use an older adapter version again; a job that is queued or running is superseded."""
        return self._run(self._calls.rollback(name, version))

    def export(self, name: str) -> bytes:
        """Return the adapter in use, as safetensors."""
        return self._run(self._calls.export(name))

    def import_(self, name: str, adapter: bytes) -> Category:
        """Store an adapter that another deployment of the same model exported.

        Raises:
            Conflict: It is of another model.
        """
        return self._run(self._calls.import_(name, adapter))

    def jobs(self, category: str | None = None, status: str | None = None) -> list[Job]:
        """Return the jobs, the newest first; only those of a category or with a status, if given."""
        return [Job(self, state) for state in self._run(self._calls.jobs(category=category, status=status))]

    def job(self, id: str) -> Job:
        """Return one job."""
        return Job(self, self._run(self._calls.job(id)))

    def cancel(self, id: str) -> Job:
        """Cancel a job; the adapter in use and the new example stay.

        Raises:
            Conflict: It has ended.
        """
        return Job(self, self._run(self._calls.cancel(id)))

    def follow(self, id: str, *, timeout_s: float | None = None) -> Generator[JobState, None, None]:
        """Yield a job at every change, its final state last.

        Args:
            id: The job's id.
            timeout_s: Seconds after which `TimeoutError` is raised; checked at every event, at least each 15 s.
        """
        return self._emitted(self._calls.follow(id, timeout_s=timeout_s))

    def _job_of(self, taught: Taught) -> Job:
        return Job(self, taught.job, note=taught.note, warnings=taught.warnings)

    def _run(self, flow: Flow[Result]) -> Result:
        """Perform a flow without emitted values, and return its result."""
        performer = _Performer(self._http)
        result: Any = None
        try:
            while True:
                result = performer.perform(flow.send(result))
        except StopIteration as end:
            value: Result = end.value
            return value
        finally:
            performer.close()

    def _emitted(self, flow: Flow[None]) -> Generator[Any, None, None]:
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
                    result = performer.perform(effect)
        finally:
            performer.close()


class Job(JobView):
    """A job of the service; `wait` follows it to its end."""

    def __init__(self, client: Client, state: JobState, **parts: Any) -> None:
        super().__init__(state, **parts)
        self._client = client

    def wait(self, progress: bool = True, timeout_s: float | None = None) -> Self:
        """Follow the job to its end.

        Args:
            progress: True to show a bar in a terminal, one line elsewhere.
            timeout_s: Seconds to wait; the job goes on after that.

        Returns:
            This job.

        Raises:
            JobFailed: It ended without success; a job is superseded if a newer example of the category was sent.
            TimeoutError: It has not ended in time.
        """
        with progress_bar(label_of(self.state), total=1.0, enabled=progress) as show:
            for state in self._client.follow(self.id, timeout_s=timeout_s):
                self.state = state
                show(state.progress, note_of(state))
        self._check_outcome()
        return self

    def refresh(self) -> Self:
        """Ask for the job's present state, and return this job."""
        self.state = self._client.job(self.id).state
        return self

    def cancel(self) -> Self:
        """Cancel the job, and return it."""
        self.state = self._client.cancel(self.id).state
        return self


class _Performer:
    """Performs the effects of one flow; holds at most one streamed answer."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._stream: httpx2.Response | None = None
        self._lines: Iterator[str] = iter(())

    def perform(self, effect: Effect) -> Any:
        """Perform an effect and return its result."""
        match effect:
            case Send(request):
                return self._send(request)
            case NextLine():
                return self._next_line()
            case Pause(seconds):
                time.sleep(seconds)
            case Work(function):
                return function()
            case Emit():
                raise ValueError("expected a flow without emitted values")
        return None

    def close(self) -> None:
        """Close the streamed answer."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _send(self, request: Request) -> Reply | Lost:
        self.close()
        try:
            answer = self._http.send(self._http.build_request(**form_of(request)), stream=True)
            if request.stream and answer.is_success:
                self._stream, self._lines = answer, answer.iter_lines()
                return Reply(answer.status_code, dict(answer.headers), b"")
            try:
                return Reply(answer.status_code, dict(answer.headers), answer.read())
            finally:
                answer.close()
        except httpx2.RequestError as error:
            return lost(error)

    def _next_line(self) -> str | Lost | None:
        try:
            return next(self._lines, None)
        except httpx2.RequestError as error:
            return lost(error)
