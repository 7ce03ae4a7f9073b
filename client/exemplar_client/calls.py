"""The calls of the service as flows: what each one sends, and how its answer is read."""

from __future__ import annotations

import json
import os
import time
import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from exemplar_client.annotations import Drawn, MaskInput, read_mask
from exemplar_client.errors import ExemplarError, Invalid, TooLarge, Unavailable, error_of
from exemplar_client.masks import ClickedMask, Masks, Segmented
from exemplar_client.photos import SUFFIXES, ImageInput, Photo, open_photo, printable
from exemplar_client.records import Category, Example, Health, JobState, Taught, Version
from exemplar_client.wire import (
    HEADER_VALUE,
    Emit,
    File,
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
    error_in,
    next_page,
    send,
    until,
)

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")

# Photos per request: any eight photos fit the service's limits, and they keep it busy.
_BATCH = 8
# Statuses of a photo of a batch for which the service is busy or not ready: it may be sent again.
_BUSY = (429, 503)
# The service sends a line at least every 15 s while a job waits.
_STREAM_TIMEOUT_S = 60.0


class Options(TypedDict, total=False):
    """Options of a segmentation; those that are left out or None have the service's defaults.

    `min_presence`: a category gets a mask from this presence on; 0 = every category. `threshold`: a pixel belongs to a
    category from this probability on; by default the most probable class wins. `refine`: `crf` refines edges, `none`
    does not. `background`: words for what belongs to no category. `adapters`: `none` uses the words alone. `backbone`:
    the name of a loaded model.
    """

    min_presence: float | None
    threshold: float | None
    refine: Literal["crf", "none"] | None
    background: str | Sequence[str] | None
    adapters: Literal["auto", "none"] | None
    backbone: str | None


@dataclass(frozen=True)
class Failed:
    """A photo of a batch without a result."""

    index: int
    source: object
    name: str
    error: ExemplarError


