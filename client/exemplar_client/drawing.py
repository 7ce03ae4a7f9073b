"""Pictures of masks: label map and overlay, in the colours of the service."""

from __future__ import annotations

import colorsys
import io
import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from exemplar_client.errors import Invalid
from exemplar_client.rle import Bits

Colour: TypeAlias = tuple[int, int, int]  # red, green, blue, 0…255

MAX_LABELS = 255  # an 8-bit palette holds the background and this many categories


def palette(count: int) -> list[Colour]:
    """Pick distinct colours, neighbours most distinct; the i-th is the same at every call, and never black."""
    tones = ((0.85, 0.95), (0.5, 1.0), (0.9, 0.65))  # saturation, value
    golden = (math.sqrt(5) - 1) / 2  # steps of the golden ratio stay far from every earlier hue
    levels = (colorsys.hsv_to_rgb(index * golden % 1, *tones[index % 3]) for index in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in levels]


def label_map_png(labels: NDArray[Any], names: Sequence[str]) -> bytes:
    """Write a label map as a palette PNG.

    Args:
        labels: `[height, width]`; 0 = background, i = the i-th category.
        names: The categories' names; at most `MAX_LABELS`.

    Returns:
        The file; its iTXt chunk `categories` is the JSON list of names.

    Raises:
        Invalid: Too many names.
    """
    if len(names) > MAX_LABELS:
        raise Invalid(f"A label map as PNG holds at most {MAX_LABELS} categories, got {len(names)}: use `labels`.")
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([level for colour in [(0, 0, 0), *palette(len(names))] for level in colour])
    text = PngInfo()
    text.add_itxt("categories", json.dumps(list(names), ensure_ascii=False))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def overlay(photo: Image.Image, found: Sequence[tuple[int, str, Bits]]) -> Image.Image:
    """Paint masks and their names over a photo.

    Args:
        photo: RGB; not changed.
        found: (number, name, mask) of each category found. The number is its label in the label map, which decides the
            colour; the mask is bool `[height, width]`, and a later one covers an earlier one. Pillow's built-in font
            has ASCII only: a name loses its accents, and a name in another script is replaced by its number: `#2`.

    Returns:
        The painted copy.
    """
    painted = np.array(photo)
    colours = palette(max((number for number, _, _ in found), default=0))
    for number, _, mask in found:
        _tint(painted, mask, colours[number - 1])
    image = Image.fromarray(painted)
    draw = ImageDraw.Draw(image)
    for number, name, mask in found:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        corner_xy = (int(columns[0]), int(rows[0]))
        _write_label(draw, image.size, corner_xy, _in_ascii(name, number), colours[number - 1])
    return image


def _tint(painted: NDArray[np.uint8], mask: Bits, colour: Colour) -> None:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    painted[mask] = ((painted[mask].astype(np.uint16) + np.array(colour, np.uint16)) // 2).astype(np.uint8)
    painted[mask & ~inner] = colour  # opaque edge: a tint alone does not show on a photo of the same colour


def _in_ascii(name: str, number: int) -> str:
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return plain if plain.isascii() and plain.isprintable() and plain.strip() else f"#{number}"


def _write_label(
    draw: ImageDraw.ImageDraw, image_wh: tuple[int, int], corner_xy: tuple[int, int], text: str, colour: Colour
) -> None:
    """Write a name at the top left corner of its mask, moved into the picture."""
    size_px = min(max(min(image_wh) // 25, 11), 48)  # 11 is the smallest legible size
    font = ImageFont.load_default(size_px)
    label_wh = (math.ceil(font.getlength(text)) + 4, size_px + 4)
    left, top = (
        max(min(corner, whole - part), 0) for corner, whole, part in zip(corner_xy, image_wh, label_wh, strict=True)
    )
    draw.rectangle((left, top, left + label_wh[0] - 1, top + label_wh[1] - 1), fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601
    draw.text((left + 2, top + 1), text, font=font, fill="black" if brightness > 128 else "white")
