"""Records of categories, as releases before and after this one store them."""

from __future__ import annotations

import json

import pytest

from app.storage.category_records import read_adapter_info


@pytest.mark.parametrize(
    ("scores", "told", "kept"),
    [
        ((0.7714, 0.7714), {"kept": "presence"}, "presence"),
        ((0.5, 0.5), {"kept": "words"}, "words"),
        # Earlier releases stored the scores alone.
        ((0.4, 0.5), {}, "words"),
        ((0.5, 0.5), {}, "adapter"),
    ],
)
def test_a_description_tells_what_makes_the_masks(scores: tuple[float, float], told: dict[str, str], kept: str) -> None:
    stored = {"example_iou": scores[0], "zero_shot_example_iou": scores[1], **told}
    assert read_adapter_info("1", json.dumps(stored).encode()).kept == kept