class Calls:
    """The calls of one service. Every method returns a flow.

    Args:
        service: The service.
        retries: When a request is sent again.
    """

    def __init__(self, service: Service, retries: Retries) -> None:
        self._service = service
        self._retries = retries

    def health(self) -> Flow[Health]:
        """Ask once whether the service is ready."""
        reply: Reply | Lost = yield Send(Request("GET", "/readyz"))
        if isinstance(reply, Lost):
            return Health(alive=False, ready=False, detail=reply.reason)
        self._service.answered = True
        if reply.status == 200:
            return Health(alive=True, ready=True)
        return Health(alive=True, ready=False, detail=error_in(reply, self._service).detail)

    def teach(
        self,
        name: str,
        image: ImageInput,
        mask: MaskInput,
        *,
        prompts: str | Sequence[str] = (),
        replace: bool = False,
        idempotency_key: str | None = None,
    ) -> Flow[Taught]:
        """Send an example that shows the category."""
        if mask is None:  # such as of a detector that found nothing, which says nothing of the photo
            raise Invalid("The mask is None: give one, or call absent() for a photo without the category.")
        return (yield from self._example(name, image, mask, prompts, replace, idempotency_key))

    def absent(self, name: str, image: ImageInput, *, idempotency_key: str | None = None) -> Flow[Taught]:
        """Send a photo that does not show the category."""
        return (yield from self._example(name, image, None, (), False, idempotency_key))

    def _example(
        self,
        name: str,
        image: ImageInput,
        mask: MaskInput | None,
        prompts: str | Sequence[str],
        replace: bool,
        idempotency_key: str | None,
    ) -> Flow[Taught]:
        if idempotency_key is not None and not HEADER_VALUE.fullmatch(idempotency_key):
            raise Invalid("The idempotency_key is not of visible ASCII characters: choose another one.")
        photo, drawn = yield Work(partial(_read_example, image, mask))
        fields: dict[str, Sequence[str]] = {"mode": ["replace" if replace else "append"], "prompts": _words(prompts)}
        files = [File("image", photo.name, (yield Work(photo.content)))]
        if drawn is None:
            fields["absent"] = ["true"]
        elif isinstance(drawn.content, bytes):
            files.append(File(drawn.field, "mask", drawn.content))
        else:
            fields[drawn.field] = [drawn.content]
        # With a key the service does the work once, so the request may be sent again.
        key = idempotency_key or uuid.uuid4().hex
        request = Request(
            "POST", f"{_path_of(name)}/example", fields=fields, files=files, headers={"Idempotency-Key": key}
        )
        return _parsed(Taught, (yield from self._send(request)))

    def segment(self, image: ImageInput, categories: str | Iterable[str] | None, options: Options) -> Flow[Masks]:
        """Segment one photo."""
        fields = _fields(categories, options)
        photo: Photo = yield Work(partial(open_photo, image))
        files = [File("image", photo.name, (yield Work(photo.content)))]
        reply = yield from self._send(Request("POST", "/segment", fields=fields, files=files))
        return Masks(_parsed(Segmented, reply), photo, age_s=_age_s(reply))

    def click(self, image: ImageInput, points: Iterable[Sequence[float]], *, refine: bool) -> Flow[ClickedMask]:
        """Propose the mask of the object that some points are on and others are not."""
        photo: Photo = yield Work(partial(open_photo, image))
        files = [File("image", photo.name, (yield Work(photo.content)))]
        fields = {"points": [_points(points)], "refine": ["crf" if refine else "none"]}
        return _parsed(
            ClickedMask, (yield from self._send(Request("POST", "/segment/clicks", fields=fields, files=files)))
        )

    def segment_many(
        self, images: Iterable[ImageInput], categories: str | Iterable[str] | None, options: Options
    ) -> Flow[None]:
        """Segment photos in requests of several; emits `Masks` or `Failed` of each."""
        fields = _fields(categories, options)
        numbered = enumerate(images)
        while some := (yield Work(lambda: list(islice(numbered, _BATCH)))):
            yield from self._segment_some(some, fields)

    def _segment_some(
        self, images: Sequence[tuple[int, ImageInput]], fields: Mapping[str, Sequence[str]]
    ) -> Flow[None]:
        pending: dict[int, Photo] = {}
        files: dict[int, File] = {}
        for index, image in images:
            opened: tuple[Photo, File] | Failed = yield Work(partial(_open_or_fail, index, image))
            if isinstance(opened, Failed):
                yield Emit(opened)
            else:
                pending[index], files[index] = opened
        yield from self._segment_opened(pending, files, fields)

    def _segment_opened(
        self, pending: dict[int, Photo], files: Mapping[int, File], fields: Mapping[str, Sequence[str]]
    ) -> Flow[None]:
        """Send the pending photos, and those that got no answer again."""
        tried = 0
        while pending:
            if tried >= self._retries.tries:
                raise Unavailable(
                    f"{self._service.url} ended its answer before the last photo, {tried} times in a row."
                )
            if tried:
                yield Pause(self._retries.backoff_s(tried))
            before = len(pending)
            is_last = tried + 1 >= self._retries.tries
            try:
                yield from self._read_lines(
                    pending, [(index, files[index]) for index in pending], fields, is_last=is_last
                )
            except TooLarge as error:  # one of them may be too large; it must not take the others with it
                yield from self._segment_singly(pending, files, fields, error)
                return
            tried = tried + 1 if len(pending) == before else 1

    def _segment_singly(
        self,
        pending: dict[int, Photo],
        files: Mapping[int, File],
        fields: Mapping[str, Sequence[str]],
        error: TooLarge,
    ) -> Flow[None]:
        """Send photos one by one of which several at once are refused; a single one that is refused has failed."""
        if len(pending) == 1:
            ((index, photo),) = pending.items()
            yield Emit(Failed(index, photo.source, photo.name, error))
            return
        for index, photo in pending.items():
            yield from self._segment_opened({index: photo}, files, fields)

    def _read_lines(
        self,
        pending: dict[int, Photo],
        files: Sequence[tuple[int, File]],
        fields: Mapping[str, Sequence[str]],
        *,
        is_last: bool,
    ) -> Flow[None]:
        """Send the pending photos, emit what the lines of the answer say, and remove those answered.

        A photo for which the service is busy or not ready stays pending, except in the last try.
        """
        request = Request(
            "POST",
            "/segment/batch",
            fields=fields,
            files=[file for _, file in files],
            expects="application/x-ndjson",
            stream=True,
        )
        reply = yield from self._send(request)
        while isinstance(text := (yield NextLine()), str):
            if text.strip():
                line = _json_of(text)
                if line is None:
                    return
                try:
                    index = files[line["index"]][0]
                except (LookupError, TypeError) as error:
                    raise _unexpected(error, request_id=None) from error
                if is_last or (line.get("problem") or {}).get("status") not in _BUSY:
                    yield Emit(_result(line, index, pending.pop(index), _age_s(reply)))

    def categories(self) -> Flow[list[Category]]:
        """List all categories."""
        return (yield from self._list("/categories", Category))

    def category(self, name: str) -> Flow[Category]:
        """Read one category."""
        return (yield from self._get(_path_of(name), Category))

    def delete(self, name: str) -> Flow[None]:
        """Delete a category."""
        # Not repeatable: after a lost answer, the second try would be told that there is no such category.
        yield from self._send(Request("DELETE", _path_of(name), expects=None, repeatable=False))

    def examples(self, name: str) -> Flow[list[Example]]:
        """List the examples of a category."""
        return (yield from self._list(f"{_path_of(name)}/examples", Example))

    def delete_example(self, name: str, id: str) -> Flow[Taught | None]:
        """Remove an example; None if no example is left, so that no job was started."""
        path = f"{_path_of(name)}/examples/{_quoted(id)}"
        reply = yield from self._send(Request("DELETE", path, expects=None, repeatable=False))
        return None if reply.status == 204 else _parsed(Taught, reply)

    def versions(self, name: str) -> Flow[list[Version]]:
        """List the adapter versions of a category."""
        return (yield from self._list(f"{_path_of(name)}/versions", Version))

    def rollback(self, name: str, version: int) -> Flow[Category]:
        """Use an older adapter version again."""
        request = Request("POST", f"{_path_of(name)}/rollback", json={"version": version})
        return _parsed(Category, (yield from self._send(request)))

    def export(self, name: str) -> Flow[bytes]:
        """Read the adapter in use."""
        request = Request("GET", f"{_path_of(name)}/adapter", expects="application/octet-stream")
        return (yield from self._send(request)).body

    def import_(self, name: str, adapter: bytes) -> Flow[Category]:
        """Store an adapter that was exported elsewhere."""
        request = Request(
            "PUT",
            f"{_path_of(name)}/adapter",
            content=bytes(adapter),
            headers={"Content-Type": "application/octet-stream"},
            repeatable=False,  # each makes a version
        )
        return _parsed(Category, (yield from self._send(request)))

    def jobs(self, *, category: str | None, status: str | None) -> Flow[list[JobState]]:
        """List jobs."""
        given = {"category": category, "status": status}
        params = {name: value for name, value in given.items() if value is not None}
        for value in params.values():
            _check_text(value)
        return (yield from self._list("/jobs", JobState, params))

    def job(self, id: str) -> Flow[JobState]:
        """Read one job."""
        return (yield from self._get(f"/jobs/{_quoted(id)}", JobState))

    def cancel(self, id: str) -> Flow[JobState]:
        """Cancel a job."""
        # Not repeatable: after a lost answer, the second try would be told that the job has ended.
        request = Request("DELETE", f"/jobs/{_quoted(id)}", repeatable=False)
        return _parsed(JobState, (yield from self._send(request)))

    def follow(self, id: str, *, timeout_s: float | None) -> Flow[None]:
        """Emit the job at every change, its final state last; `TimeoutError` if it has not ended in time."""
        flow = self._follow(id)
        if timeout_s is not None:
            told = f"Job {id} has not ended in time; it goes on, call job({id!r}) to look after it."
            flow = until(time.monotonic() + timeout_s, flow, told=told)
        yield from flow

    def _follow(self, id: str) -> Flow[None]:
        """Emit the job at every change, its final state last; reconnects if the stream is cut."""
        request = Request(
            "GET",
            f"/jobs/{_quoted(id)}/events",
            expects="text/event-stream",
            stream=True,
            timeout_s=_STREAM_TIMEOUT_S,
        )
        last: JobState | None = None
        tried = 0
        while tried < self._retries.tries:
            if tried:
                yield Pause(self._retries.backoff_s(tried))
            tried += 1
            yield from self._send(request)
            while isinstance(line := (yield NextLine()), str):
                if line.startswith("data:"):
                    event = _json_of(line.removeprefix("data:"))
                    if event is None:
                        break
                    try:
                        state = JobState.model_validate(event)
                    except ValidationError as error:
                        raise _unexpected(error, request_id=None) from error
                    # Told of the job, though maybe nothing new: a gateway may cut every answer after its time.
                    tried = 1
                    if state != last:
                        last = state
                        yield Emit(state)
                    if state.ended:
                        return
        raise Unavailable(f"The events of job {id} end before the job: call job({id!r}) later.")

    def _send(self, request: Request) -> Flow[Reply]:
        return (yield from send(request, self._retries, self._service))

    def _get(self, path: str, model: type[Model]) -> Flow[Model]:
        return _parsed(model, (yield from self._send(Request("GET", path))))

    def _list(self, path: str, model: type[Model], params: Mapping[str, str] | None = None) -> Flow[list[Model]]:
        """Read all pages of a list."""
        page: Mapping[str, str] | None = params or {}
        items: list[Model] = []
        while page is not None:
            reply = yield from self._send(Request("GET", path, params=page))
            items += _read(TypeAdapter(list[model]), reply)  # type: ignore[valid-type]
            page = next_page(reply)
        return items


