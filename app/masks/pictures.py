"""Masks as pictures: PNG mask, label map, heat map, and an overlay on the photo."""

from __future__ import annotations

import colorsys
import io
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from . import Mask, Rgb
from .boxes import bbox_of

Colour: TypeAlias = tuple[int, int, int]  # red, green, blue, 0…255
_Place: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom, all inclusive

MAX_LABELS = 255  # an 8-bit palette holds the background and this many categories


def mask_to_png(mask: Mask) -> bytes:
    """Writes a mask as a 1-bit PNG.

    Args:
        mask: `[height, width]`.

    Returns:
        The file; read as 8-bit grey it is 255 in the category and 0 elsewhere.
    """
    return _png(Image.fromarray(mask))


def mask_to_alpha_png(mask: Mask) -> bytes:
    """Writes a mask as the opacity of a white picture, for programs that lay it over the photo.

    Args:
        mask: `[height, width]`.

    Returns:
        The file: grey with alpha, opaque in the category and transparent elsewhere.
    """
    white = np.full(mask.shape, 255, dtype=np.uint8)
    return _png(Image.fromarray(np.dstack([white, white * mask])))


def rgb_to_png(rgb: Rgb, *, notes: Mapping[str, str] | None = None) -> bytes:
    """Writes a picture as an 8-bit colour PNG.

    Args:
        rgb: `[height, width, 3]`, 0…255.
        notes: Texts for `iTXt` chunks, by their keywords.

    Returns:
        The file.
    """
    return _png(Image.fromarray(rgb), notes)


def label_map_to_png(
    labels: UInt8[np.ndarray, "height width"],
    names: Sequence[str],
    colours: Sequence[Colour],
    *,
    notes: Mapping[str, str] | None = None,
) -> bytes:
    """Writes a label map as a palette PNG that carries its names.

    Args:
        labels: `[height, width]`; 0 = background, i = the i-th category.
        names: The categories' names, the first is label 1; at most `MAX_LABELS`.
        colours: One per name, such as `palette(len(names))`. The background is black.
        notes: Texts for further `iTXt` chunks, by their keywords.

    Returns:
        The file; its `iTXt` chunk `categories` is the JSON list of names (not tEXt, which is Latin-1 only).

    Raises:
        ValueError: Too many names, not one colour per name, or a label without a name.
    """
    if len(names) > MAX_LABELS or len(colours) != len(names):
        raise ValueError(
            f"expected at most {MAX_LABELS} names and as many colours, got {len(names)} and {len(colours)}"
        )
    if labels.max(initial=0) > len(names):
        raise ValueError(f"expected labels up to {len(names)}, got {labels.max()}")
    image = Image.fromarray(labels)
    image.putpalette([level for colour in [(0, 0, 0), *colours] for level in colour])
    return _png(image, {"categories": json.dumps(list(names), ensure_ascii=False), **(notes or {})})


def probability_to_png(prob: Float[np.ndarray, "height width"]) -> bytes:
    """Writes probabilities as an 8-bit grey heat map.

    Args:
        prob: `[height, width]`; values are clipped to 0…1.

    Returns:
        The file: level = 255 · probability, rounded.

    Raises:
        ValueError: A probability is NaN.
    """
    if np.isnan(prob).any():
        raise ValueError("expected probabilities in 0…1, got NaN")
    return _png(Image.fromarray(np.rint(prob.clip(0, 1) * 255).astype(np.uint8)))


def palette(count: int) -> list[Colour]:
    """Picks distinct colours, neighbours most distinct; the i-th is the same at every call.

    Args:
        count: How many.

    Returns:
        Red, green and blue in 0…255; never black, the background's colour.
    """
    tones = ((0.85, 0.95), (0.5, 1.0), (0.9, 0.65))  # saturation, value: hue alone doesn't give 1,000 distinct colours
    golden = (math.sqrt(5) - 1) / 2  # steps of the golden ratio stay far from every earlier hue
    levels = (colorsys.hsv_to_rgb(index * golden % 1, *tones[index % 3]) for index in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in levels]


def overlay(photo: Rgb, masks: Iterable[Mask], names: Sequence[str]) -> Rgb:
    """Paints masks and their names over a photo, the i-th in the i-th colour of `palette`.

    Pillow's built-in font has ASCII only: a name loses its accents, and a name in another script is replaced by its
    number in the label map, such as `#2`. A category with an empty mask gets no label.

    Args:
        photo: `[height, width, 3]`, 0…255; not changed.
        masks: One per name, `[height, width]`; a later one covers an earlier one. Each is dropped after its turn, so a
            generator holds one at a time.
        names: The categories' names.

    Returns:
        The painted copy `[height, width, 3]`.

    Raises:
        ValueError: Not one mask per name.
    """
    painted = photo.copy()
    labels = []
    # One mask at a time: 60 masks of a 12-megapixel photo at once are 720 MB.
    numbers = range(1, len(names) + 1)
    for number, mask, name, colour in zip(numbers, masks, names, palette(len(names)), strict=True):
        if mask.any():
            _tint(painted, mask=mask, colour=colour)
            labels.append((bbox_of(mask), _in_ascii(name, number=number), colour))
    image = Image.fromarray(painted)
    _write_labels(image, labels)
    return np.array(image)


def _tint(painted: Rgb, *, mask: Mask, colour: Colour) -> None:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    mixed = (painted[mask].astype(np.uint16) + np.array(colour, dtype=np.uint16)) // 2
    painted[mask] = mixed.astype(np.uint8)
    painted[mask & ~inner] = colour  # opaque edge: a tint alone doesn't show on a photo of the same colour


def _in_ascii(name: str, *, number: int) -> str:
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return plain if plain.isascii() and plain.isprintable() and plain.strip() else f"#{number}"


def _write_labels(image: Image.Image, labels: Sequence[tuple[list[int], str, Colour]]) -> None:
    """Writes each label at the top left corner of its box, or in the next free line."""
    draw = ImageDraw.Draw(image)
    size_px = min(max(min(image.size) // 25, 11), 48)  # 11 is the smallest legible size
    font = ImageFont.load_default(size_px)
    taken: list[_Place] = []
    for (x, y, _, _), text, colour in labels:
        while font.getlength(text) + 4 > image.width and len(text) > 1:
            text = text[:-2] + "…"
        place = _free_place((x, y), (math.ceil(font.getlength(text)) + 4, size_px + 4), image.size, taken)
        taken.append(place)
        draw.rectangle(place, fill=colour)
        brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601
        draw.text((place[0] + 2, place[1] + 1), text, font=font, fill="black" if brightness > 128 else "white")


def _free_place(
    corner_xy: tuple[int, int], label_wh: tuple[int, int], image_wh: tuple[int, int], taken: Sequence[_Place]
) -> _Place:
    """A place that overlaps no other label: at the corner, else below, else above; the corner if none is free."""
    (width, height), (left, top) = (
        label_wh,
        (max(min(corner, whole - part), 0) for corner, part, whole in zip(corner_xy, label_wh, image_wh, strict=True)),
    )
    tops = [*range(top, image_wh[1] - height + 1, height), *range(0, top, height)]
    places = [(left, top, left + width - 1, top + height - 1) for top in [*tops, top]]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[-1])


def _overlap(place: _Place, other: _Place) -> bool:
    return place[0] <= other[2] and other[0] <= place[2] and place[1] <= other[3] and other[1] <= place[3]


def _png(image: Image.Image, notes: Mapping[str, str] | None = None) -> bytes:
    file, text = io.BytesIO(), PngInfo()
    for keyword, note in (notes or {}).items():
        text.add_itxt(keyword, note)
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()
