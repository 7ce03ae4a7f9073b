"""Auto-annotation function of CVAT: `cvat-cli` labels the images of a task with a running service.

    cvat-cli task auto-annotate 17 --function-module exemplar_client.cvat -p url=str:http://127.0.0.1:8000

Needs `exemplar-client[cvat]`. Interface: https://docs.cvat.ai/docs/api_sdk/sdk/auto-annotation/
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import contourpy
import cvat_sdk.auto_annotation as cvat
import numpy as np
import shapely
from cvat_sdk.masks import encode_mask
from PIL import Image

from exemplar_client.errors import ExemplarError, Invalid
from exemplar_client.masks import Mask
from exemplar_client.rle import Bits
from exemplar_client.sync_client import Client

# Corners nearer than this to the line between their neighbours are left out: people edit the polygons.
_TOLERANCE_PX = 1.0
# Parts below this share of a mask are left out of polygons, as in the regions for Label Studio.
_LEAST_PART = 0.02


class Function:
    """Detection function (`cvat_sdk.auto_annotation.DetectionFunction`): one mask for each category found.

    Args:
        client: Client of the service.
        categories: Names of the labels, taught or not; none = every category taught at this moment.
        background: Words for what belongs to no category.

    Raises:
        Invalid: No category is named and none is taught.
        ExemplarError: The service refuses the call or can't be reached.
    """

    def __init__(self, client: Client, categories: list[str], background: list[str] | None = None) -> None:
        self._client = client
        self._background = background or None
        self._categories = categories or [category.name for category in client.categories()]
        if not self._categories:
            raise Invalid("No category is taught yet: teach one, or name categories with -p categories=str:cat,dog.")
        labels = [cvat.label_spec(name, number, type="mask") for number, name in enumerate(self._categories)]
        self._spec = cvat.DetectionFunctionSpec(labels=labels)

    def close(self) -> None:
        """Close the connections of the client."""
        self._client.close()

    @property
    def spec(self) -> cvat.DetectionFunctionSpec:
        """The labels: one of type `mask` for each category."""
        return self._spec

    def detect(self, context: cvat.DetectionFunctionContext, image: Image.Image) -> list[Any]:
        """Segment an image.

        Args:
            context: `conf_threshold` is the least presence of a category that is marked (default: the service's);
                `conv_mask_to_poly` asks for polygons instead of masks.
            image: The frame.

        Returns:
            Shapes (`LabeledShapeRequest`) whose `score` is the presence of their category.
        """
        masks = self._client.segment(
            image, self._categories, min_presence=context.conf_threshold, background=self._background
        )
        shapes = _polygons if context.conv_mask_to_poly else _mask
        return [
            shape
            for number, name in enumerate(self._categories)
            if masks[name].area
            for shape in shapes(number, masks[name])
        ]


def create(url: str = "http://127.0.0.1:8000", key: str = "", categories: str = "", background: str = "") -> Function:
    """Make the function from what `cvat-cli` was given as `-p NAME=str:VALUE`.

    Args:
        url: Address of the service.
        key: API key; default: the environment variable EXEMPLAR_API_KEY, which no list of processes shows.
        categories: Names, separated by commas; none = every category taught.
        background: Words for what belongs to no category, separated by commas.
    """
    client = Client(url, key or os.environ.get("EXEMPLAR_API_KEY") or None)
    try:
        return Function(client, _words(categories), _words(background))
    except ExemplarError:
        client.close()
        raise


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _mask(number: int, mask: Mask) -> Iterator[Any]:
    yield cvat.mask(number, encode_mask(mask.array), score=mask.presence)


def _polygons(number: int, mask: Mask) -> Iterator[Any]:
    for points in polygons_of(mask.array):
        yield cvat.polygon(number, points, score=mask.presence)


def polygons_of(mask: Bits) -> list[list[float]]:
    """Outlines of a mask. Polygons of CVAT have no holes, so holes come out filled.

    Args:
        mask: bool `[height, width]`.

    Returns:
        Rings `[x, y, x, y, …]` in pixels, the edge of the image included; small parts are left out, but never all.
    """
    padded = np.pad(mask, 1).astype(float)
    contours = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset).filled(0.5, 2.0)
    parts = []
    for points, offsets in zip(*contours, strict=True):
        outline = points[: offsets[1]] - 0.5  # of pixels' centres in the padded mask → of pixels' edges in the image
        part = shapely.Polygon(outline).simplify(_TOLERANCE_PX)
        if not part.is_empty:
            parts.append(part)
    least = _LEAST_PART * sum(part.area for part in parts)
    return [np.asarray(part.exterior.coords)[:-1].ravel().tolist() for part in parts if part.area >= least]
