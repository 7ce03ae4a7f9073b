"""A mask and its outside forms: run lengths, polygons, boxes and pictures, each pair of inverses side by side.

Inside, a mask is a boolean array `[height, width]`; `True` = the pixel belongs to the category. Outside coordinates
are pixels of the photo after EXIF rotation, x to the right and y down, (0, 0) the *corner* of the first pixel, so that
the pixel in column 2 and row 3 covers x 2…3 and y 3…4 (COCO's convention). What comes from outside (`rle`, `polygons`,
`box_xywh`) is typed `object`: it is unchecked JSON, and every reader here checks it and raises `ValueError`.
"""

from __future__ import annotations

import colorsys
import io
import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as coco_mask

Mask: TypeAlias = Bool[np.ndarray, "height width"]
Rgb: TypeAlias = UInt8[np.ndarray, "height width 3"]
Ring: TypeAlias = Float[np.ndarray, "_ 2"]  # corners (x, y) in pixels, any number; the last joins the first
Colour: TypeAlias = tuple[int, int, int]  # red, green, blue, 0…255
_Place: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom: the last pixel that belongs to it

# pycocotools keeps 5 points of 16 bytes per pixel of outline: this bounds a call to 160 MB and a fraction of a second.
# The border of a 40-megapixel photo is 26,000 pixels long.
MAX_OUTLINE_PX = 2_000_000
MAX_LABELS = 255  # an 8-bit palette holds the background and this many categories


class Rle(TypedDict):
    """COCO's compressed run lengths: column by column, the first run counts background pixels."""

    size: list[int]  # height, width
    counts: str


@dataclass(frozen=True)
class _Sides:
    """The straight sides of all outlines of a mask, each walked with the mask on the right hand."""

    start_xy: Int[np.ndarray, "side 2"]
    end_xy: Int[np.ndarray, "side 2"]
    heading: Int[np.ndarray, " side"]  # 0 = East, 1 = South, 2 = West, 3 = North: +1 is a right turn


# Run lengths ---------------------------------------------------------------------------------------------------------


def mask_to_rle(mask: Mask) -> Rle:
    """Encodes a mask as COCO's compressed run lengths.

    Args:
        mask: `[height, width]`.

    Returns:
        `{"size": [height, width], "counts": str}`, ready for JSON; byte-equal to what pycocotools writes.

    Source: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
    """
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    height, width = mask.shape
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def rle_to_mask(rle: object) -> Mask:
    """Decodes COCO run lengths, compressed (a string) or not (a list of numbers).

    pycocotools' decoder is not called: its C code trusts the counts and writes past its buffer when they are wrong.
    The mask is allocated only after its counts were found to fill it, but its size is the sender's word: compare
    `rle_size` with the photo first.

    Args:
        rle: `{"size": [height, width], "counts": str | list[int]}`.

    Returns:
        The mask `[height, width]`.

    Raises:
        ValueError: Anything else, or counts that don't add up to height × width.
    """
    height, width = rle_size(rle)
    runs = _runs_of(rle["counts"]) if isinstance(rle, dict) and "counts" in rle else None
    if runs is None:
        raise ValueError('expected "counts" to be a string or a list of whole numbers, 0 or more')
    covered = sum(runs.tolist())  # Python's integers: no overflow can make a wrong sum look right
    if (runs < 0).any() or covered != height * width:
        raise ValueError(f"expected counts that add up to {height} × {width} = {height * width} pixels, got {covered}")
    is_marked = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(is_marked, runs).reshape((height, width), order="F"))


def rle_size(rle: object) -> tuple[int, int]:
    """Reads height and width of run lengths without decoding them.

    Args:
        rle: `{"size": [height, width], …}`.

    Returns:
        (height, width), both in 1…2³¹ − 1.

    Raises:
        ValueError: There is no such size.
    """
    size = rle.get("size") if isinstance(rle, dict) else None
    if not (
        isinstance(size, list | tuple) and len(size) == 2 and all(_is_whole(side) and 0 < side < 2**31 for side in size)
    ):
        raise ValueError('expected "size" to be [height, width], two whole numbers from 1 to 2³¹ − 1')
    return size[0], size[1]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _runs_of(counts: object) -> Int[np.ndarray, " run"] | None:
    """The run lengths in `counts`, some perhaps negative; None if `counts` has no such form."""
    if isinstance(counts, str):
        return _inflated(counts)
    # 2**40 is above every image and small enough for int64.
    if isinstance(counts, list) and all(_is_whole(count) and 0 <= count < 2**40 for count in counts):
        return np.array(counts, dtype=np.int64)
    return None


