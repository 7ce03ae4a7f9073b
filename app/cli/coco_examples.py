"""Examples of the categories of a COCO file: which photos are sent, and what came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.client import Client, RefusedError
from app.coco import Coco, CocoAnnotation, CocoImage, find_photos, read_coco, union
from app.errors import AppError, InvalidInputError
from app.images.photo import decode_photo
from app.masks import MalformedMaskError
from app.masks.rle import mask_to_rle
from app.storage.names import CategoryName

# Photos that the service may refuse before a category counts as not teachable.
_MAX_REFUSED = 5
# An example that can't be used, in contrast to a caller who may not send any.
_UNUSABLE = (409, 413, 415, 422)
_MAX_PIXELS = 200_000_000


@dataclass(frozen=True)
class Candidate:
    """A photo that shows a category.

    Attributes:
        image: As the COCO file describes it.
        photo: Its file; None if there is none.
        annotations: All of the category in it.
    """

    image: CocoImage
    photo: Path | None
    annotations: Sequence[CocoAnnotation]


@dataclass(frozen=True)
class Teachable:
    """A category and the photos that may teach it, the best first."""

    name: str
    candidates: Sequence[Candidate]


@dataclass
class Taught:
    """What came of teaching it; `problem` is None if the category was taught."""

    name: str
    photos: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    adapter: dict[str, Any] | None = None
    problem: str | None = None


def read_categories(file: Path, images: Path | None, names: Sequence[str]) -> list[Teachable]:
    """Read the categories of a COCO file.

    Args:
        file: A COCO instances file.
        images: Folder with its photos; None to look where they usually lie.
        names: Categories to teach; none = all of the file.

    Raises:
        InvalidInputError: If it is no such file, has no such category or no annotation, or none of its photos is found.
    """
    coco = read_coco(file)
    known = {CategoryName(name) for name in coco.categories.values()}
    wanted = {CategoryName.parse(name) for name in names}
    if unknown := wanted - known:
        missing = ", ".join(sorted(name.text for name in unknown))
        raise InvalidInputError(f"{file} has no category {missing}: it has {', '.join(coco.categories.values())}.")
    if not coco.annotations:
        raise InvalidInputError(f"{file} has no annotation: annotate a photo, or export again.")
    photos = find_photos(coco, [images] if images else coco.folders())
    if not any(photos[id] for id in coco.annotations):
        first = coco.images[next(iter(coco.annotations))].file_name
        where = str(images) if images else f"{file.parent} and its images folder"
        raise InvalidInputError(
            f"None of the photos of {file} is in {where}, such as {first}: name their folder with --images."
        )
    chosen = [(name.text, ids) for name, ids in _ids_by_name(coco) if not wanted or name in wanted]
    return [Teachable(name, _candidates(coco, ids, photos)) for name, ids in chosen]


def teach_category(
    client: Client, category: Teachable, *, shots: int, replace: bool, told: Callable[[float], object]
) -> Taught:
    """Send the examples of a category, wait for its job, and tell what came of it.

    Args:
        client: Client of the service.
        category: The category and its photos.
        shots: Number of photos to send.
        replace: True to remove the category's earlier examples.
        told: Called with the share of the job that is done.

    Raises:
        AppError: If the service can't be reached or accepts nothing of this caller.
    """
    outcome = Taught(category.name)
    try:
        CategoryName.parse(category.name)
    except InvalidInputError as error:
        outcome.problem = error.detail
        return outcome
    job = None
    problems: list[str] = []
    for candidate in category.candidates:
        if len(outcome.photos) == shots or len(problems) == _MAX_REFUSED:
            break
        try:
            job = _send(client, category.name, candidate, replace=replace and job is None)
        except InvalidInputError as error:
            problems.append(error.detail)
        else:
            outcome.photos.append(candidate.image.file_name)
            outcome.warnings += [f"{warning['code']}: {candidate.image.file_name}" for warning in job["warnings"]]
    if job is None:
        outcome.problem = problems[0] if problems else "no annotation"
        return outcome
    if len(outcome.photos) < shots:
        outcome.warnings.append(
            f"only {len(outcome.photos)} of {shots} photos" + (f" ({problems[0]})" if problems else "")
        )
    return _ended(client, job, outcome, told)


def _ended(client: Client, job: dict[str, Any], outcome: Taught, told: Callable[[float], object]) -> Taught:
    state = job
    for state in client.follow(job["id"]):
        told(state["progress"])
    if state["status"] == "succeeded":
        outcome.adapter = client.category(outcome.name)["adapter"]
        outcome.warnings += [warning["code"] for warning in state.get("warnings", ())]
    else:
        outcome.problem = f"the job {state['status']}: {state['error']}"
    return outcome


def _send(client: Client, name: str, candidate: Candidate, *, replace: bool) -> dict[str, Any]:
    """Send one example; return its job.

    Raises:
        InvalidInputError: If this example can't be used.
    """
    if candidate.photo is None:
        raise InvalidInputError(f"the photo {candidate.image.file_name} is missing")
    try:
        hw = candidate.image.hw or _size_of(candidate.photo)
        mask = mask_to_rle(union(candidate.annotations, hw))
        return client.teach(name, candidate.photo, segmentation=mask, replace=replace)
    except MalformedMaskError as error:
        raise InvalidInputError(f"{candidate.image.file_name}: the annotation can't be drawn: {error}") from error
    except OSError as error:
        raise InvalidInputError(f"{candidate.photo}: {error.strerror}") from error
    except RefusedError as error:
        if error.status not in _UNUSABLE:
            raise
        raise InvalidInputError(f"{candidate.image.file_name}: {error.detail}") from error


def _size_of(photo: Path) -> tuple[int, int]:
    """(height, width) after EXIF rotation."""
    try:
        height, width, _ = decode_photo(photo.read_bytes(), max_pixels=_MAX_PIXELS).rgb.shape
    except AppError as error:
        raise InvalidInputError(f"{photo}: {error.detail}") from error
    return height, width


def _ids_by_name(coco: Coco) -> list[tuple[CategoryName, set[Any]]]:
    """Each name with the ids of its categories: merged files may have several, also in other spellings."""
    named: dict[CategoryName, set[Any]] = defaultdict(set)
    for id, name in coco.categories.items():
        named[CategoryName(name)].add(id)
    return list(named.items())


def _candidates(coco: Coco, ids: set[Any], photos: dict[Any, Path | None]) -> list[Candidate]:
    """Photos that show a category. First those that are there; then those without crowds, whose outlines are coarse;
    then those that show it largest.
    """
    found = [
        Candidate(coco.images[id], photos[id], annotations)
        for id, all_of_it in coco.annotations.items()
        if (annotations := [annotation for annotation in all_of_it if annotation.category in ids])
    ]
    return sorted(found, key=lambda candidate: (candidate.photo is None, *_rank(candidate)))


def _rank(candidate: Candidate) -> tuple[bool, float]:
    height, width = candidate.image.hw or (1, 1)
    largest = max(annotation.area for annotation in candidate.annotations)
    return any(annotation.is_crowd for annotation in candidate.annotations), -largest / (height * width)
