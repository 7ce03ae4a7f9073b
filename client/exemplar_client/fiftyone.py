"""Labels for datasets of FiftyOne: segments every photo of a dataset or a view into a field of its samples.

Needs `exemplar-client[fiftyone]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack

import fiftyone

from exemplar_client.calls import Options
from exemplar_client.errors import ExemplarError, Invalid
from exemplar_client.masks import Masks
from exemplar_client.sync_client import Client


def segment_samples(
    samples: fiftyone.core.collections.SampleCollection,
    client: Client,
    categories: str | Iterable[str] | None = None,
    *,
    field: str = "exemplar",
    labels: Literal["detections", "segmentation"] = "detections",
    overwrite: bool = False,
    progress: bool = True,
    on_failure: Callable[[object, ExemplarError], None] | None = None,
    **options: Unpack[Options],
) -> int:
    """Segment the photos of samples and save the masks in a field of each.

    A sample is saved as soon as its photo is segmented, and samples that have a value in the field are left out: call
    it again after an interruption, or when samples were added.

    Args:
        samples: A dataset of images, or a view of one.
        client: Client of the service.
        categories: Names, as for `Client.segment`; None = every category taught at the beginning.
        field: The field; it is added to the dataset if it is not there.
        labels: `detections` writes one `Detection` with a mask for each category found, its presence as `confidence`;
            `segmentation` one label map, 0 = background, i = the i-th category, with the names as `mask_targets`.
        overwrite: True to segment samples that have a value, too.
        progress: True to show a bar.
        on_failure: As for `Client.segment_many`: called with the path and the error of each photo without a result.
        **options: Options of the segmentation.

    Returns:
        Number of samples that were saved.

    Raises:
        Invalid: Not images, or the field has label maps of other categories.
        BatchFailed: After the last photo, if some have no result and `on_failure` is not given.
    """
    if samples.media_type not in ("image", None):
        raise Invalid(f"The samples are of the media type {samples.media_type}: give a dataset or a view of images.")
    names = _names(client, categories)
    if labels == "segmentation":
        _set_mask_targets(samples, field, dict(enumerate(names, start=1)))
    pending = samples if overwrite or not samples.has_field(field) else samples.exists(field, False)
    ids, paths = pending.values("id"), pending.values("filepath")
    saved = 0
    if not paths:
        return saved
    for masks in client.segment_many(paths, names, progress=progress, on_failure=on_failure, **options):
        sample = samples[ids[masks.position]]
        sample[field] = masks.to_fiftyone() if labels == "detections" else _label_map(masks)
        sample.save()
        saved += 1
    return saved


def _names(client: Client, categories: str | Iterable[str] | None) -> list[str]:
    """Names of the categories: the same for all photos, whatever is taught meanwhile."""
    if categories is None:
        categories = [category.name for category in client.categories()]
    names = [categories] if isinstance(categories, str) else list(categories)
    if not names:
        raise Invalid("No category is named or taught: name one, or teach one first.")
    return names


def _set_mask_targets(samples: Any, field: str, targets: dict[int, str]) -> None:
    known = samples.mask_targets.get(field)
    if known and known != targets:
        raise Invalid(
            f"The field {field!r} has label maps of other categories ({', '.join(known.values())}): "
            "name another field, or the same categories in the same order."
        )
    # Assigned and not changed in place: FiftyOne saves what is assigned.
    samples.mask_targets = {**samples.mask_targets, field: targets}


def _label_map(masks: Masks) -> fiftyone.Segmentation:
    return fiftyone.Segmentation(mask=masks.labels.copy())