def _inflated(counts: str) -> Int[np.ndarray, " run"] | None:
    """The inverse of `rleToString` in maskApi.c: 5 bits per character, low first; differences after the third run."""
    digits = np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    is_last = digits & 0x20 == 0  # a set sixth bit says that the number goes on
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or not is_last[-1]:
        return None
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any run that pycocotools can hold, and safe in int64
        return None
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 0x1F) << places, starts)
    runs -= np.where(digits[ends] & 0x10 != 0, np.int64(1) << (5 * lengths), 0)  # two's complement
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])  # the first run is no part of any difference
    return runs


# Polygons ------------------------------------------------------------------------------------------------------------


def mask_to_polygons(mask: Mask) -> list[list[float]]:
    """Traces the outline of every 4-connected part of a mask, along the edges of its pixels.

    COCO's polygons are united, so a hole can't be said: **holes come out filled** (use run lengths where they matter).
    `polygons_to_mask` gives back exactly this mask if it has no hole and its outlines are within `MAX_OUTLINE_PX`.
    Parts that touch at a corner only are two rings, which keeps rings free of crossings.

    Args:
        mask: `[height, width]`.

    Returns:
        One ring `[x, y, x, y, …]` per part, clockwise on the screen, whole pixels, no three corners in line; ordered by
        their highest edge. Empty for the empty mask.
    """
    left, top, width, height = bbox_of(mask)
    sides = _sides(mask[top : top + height, left : left + width])
    x, y = (sides.start_xy + np.array([left, top])).T.astype(float).tolist()
    rings = _cycles(_following_side(sides).tolist())
    # A cycle begins with its highest East side. In an outline nothing lies above that; a hole's highest side goes West.
    outlines = (ring for ring in rings if y[ring[0]] == min(y[side] for side in ring))
    return [[value for side in ring for value in (x[side], y[side])] for ring in outlines]


def polygons_to_mask(polygons: object, image_hw: tuple[int, int]) -> Mask:
    """Draws the union of polygons with COCO's own rasteriser.

    Args:
        polygons: Rings `[x, y, x, y, …]`, each of 3 corners or more; what lies outside the image is cut off. A ring
            that crosses itself is filled by the even-odd rule.
        image_hw: (height, width) of the mask.

    Returns:
        The mask `[height, width]`.

    Raises:
        ValueError: Not such a list, or outlines longer than `MAX_OUTLINE_PX` in total.
    """
    if not isinstance(polygons, list | tuple) or not polygons:
        raise ValueError("expected a list of polygons, each [x, y, x, y, …]")
    rings = [_clipped(_ring_of(polygon), image_hw) for polygon in polygons]
    outline_px = sum(float(np.abs(ring - np.roll(ring, 1, axis=0)).max(axis=1).sum()) for ring in rings if len(ring))
    if outline_px > MAX_OUTLINE_PX:
        raise ValueError(f"expected outlines of at most {MAX_OUTLINE_PX} pixels in total, got {outline_px:.0f}")
    mask = np.zeros(image_hw, dtype=bool)
    for ring in rings:
        if len(ring) >= 3:
            _draw(ring, mask=mask)
    return mask


def _draw(ring: Ring, *, mask: Mask) -> None:
    """Adds a ring that lies within the image to a mask."""
    # In the ring's own frame: pycocotools' union goes through the whole image for every ring. It rounds corners to
    # fifths of a pixel; so do we, before the shift, which then changes nothing.
    ring = np.floor(5 * ring + 0.5) / 5
    left, top = map(math.floor, ring.min(axis=0))
    right, bottom = map(math.ceil, ring.max(axis=0))
    if left < right and top < bottom:
        # Three corners or more are six numbers or more: pycocotools takes four for a box.
        corners = (ring - [left, top]).ravel().tolist()
        rle = coco_mask.frPyObjects([corners], bottom - top, right - left)[0]
        # Not pycocotools' `decode` here either: under NumPy 2 it warns on every call.
        mask[top:bottom, left:right] |= rle_to_mask({"size": rle["size"], "counts": rle["counts"].decode("ascii")})


def _ring_of(polygon: object) -> Ring:
    if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("expected a polygon [x, y, x, y, …] of 3 corners or more")
    return np.array([_finite(value) for value in polygon], dtype=float).reshape(-1, 2)


