"""The auto-annotation function of CVAT, driven by CVAT's own SDK, which also decodes what it returns."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from exemplar_client import Client, Invalid

from .conftest import EXAMPLES

cvat_sdk = pytest.importorskip("cvat_sdk")
pytest.importorskip("shapely")

from cvat_sdk import masks as cvat_masks  # noqa: E402
from cvat_sdk import models  # noqa: E402
from cvat_sdk.auto_annotation import driver  # noqa: E402

from exemplar_client import cvat  # noqa: E402

# Labels of a task in CVAT: its ids are not those of the function.
TASK_LABELS = [
    models.Label(name="dog", id=905, type="any", attributes=[], sublabels=[]),
    models.Label(name="cat", id=901, type="any", attributes=[], sublabels=[]),
]


def annotate(function: cvat.Function, image: Image.Image, *, frame: int = 3, **options: Any) -> list[Any]:
    """The shapes that CVAT's driver would upload for one frame of a task with the labels above."""
    mapper = driver._AnnotationMapper(
        logging.getLogger("cvat"),
        function.spec.labels,
        TASK_LABELS,
        allow_unmatched_labels=False,
        conv_mask_to_poly=options.get("conv_mask_to_poly", False),
    )
    context = driver._DetectionFunctionContextImpl(frame_name="photo.png", **options)
    tags, shapes = mapper.validate_and_remap(function.detect(context, image), frame)
    assert tags == []
    return shapes


def test_masks_of_a_frame_are_those_of_the_service(cat_url: str) -> None:
    image = Image.open(EXAMPLES / "chelsea.jpg")
    with Client(cat_url) as client:
        (shape,) = annotate(cvat.Function(client, ["dog", "cat"]), image)
        cat = client.segment(EXAMPLES / "chelsea.jpg", ["dog", "cat"])["cat"]
    assert (shape.label_id, shape.type.value, shape.frame, shape.source) == (901, "mask", 3, "auto")
    decoded = cvat_masks.decode_mask(shape.points, image_width=image.width, image_height=image.height)
    assert decoded.mean() > 0.5, "chelsea.jpg is mostly cat"
    assert (decoded == cat.array).all()
    assert shape.score == cat.presence > 0.5


def test_the_threshold_of_cvat_is_the_least_presence(cat_url: str) -> None:
    with Client(cat_url) as client:
        function = cvat.Function(client, [])
        assert [label.name for label in function.spec.labels] == ["cat"], "every category taught"
        dog = Image.open(EXAMPLES / "dog.jpg")
        assert annotate(function, dog) == []
        assert len(annotate(function, dog, conf_threshold=0.0)) == 1
        assert annotate(function, Image.open(EXAMPLES / "chelsea.jpg"), conf_threshold=1.0) == []


def test_polygons_where_cvat_wants_them(cat_url: str) -> None:
    image = Image.open(EXAMPLES / "chelsea.jpg")
    with Client(cat_url) as client:
        shapes = annotate(cvat.Function(client, ["cat"], ["wall"]), image, conv_mask_to_poly=True)
        mask = client.segment(image, ["cat"], background=["wall"])["cat"].array
    assert {shape.type.value for shape in shapes} == {"polygon"}
    assert overlap(drawn([shape.points for shape in shapes], hw=mask.shape), mask) > 0.95


def drawn(rings: list[list[float]], *, hw: tuple[int, ...]) -> np.ndarray:
    image = Image.new("1", (hw[1], hw[0]))
    for ring in rings:
        ImageDraw.Draw(image).polygon(ring, fill=1)
    return np.asarray(image)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_polygons_follow_the_outline() -> None:
    y, x = np.mgrid[:200, :300]
    mask = (x - 120) ** 2 + (y - 90) ** 2 < 70**2
    mask[80:100, 110:130] = False  # a hole comes out filled
    mask[0:30, 260:300] = True  # touches two edges of the image
    mask[190:193, 10:13] = True  # 9 of 16,000 pixels
    disc, corner = sorted(cvat.polygons_of(mask), key=len, reverse=True)
    filled = mask.copy()
    filled[80:100, 110:130] = True
    filled[190:193, 10:13] = False
    assert overlap(drawn([disc, corner], hw=mask.shape), filled) > 0.97
    assert len(disc) < 100
    assert min(corner[1::2]) == 0
    assert max(corner[::2]) == 300
    assert cvat.polygons_of(np.zeros((5, 7), dtype=bool)) == []


def test_one_pixel_is_a_polygon() -> None:
    mask = np.zeros((5, 7), dtype=bool)
    mask[2, 3] = True
    (ring,) = cvat.polygons_of(mask)
    assert len(ring) >= 6


def test_nothing_is_taught(serve: Any) -> None:
    with serve() as url, pytest.raises(Invalid, match="teach one"):
        cvat.create(url)


@pytest.mark.parametrize("way", ["module", "file"])
def test_the_command_line_of_cvat_loads_it(cat_url: str, way: str) -> None:
    common = pytest.importorskip("cvat_cli._internal.common")
    loaded = []
    parser = argparse.ArgumentParser()
    parser.set_defaults(_executor=lambda client, *, function_loader: loaded.append(function_loader.load()))
    common.configure_function_implementation_arguments(parser)
    where = {"module": "exemplar_client.cvat", "file": str(Path(cvat.__file__))}[way]
    given = vars(
        parser.parse_args([f"--function-{way}", where, "-p", f"url=str:{cat_url}", "-p", "categories=str:dog"])
    )
    given.pop("_executor")(None, **given)
    (function,) = loaded
    assert [label.name for label in function.spec.labels] == ["dog"]
    assert annotate(function, Image.open(EXAMPLES / "dog.jpg"))[0].label_id == 905
    function.close()
