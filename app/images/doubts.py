"""Says what looks wrong with a mask that can be learnt from all the same, such as one that was inverted."""

from __future__ import annotations

import numpy as np

from app.masks import Mask

# Share of the photo above which a mask along all edges looks inverted, and above which it leaves too little background.
_MOST = 0.5
_NEARLY_ALL = 0.95
# Share of every edge that an inverted mask marks: the object may reach an edge with a few pixels.
_EDGE = 0.95
# A mask with fewer pixels, or with a smaller share of the photo, is mostly a slip. The share is a ninth of one of the
# 24 × 24 patches that the embedded model sees.
_FEW_PIXELS = 16
_SMALL_SHARE = 0.0002


def mask_doubts(mask: Mask) -> dict[str, str]:
    """What looks wrong with a mask: by code a sentence for the caller; empty for a usual one.

    Args:
        mask: `[height, width]`, with at least one pixel marked and one not.
    """
    area, share = int(mask.sum()), float(mask.mean())
    percent = f"{min(100 * share, 99.9):.3g} %"  # never the whole photo
    doubts = {}
    if share > _MOST and _marks_edges(mask):
        doubts["mask-looks-inverted"] = (
            f"The mask marks {percent} of the photo with its edges: if the category is what it leaves out, delete this "
            "example and send the mask inverted."
        )
    if share >= _NEARLY_ALL:
        doubts["mask-covers-most"] = (
            f"The mask marks {percent} of the photo and leaves little to tell the category from: mark the category "
            "only, or send a photo that shows more besides it."
        )
    if area < _FEW_PIXELS or share < _SMALL_SHARE:
        doubts["mask-very-small"] = (
            f"The mask marks {area} {'pixel' if area == 1 else 'pixels'}, {percent} of the photo: check that it covers "
            "the whole object, or send a photo that shows it larger."
        )
    return doubts


def _marks_edges(mask: Mask) -> bool:
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return all(float(np.mean(edge)) >= _EDGE for edge in edges)