def _finite(value: object) -> float:
    """A JSON number as a float; a whole number too large for one, NaN and infinity are refused."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("expected coordinates that are finite numbers")
    return number


def _clipped(ring: Ring, image_hw: tuple[int, int]) -> Ring:
    """Cuts a ring to the image (Sutherland and Hodgman); what is left may have fewer than 3 corners.

    pycocotools walks along every edge in steps of 0.2 pixels, also far outside the image, in 32-bit integers.
    """
    ring = ring.clip(-1e9, 1e9)  # no photo is that large, and differences stay finite
    for axis, side in enumerate(reversed(image_hw)):
        ring = _half_plane(ring, axis=axis, limit=side, sign=1)
        ring = _half_plane(ring, axis=axis, limit=0, sign=-1)
    return ring


def _half_plane(ring: Ring, *, axis: int, limit: int, sign: int) -> Ring:
    """The part of a ring with sign · coordinate ≤ sign · limit."""
    inside = sign * ring[:, axis] <= sign * limit
    if inside.all():
        return ring
    following = np.roll(ring, -1, axis=0)
    inside_following = np.roll(inside, -1)
    crosses = inside != inside_following
    step = following - ring
    share = np.divide(limit - ring[:, axis], step[:, axis], out=np.zeros(len(ring)), where=crosses)
    crossing = ring + share[:, None] * step
    crossing[:, axis] = limit
    candidates = np.stack([crossing, following], axis=1).reshape(-1, 2)
    part: Ring = candidates[np.stack([crosses, inside_following], axis=1).ravel()]
    return part


def _sides(mask: Mask) -> _Sides:
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]
    left, right = padded[1:-1, :-1].T, padded[1:-1, 1:].T  # transposed, so that a row is a line of edges here too
    east, west = _straight_runs(below & ~above), _straight_runs(above & ~below)
    south, north = _straight_runs(left & ~right), _straight_runs(right & ~left)
    line, first, last = 0, 1, 2
    start_xy = [east[:, [first, line]], south[:, [line, first]], west[:, [last, line]], north[:, [line, last]]]
    end_xy = [east[:, [last, line]], south[:, [line, last]], west[:, [first, line]], north[:, [line, first]]]
    heading = np.repeat(np.arange(4), [len(part) for part in start_xy])
    return _Sides(start_xy=np.concatenate(start_xy), end_xy=np.concatenate(end_xy), heading=heading)


def _straight_runs(edges: Bool[np.ndarray, "line step"]) -> Int[np.ndarray, "run 3"]:
    """Line, first and last corner of each unbroken run of pixel edges, in reading order."""
    padded = np.pad(edges, ((0, 0), (1, 1)))
    changes = padded[:, 1:] != padded[:, :-1]
    line, corner = np.divmod(np.flatnonzero(changes), changes.shape[1])
    return np.column_stack([line[::2], corner[::2], corner[1::2]])  # every run of a line begins and ends in it


def _following_side(sides: _Sides) -> Int[np.ndarray, " side"]:
    """Which side each side runs into: found by the corner and heading with which it starts."""
    if len(sides.heading) == 0:
        return sides.heading
    stride = int(sides.end_xy.max()) + 1
    corner, next_corner = (xy[:, 1] * stride + xy[:, 0] for xy in (sides.start_xy, sides.end_xy))
    keys = corner * 4 + sides.heading
    order = np.argsort(keys)
    keys = keys[order]
    right, left = (next_corner * 4 + (sides.heading + turn) % 4 for turn in (1, -1))
    # Where two pixels touch at a corner only, both turns exist: the right one stays with the same pixel.
    place = np.searchsorted(keys, right).clip(max=len(keys) - 1)
    place = np.where(keys[place] == right, place, np.searchsorted(keys, left))
    following: Int[np.ndarray, " side"] = order[place]
    return following


def _cycles(following: list[int]) -> Iterable[list[int]]:
    """The cycles of a permutation, each from its lowest member on."""
    seen = bytearray(len(following))
    for first in range(len(following)):
        cycle = []
        side = first
        while not seen[side]:
            seen[side] = True
            cycle.append(side)
            side = following[side]
        if cycle:
            yield cycle


# Boxes ---------------------------------------------------------------------------------------------------------------


def box_to_mask(box_xywh: object, image_hw: tuple[int, int]) -> Mask:
    """Marks the pixels whose centre lies in a box.

    Args:
        box_xywh: `[x, y, width, height]` in pixels, width and height above 0; cut to the image.
        image_hw: (height, width) of the mask.

    Returns:
        The mask `[height, width]`; empty if the box lies outside or between the centres.

    Raises:
        ValueError: Not such a box.
    """
    if not isinstance(box_xywh, list | tuple) or len(box_xywh) != 4:
        raise ValueError("expected a box [x, y, width, height]")
    x, y, width, height = (_finite(value) for value in box_xywh)
    if width <= 0 or height <= 0:
        raise ValueError(f"expected a box with a width and a height above 0, got {width:g} × {height:g}")
    mask = np.zeros(image_hw, dtype=bool)
    mask[_centres_between(y, y + height, image_hw[0]), _centres_between(x, x + width, image_hw[1])] = True
    return mask


def bbox_of(mask: Mask) -> list[int]:
    """Returns the smallest box around a mask, the inverse of `box_to_mask` for whole boxes.

    Args:
        mask: `[height, width]`.

    Returns:
        `[x, y, width, height]` in pixels; `[0, 0, 0, 0]` for the empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _centres_between(low: float, high: float, side: int) -> slice:
    """The pixels of one axis with low ≤ centre < high."""
    first, past = (math.ceil(min(max(edge, 0.0), side) - 0.5) for edge in (low, high))
    return slice(first, past)


