"""COCO instances: annotations of one photo, and the JSON of many."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar_client.errors import Invalid
from exemplar_client.records import folded

if TYPE_CHECKING:
    from exemplar_client.masks import Masks


def coco_instances(results: Iterable[Masks], *, category_ids: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Make a COCO instances file of many photos; write it with `json.dump`.

    Args:
        results: Masks of the photos, such as the iterator of `segment_many`; each is dropped after its turn.
        category_ids: Id of each category; default: 1, 2, … in the order in which they occur. Names are compared as the
            service does, ignoring case.

    Returns:
        `{"images": […], "annotations": […], "categories": […]}`. Images are numbered from 1 in the order of `results`;
        a photo in which nothing was found has no annotation. No two have the same `file_name`: it is the photo's path
        in the folder that holds all photos given as paths, such as `b/1.jpg`. Photos without a path, and one that is
        given again, have their name and a number if the name is taken: `image.png`, `image_2.png`, ….

    Raises:
        Invalid: A category has no id.
    """
    images: list[dict[str, Any]] = []
    photos: list[tuple[Path | None, str]] = []
    found: list[dict[str, Any]] = []
    names = {folded(name): name for name in category_ids or ()}
    ids = dict(category_ids or {})
    for image_id, masks in enumerate(results, start=1):
        if category_ids is None:
            for name in masks.names:
                ids.setdefault(names.setdefault(folded(name), name), len(ids) + 1)
        height, width = masks.size_hw
        photos.append((masks.path, masks.name))
        images.append({"id": image_id, "file_name": masks.name, "width": width, "height": height})
        found += coco_annotations(masks, image_id=image_id, category_ids=ids, first_id=len(found) + 1)
    for image, name in zip(images, _file_names(photos), strict=True):
        image["file_name"] = name
    categories = [{"id": id, "name": name, "supercategory": ""} for name, id in ids.items()]
    return {"images": images, "annotations": found, "categories": categories}


def _file_names(photos: Sequence[tuple[Path | None, str]]) -> list[str]:
    """A name of its own for each photo, of which the path, if any, and the file's name are given."""
    paths = [os.path.abspath(path) if path else None for path, _ in photos]
    in_folder = _paths_in_common_folder({path for path in paths if path})
    taken = set(in_folder.values())
    last: Counter[str] = Counter()
    names: list[str] = []
    for path, (_, name) in zip(paths, photos, strict=True):
        if path in in_folder:
            names.append(in_folder.pop(path))
        else:
            names.append(_numbered(name, taken, last))
    return names


def _paths_in_common_folder(paths: Iterable[str]) -> dict[str, str]:
    """Each of some absolute paths, with slashes and relative to the folder that holds all of them."""
    folders = {os.path.dirname(path) for path in paths}
    try:
        base = os.path.commonpath(folders)
    except ValueError:  # there are none, or Windows' paths on several drives: they stay whole
        return {path: Path(path).as_posix() for path in paths}
    return {path: Path(path).relative_to(base).as_posix() for path in paths}


def _numbered(name: str, taken: set[str], last: Counter[str]) -> str:
    """The name, or the first of its numbered forms that is free; it is taken then."""
    stem, suffix = os.path.splitext(name)
    free = name
    while free in taken:
        last[name] += 1
        free = f"{stem}_{last[name] + 1}{suffix}"
    taken.add(free)
    return free


def coco_annotations(
    masks: Masks, *, image_id: int, category_ids: Mapping[str, int] | None, first_id: int
) -> list[dict[str, Any]]:
    """Return the annotations of the categories found in one photo; see `Masks.to_coco`."""
    given = category_ids if category_ids is not None else {name: id for id, name in enumerate(masks.names, start=1)}
    ids = {folded(name): id for name, id in given.items()}
    if missing := [mask.name for mask in masks.found if folded(mask.name) not in ids]:
        raise Invalid(f"category_ids has no id of {', '.join(missing)}.")
    return [
        {
            "id": id,
            "image_id": image_id,
            "category_id": ids[folded(mask.name)],
            "segmentation": mask.rle,
            "area": mask.area,
            "bbox": list(mask.bbox),
            "iscrowd": 0,
            "score": mask.presence,
        }
        for id, mask in enumerate(masks.found, start=first_id)
    ]
