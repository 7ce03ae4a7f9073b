"""Masks and their serialised forms: run lengths, polygons, boxes and pictures. Imports nothing else of `app`.

A mask is a boolean array `[height, width]`; `True` = the pixel belongs to the category. Outside coordinates are pixels
of the photo after EXIF rotation, x to the right and y down. (0, 0) is the *corner* of the first pixel: the pixel in
column 2 and row 3 covers x 2…3 and y 3…4 (COCO's convention).

`rle`, `polygons` and `boxes` hold a writer and its reader side by side. A reader takes `object`, unchecked JSON, and
raises `MalformedMaskError` for anything that is not its form. `formats` is the table of the forms in which an answer
carries a mask; `pictures` writes PNG files and paints overlays.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8

Mask: TypeAlias = Bool[np.ndarray, "height width"]
Rgb: TypeAlias = UInt8[np.ndarray, "height width 3"]  # 0…255


class MalformedMaskError(ValueError):
    """A caller's mask violates its form. A class of its own, so that no other `ValueError` passes for it."""