# Pictures ------------------------------------------------------------------------------------------------------------


def mask_to_png(mask: Mask) -> bytes:
    """Writes a mask as a 1-bit PNG.

    Args:
        mask: `[height, width]`.

    Returns:
        The file; read as 8-bit grey it is 255 in the category and 0 elsewhere.
    """
    return _png(Image.fromarray(mask))


def label_map_to_png(
    labels: UInt8[np.ndarray, "height width"], names: Sequence[str], colours: Sequence[Colour]
) -> bytes:
    """Writes a label map as a palette PNG that carries its names.

    Args:
        labels: `[height, width]`; 0 = background, i = the i-th category.
        names: The categories' names, the first is label 1; at most `MAX_LABELS`.
        colours: One per name, such as `palette(len(names))`. The background is black.

    Returns:
        The file; its `iTXt` chunk `categories` is the JSON list of names (iTXt, as tEXt is Latin-1 only).

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
    text = PngInfo()
    text.add_itxt("categories", json.dumps(list(names), ensure_ascii=False))
    return _png(image, text)


def probability_to_png(prob: Float[np.ndarray, "height width"]) -> bytes:
    """Writes probabilities as an 8-bit grey heat map.

    Args:
        prob: `[height, width]`, 0…1; what lies outside is cut to it.

    Returns:
        The file: level = 255 · probability, rounded.

    Raises:
        ValueError: A probability is NaN.
    """
    if np.isnan(prob).any():
        raise ValueError("expected probabilities in 0…1, got NaN")
    return _png(Image.fromarray(np.rint(prob.clip(0, 1) * 255).astype(np.uint8)))


def palette(count: int) -> list[Colour]:
    """Picks colours that differ from each other, neighbours most of all; the same ones for every call.

    Args:
        count: How many.

    Returns:
        Red, green and blue in 0…255; never black, the background's colour.
    """
    tones = ((0.85, 0.95), (0.5, 1.0), (0.9, 0.65))  # saturation, value: 1,000 hues alone are not 1,000 colours
    golden = (math.sqrt(5) - 1) / 2  # steps of the golden ratio never come close to an earlier hue
    levels = (colorsys.hsv_to_rgb(index * golden % 1, *tones[index % 3]) for index in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in levels]


def overlay(photo: Rgb, masks: Iterable[Mask], names: Sequence[str]) -> Rgb:
    """Paints masks and their names over a photo, the i-th in the i-th colour of `palette`.

    Pillow's own font knows ASCII only: accents are dropped from a name, and one in another script is written as its
    number in the label map, such as `#2`. A category that isn't in the photo gets no label.

    Args:
        photo: `[height, width, 3]`, 0…255; stays as it is.
        masks: One per name, `[height, width]`; a later one covers an earlier one. A generator's are not kept.
        names: The categories' names.

    Returns:
        The painted copy `[height, width, 3]`.

    Raises:
        ValueError: Not one mask per name.
    """
    painted = photo.copy()
    labels = []
    # Mask by mask, in one pass: sixty of a photo of 12 megapixels are 720 MB at once, and most of a thousand are empty.
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
    painted[mask & ~inner] = colour  # a full line at the edge: half a colour is lost on a photo of that colour


def _in_ascii(name: str, *, number: int) -> str:
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return plain if plain.isascii() and plain.isprintable() and plain.strip() else f"#{number}"


def _write_labels(image: Image.Image, labels: Sequence[tuple[list[int], str, Colour]]) -> None:
    """Writes each label at its corner (x, y), or in the next line that is free."""
    draw = ImageDraw.Draw(image)
    size_px = min(max(min(image.size) // 25, 11), 48)  # 11: the smallest at which the font can be read
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
    """The place for a label that hides no other: at its corner, else below, else from the top; else at its corner."""
    (width, height), (left, top) = (
        label_wh,
        (max(min(corner, whole - part), 0) for corner, part, whole in zip(corner_xy, label_wh, image_wh, strict=True)),
    )
    tops = [*range(top, image_wh[1] - height + 1, height), *range(0, top, height)]
    places = [(left, top, left + width - 1, top + height - 1) for top in [*tops, top]]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[-1])


def _overlap(place: _Place, other: _Place) -> bool:
    return place[0] <= other[2] and other[0] <= place[2] and place[1] <= other[3] and other[1] <= place[3]


def _png(image: Image.Image, text: PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()