def images_in(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    """The photos that an argument of `segment_many` stands for.

    Args:
        images: A folder, whose image files are taken in the order of their names, without hidden ones and subfolders;
            or photos.

    Raises:
        Invalid: A single photo, a folder without image files, or nothing that can be iterated over.
    """
    if isinstance(images, str | os.PathLike):
        folder = Path(images)
        shown = printable(str(folder))
        if not folder.is_dir():
            raise Invalid(f"{shown} is not a folder: give a folder or a list of photos, or call `segment`.")
        visible = (path for path in folder.iterdir() if not path.name.startswith("."))
        files = sorted(path for path in visible if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            raise Invalid(f"The folder {shown} has no image files ({', '.join(sorted(SUFFIXES))}).")
        return files
    is_photo = isinstance(images, bytes | bytearray | memoryview) or hasattr(images, "read") or hasattr(images, "shape")
    try:
        iter(images)  # type: ignore[arg-type]
    except TypeError:  # None, a Pillow image, an asynchronous iterator
        is_photo = True
    if is_photo:
        raise Invalid(
            f"segment_many takes a folder or a list of photos, not {type(images).__name__}: for one photo call "
            "`segment`."
        )
    return images  # type: ignore[return-value]


def _json_of(line: str) -> Any:
    """The JSON of a line; None if it was cut off, as by a proxy that ends the answer with its connection."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _read_example(image: ImageInput, mask: MaskInput | None) -> tuple[Photo, Drawn | None]:
    photo = open_photo(image)
    return photo, None if mask is None else read_mask(mask, photo_hw=photo.size_hw)


def _open_or_fail(index: int, image: ImageInput) -> tuple[Photo, File] | Failed:
    name = printable(str(image)) if isinstance(image, str | os.PathLike) else f"photo {index}"
    try:
        photo = open_photo(image)
        return photo, File("images", photo.name, photo.content())
    except OSError as error:
        return Failed(index, image, name, Invalid(str(error)))
    except ExemplarError as error:
        return Failed(index, image, name, error)


def _result(line: dict[str, Any], index: int, photo: Photo, age_s: float | None) -> Masks | Failed:
    """What one line of a batch says about its photo."""
    problem = line.get("problem")
    if problem:
        return Failed(index, photo.source, photo.name, error_of(int(problem.get("status", 500)), problem))
    try:
        answer = Segmented.model_validate(line)
    except ValidationError as error:
        return Failed(index, photo.source, photo.name, _unexpected(error, request_id=None))
    return Masks(answer, photo, position=index, age_s=age_s)


def _fields(categories: str | Iterable[str] | None, options: Options) -> dict[str, Sequence[str]]:
    """Fields of a segmentation's form."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    fields: dict[str, Sequence[str]] = {}
    if categories is not None:
        fields["categories"] = _words(categories)
        if not fields["categories"]:
            raise Invalid("No category is named: name one, or leave `categories` out for every category taught.")
    for name, value in options.items():
        if value is not None:
            fields[name] = _words(value if name == "background" else [str(value)])  # type: ignore[arg-type]
    return fields


def _points(points: Iterable[Sequence[float]]) -> str:
    """Points as the service reads them; numbers of NumPy are numbers too."""
    try:
        return json.dumps([[float(x), float(y), *(int(bool(side)) for side in rest)] for x, y, *rest in points])
    except (TypeError, ValueError) as error:
        raise Invalid(f"The points are {points!r}: give a list of (x, y) or (x, y, side), in pixels.") from error


def _words(words: str | Iterable[str]) -> list[str]:
    """Values of a list field. The service reads commas in them as separators, unless they come as one JSON list."""
    given = [words] if isinstance(words, str) else list(words)
    for word in given:
        _check_text(word)
    return (
        [json.dumps(given)]
        if any("," in word or word.lstrip().startswith(("[", "{", '"')) for word in given)
        else given
    )


def _path_of(name: str) -> str:
    """Path of a category."""
    plain = unicodedata.normalize("NFC", name).strip()
    if not plain or "/" in plain:
        raise Invalid(f"{name!r} is not a category's name: give 1 to 64 characters without a slash.")
    return f"/categories/{_quoted(plain)}"


def _quoted(part: str) -> str:
    if not part:
        raise Invalid("An id is empty: give one that the service has named.")
    _check_text(part)
    # Points too: a part of one or two points would be resolved as a step in the path.
    return quote(part, safe="").replace(".", "%2E")


def _check_text(text: str) -> None:
    """Refuse text that can't be sent.

    Raises:
        Invalid: If it has half a surrogate pair, as names of files have for bytes that are not UTF-8.
    """
    if printable(text) != text:
        raise Invalid(f"{printable(text)!r} has characters that are not UTF-8: write it in UTF-8.")


def _age_s(reply: Reply) -> float | None:
    try:
        return float(reply.headers["x-categories-age"])
    except (KeyError, ValueError):
        return None


def _parsed(model: type[Model], reply: Reply) -> Model:
    return _read(TypeAdapter(model), reply)


def _read(adapter: TypeAdapter[Item], reply: Reply) -> Item:
    try:
        return adapter.validate_json(reply.body)
    except ValidationError as error:
        raise _unexpected(error, request_id=reply.headers.get("x-request-id")) from error


def _unexpected(error: Exception, *, request_id: str | None) -> ExemplarError:
    return ExemplarError(
        f"The service's answer is not what this version of exemplar-client expects: {error}", request_id=request_id
    )
