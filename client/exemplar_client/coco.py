"""COCO instances: annotations of one photo, and the JSON of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from exemplar_client.errors import Invalid

if TYPE_CHECKING:
    from exemplar_client.masks import Masks


def coco_instances(results: Iterable[Masks], *, category_ids: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Make a COCO instances file of many photos; write it with `json.dump`.

    Args:
        results: Masks of the photos, such as the iterator of `segment_many`; each is dropped after its turn.
        category_ids: Id of each category; default: 1, 2, … in the order in which they occur.

    Returns:
        `{"images": […], "annotations": […], "categories": […]}`. Images are numbered from 1 in the order of `results`;
        a photo in which nothing was found has no annotation.

    Raises:
        Invalid: A category has no id.
    """
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    ids = dict(category_ids or {})
    for image_id, masks in enumerate(results, start=1):
        if category_ids is None:
            for name in masks.names:
                ids.setdefault(name, len(ids) + 1)
        height, width = masks.size_hw
        images.append({"id": image_id, "file_name": masks.name, "width": width, "height": height})
        found += coco_annotations(masks, image_id=image_id, category_ids=ids, first_id=len(found) + 1)
    categories = [{"id": id, "name": name, "supercategory": ""} for name, id in ids.items()]
    return {"images": images, "annotations": found, "categories": categories}


def coco_annotations(
    masks: Masks, *, image_id: int, category_ids: Mapping[str, int] | None, first_id: int
) -> list[dict[str, Any]]:
    """Return the annotations of the categories found in one photo; see `Masks.to_coco`."""
    ids = category_ids if category_ids is not None else {name: id for id, name in enumerate(masks.names, start=1)}
    if missing := [mask.name for mask in masks.found if mask.name not in ids]:
        raise Invalid(f"category_ids has no id of {', '.join(missing)}.")
    return [
        {
            "id": id,
            "image_id": image_id,
            "category_id": ids[mask.name],
            "segmentation": mask.rle,
            "area": mask.area,
            "bbox": list(mask.bbox),
            "iscrowd": 0,
            "score": mask.presence,
        }
        for id, mask in enumerate(masks.found, start=first_id)
    ]
