"""Masks as objects of other libraries, which are imported only here and only when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import fiftyone
    import matplotlib.axes
    import supervision

    from exemplar_client.masks import Masks


def to_supervision(masks: Masks) -> supervision.Detections:
    """See `Masks.to_supervision`."""
    import supervision

    if not masks.found:
        return supervision.Detections.empty()
    numbers = [number for number, mask in enumerate(masks) if mask.area]
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (mask.bbox for mask in masks.found)]
    return supervision.Detections(
        xyxy=np.array(boxes, dtype=np.float32),
        mask=np.stack([mask.array for mask in masks.found]),
        confidence=np.array([mask.presence for mask in masks.found], dtype=np.float32),
        class_id=np.array(numbers),
        data={"class_name": np.array([mask.name for mask in masks.found])},
    )


def to_fiftyone(masks: Masks) -> fiftyone.Detections:
    """See `Masks.to_fiftyone`."""
    import fiftyone

    height, width = masks.size_hw
    detections = []
    for mask in masks.found:
        x, y, box_width, box_height = mask.bbox
        detections.append(
            fiftyone.Detection(
                label=mask.name,
                bounding_box=[x / width, y / height, box_width / width, box_height / height],
                mask=mask.array[y : y + box_height, x : x + box_width].copy(),
                confidence=mask.presence,
            )
        )
    return fiftyone.Detections(detections=detections)


def plot(masks: Masks, ax: matplotlib.axes.Axes | None) -> matplotlib.axes.Axes:
    """See `Masks.plot`."""
    import matplotlib.pyplot

    axes: matplotlib.axes.Axes = ax if ax is not None else matplotlib.pyplot.subplots()[1]
    axes.imshow(np.asarray(masks.overlay()))
    axes.set_title(", ".join(f"{mask.name} {mask.presence:.2f}" for mask in masks.found))
    axes.set_axis_off()
    return axes
