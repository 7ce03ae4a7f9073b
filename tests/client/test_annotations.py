"""Masks in every accepted form; the service's own readers tell what was sent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

from app.images.masks import parse_segmentation
from app.images.masks import read_mask as service_reads
from exemplar_client.annotations import polygons_of, read_mask
from exemplar_client.errors import Invalid

from .conftest import HW, noise


def as_sent(mask: Any, photo_hw: tuple[int, int] = HW) -> np.ndarray:
    """The mask that the service reads from what is sent."""
    drawn = read_mask(mask, photo_hw=photo_hw)
    fields: dict[str, Any] = {"mask": None, "segmentation": None, "box": None, drawn.field: drawn.content}
    return service_reads(**fields, photo_hw=photo_hw, max_pixels=10_000_000)


def file_of(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_every_form_of_pixels(marked: np.ndarray, tmp_path: Path) -> None:
    levels = marked.astype(np.uint8) * 255
    path = tmp_path / "mask.png"
    Image.fromarray(levels).save(path)
    labels = Image.fromarray(marked.astype(np.uint8) * 3)
    labels.putpalette([0, 0, 0, 10, 10, 10, 20, 20, 20, 30, 30, 30])
    cutout = Image.fromarray(np.dstack([np.zeros((*HW, 3), np.uint8), levels]))
    forms = [
        *(marked, levels, marked.astype(int), marked.astype(np.uint16) * 700, marked[None], levels[:, :, None]),
        *(path, str(path), path.as_uri(), path.read_bytes(), io.BytesIO(path.read_bytes())),
        *(Image.fromarray(marked), Image.fromarray(levels), labels, cutout),
        Image.fromarray(marked.astype(np.int32)),
        Image.fromarray(marked.astype(np.uint16) * 700),
    ]
    for form in forms:
        assert (as_sent(form) == marked).all(), form


def heic_of(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, **options)
    return file.getvalue()


def mask_files(marked: np.ndarray) -> dict[str, bytes]:
    """Masks that leave traces beside the marks, or whose marks are not white."""
    grey = Image.fromarray(marked.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1))
    labels = np.where(marked, 255, 0).astype(np.uint8)
    labels[15:20, 10:20] = 60  # of a second part
    coloured = np.zeros((*HW, 3), np.uint8)
    coloured[marked] = 255
    coloured[:, 20:][marked[:, 20:]] = (0, 0, 255)
    cutout = Image.fromarray(np.dstack([noise() // 4, marked * np.uint8(255)]))
    unknown = np.where(marked, 0.5, 0).astype(np.float32)
    unknown[:4] = np.nan
    return {
        "JPEG": file_of(grey, "JPEG", quality=30),
        "coloured JPEG": file_of(Image.fromarray(coloured), "JPEG", quality=90),
        "AVIF": file_of(grey, "AVIF", quality=30),
        "cut-out as AVIF": file_of(cutout, "AVIF"),
        "HEIC": heic_of(grey, quality=30),
        "WebP": file_of(grey.convert("RGB"), "WEBP", quality=30),
        "lossless WebP": file_of(Image.fromarray(labels).convert("RGB"), "WEBP", lossless=True),
        "cut-out as WebP": file_of(cutout, "WEBP", lossless=True),
        "PNG": file_of(Image.fromarray(labels), "PNG"),
        "float TIFF with NaN": file_of(Image.fromarray(unknown), "TIFF"),
    }


@pytest.mark.parametrize("name", mask_files(np.zeros(HW, bool)))
def test_an_image_opened_with_pillow_marks_what_its_file_marks(name: str, marked: np.ndarray, tmp_path: Path) -> None:
    file = mask_files(marked)[name]
    expected = service_reads(mask=file, segmentation=None, box=None, photo_hw=HW, max_pixels=10_000_000)
    path = tmp_path / "mask"
    path.write_bytes(file)
    for place in (path, io.BytesIO(file)):
        if name == "lossless WebP" and place != path:
            continue  # Pillow does not tell it from a lossy one
        with pillow_heif.HeifImageFile(place) if name == "HEIC" else Image.open(place) as image:
            assert (as_sent(image) == expected).all()


def test_run_lengths(marked: np.ndarray) -> None:
    packed = coco_mask.encode(np.asfortranarray(marked, dtype=np.uint8))
    counts = [10 * 31 + 5, *[15, 16] * 19, 15, 11 + 31 * 17]
    for form in (packed, packed | {"counts": packed["counts"].decode()}, {"size": HW, "counts": np.array(counts)}):
        assert (as_sent(form) == marked).all()


def test_box_and_polygons(marked: np.ndarray) -> None:
    forms = [
        *([10, 5, 20, 15], (10.0, 5.0, 20.0, 15.0), np.array([10, 5, 20, 15])),
        *([[10, 5, 30, 5, 30, 20, 10, 20]], [10, 5, 30, 5, 30, 20, 10, 20]),
        *([(10, 5), (30, 5), (30, 20), (10, 20)], np.array([(10, 5), (30, 5), (30, 20), (10, 20)], float)),
        [[(10, 5), (30, 5), (30, 20), (10, 20)], [(10, 5), (20, 5), (20, 10)]],
        [np.array([(10, 5), (30, 5), (30, 20), (10, 20)])],
    ]
    for form in forms:
        assert (as_sent(form) == marked).all(), form


def test_contours_of_opencv(marked: np.ndarray) -> None:
    corners = np.array([(10, 5), (30, 5), (30, 20), (10, 20)], np.int32)
    contour = corners[:, None]
    for form in (corners, corners.astype(np.uint16), contour, contour.astype(np.float32), [contour], (contour,)):
        assert (as_sent(form) == marked).all(), form
    two = as_sent((contour, np.array([[[35, 5]], [[40, 5]], [[40, 9]], [[35, 9]]], np.int32)))
    assert two[5:9, 35:40].all()
    assert two.sum() == marked.sum() + 20


def test_an_array_of_the_photos_size_is_a_mask_though_it_could_be_corners() -> None:
    photo_hw = (5, 2)
    mask = np.array([(0, 0), (2, 0), (2, 4), (0, 4), (0, 0)])
    assert (as_sent(mask, photo_hw) == (mask != 0)).all()
    marked = as_sent(mask[:, None], photo_hw)  # of three axes: a contour
    assert (marked == np.array([[1, 1]] * 4 + [[0, 0]])).all()
    marked = as_sent(mask[:4], photo_hw)  # of another size
    assert (marked == np.array([[1, 1]] * 4 + [[0, 0]])).all()


COORDINATE = st.one_of(st.integers(-5, 60), st.floats(-5, 60, allow_nan=False))
POINT = st.tuples(COORDINATE, COORDINATE)
POLYGON = st.lists(POINT, min_size=3, max_size=7)


@given(st.lists(POLYGON, min_size=1, max_size=3))
def test_forms_of_polygons_are_equal(polygons: list[list[tuple[float, float]]]) -> None:
    flat = [[value for point in polygon for value in point] for polygon in polygons]
    assert polygons_of(polygons) == flat == polygons_of(flat)
    assert polygons_of([np.array(polygon, float) for polygon in polygons]) == flat
    if len(polygons) == 1:
        assert polygons_of(polygons[0]) == flat == polygons_of(flat[0])


@given(st.lists(POLYGON, min_size=1, max_size=3))
def test_the_service_can_read_the_polygons_that_are_sent(polygons: list[list[tuple[float, float]]]) -> None:
    try:
        drawn = read_mask(polygons, photo_hw=HW)
    except Invalid:  # outside the photo, or shares of its size
        return
    assert parse_segmentation(str(drawn.content), photo_hw=HW).shape == HW


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.zeros(HW, bool), "marks no pixel.*absent"),
        (np.ones(HW, bool), "whole photo"),
        (np.zeros((47, 31), bool), "31 × 47 pixels.*photo 47 × 31"),
        (np.full(HW, 0.5), "values > 0.5"),
        (np.zeros((2, *HW), bool), "shape"),
        (np.array(5), "shape"),
        (np.array([(10, 5), (30, 20)]), "2 × 2 pixels"),
        (np.ones((9, 2), bool), "2 × 9 pixels"),
        (np.array([(60, 40), (90, 40), (90, 60)]), "outside the photo"),
        (Image.new("L", (31, 47), 255), "31 × 47"),
        (file_of(Image.new("L", (31, 47)), "PNG"), "31 × 47"),
        ({"size": [47, 31], "counts": [3, 4]}, "31 × 47"),
        ({"size": list(HW), "counts": [3, 4]}, "got 7"),
        ({"size": list(HW), "counts": [31 * 47]}, "marks no pixel"),
        ({}, '"size"'),
        ([], "neither a box"),
        ([1, 2, 3], "neither a box"),
        ([[1, 2, 3, 4]], "neither a box"),
        ([(1, 2), (3, 4)], "neither a box"),
        (["a", "b"], "neither a box"),
        ([[(0, 0), (5, 0), (float("nan"), 5)]], "finite"),
        ([[0.1, 0.1, 0.9, "x", 0.9, 0.9]], "finite"),
        ([(50, 2), (60, 2), (60, 9)], "outside the photo"),
        ([0.2, 0.2, 0.9, 0.2, 0.9, 0.8], "shares"),
        ([0.2, 0.2, 0.5, 0.5], "shares"),
        ([10, 5, 0, 15], "above 0"),
        ([10, 5, 40, 15], "second corner"),
        ([float("inf"), 5, 4, 4], "finite"),
        (b"no image", "not an image"),
        (42, "type int"),
    ],
)
def test_what_can_not_be_sent_is_refused(mask: Any, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        read_mask(mask, photo_hw=HW)
