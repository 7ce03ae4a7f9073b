"""Label Studio's brush run lengths: writer and reader.

A bit stream, high bits first, given as a list of bytes. It holds the photo's pixels row by row as four channels, of
which the last tells what is marked. The head has 32 bits for the number of values, 5 for the bits of a value less 1,
and 4 × 4 for the bits of a run's length in each of four classes, less 1. Then every run has 1 bit (1 = one value
repeated, 0 = single values), 2 bits for its class, its length less 1, and its value or values.

Source: label_studio_sdk/converter/brush.py; https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt8

from . import MalformedMaskError, Mask

_CHANNELS = 4
_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_LONGEST_RUN = 1 << _LENGTH_BITS[-1]
_HEAD_BITS = 32 + 5 + 4 * 4
_MARKED = 255


def mask_to_brush(mask: Mask) -> list[int]:
    """Encodes a mask.

    Args:
        mask: `[height, width]`.

    Returns:
        Bytes; equal to what Label Studio's own converter writes, but for its surplus bytes of zeros at the end.
    """
    pixels = mask.ravel()
    starts = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1]))
    lengths = np.diff(starts, append=len(pixels)) * _CHANNELS
    lengths, values = _split(lengths, pixels[starts] * np.int64(_MARKED))
    of_class = np.searchsorted([1 << bits for bits in _LENGTH_BITS], lengths)
    length_bits = np.array(_LENGTH_BITS)[of_class]
    codes = (((4 + of_class) << length_bits | (lengths - 1)) << _VALUE_BITS) | values
    head = pixels.size * _CHANNELS
    for bits, value in ((5, _VALUE_BITS), *((4, bits) for bits in _LENGTH_BITS)):
        head = head << bits | (value - 1)
    widths = np.concatenate([[_HEAD_BITS], 3 + length_bits + _VALUE_BITS])
    codes = np.concatenate([[head], codes])
    places = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)  # of each bit in its code
    stream = np.repeat(codes, widths) >> (np.repeat(widths, widths) - 1 - places) & 1
    encoded: list[int] = np.packbits(stream.astype(bool)).tolist()
    return encoded


def brush_to_mask(rle: object, image_hw: tuple[int, int]) -> Mask:
    """Decodes a mask; a pixel is marked if its last channel is not 0.

    The number of values is compared with the size before the mask is allocated.

    Args:
        rle: The list of bytes, unchecked JSON.
        image_hw: (height, width) of the mask.

    Returns:
        The mask `[height, width]`.

    Raises:
        MalformedMaskError: Not such a list, another number of values, or a stream that ends too early.
    """
    stream = _bytes_of(rle)
    head = int.from_bytes(stream[:7], "big") >> (56 - _HEAD_BITS)
    count, value_bits = head >> 21, (head >> 16 & 31) + 1
    length_bits = [(head >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    height, width = image_hw
    if len(stream) < 7 or value_bits != _VALUE_BITS or count != height * width * _CHANNELS:
        raise MalformedMaskError(
            f"expected brush run lengths of 8 bits for {height} × {width} pixels of 4 channels, got {count} values of "
            f"{value_bits} bits"
        )
    values = _values(stream, count, length_bits).reshape(height, width, _CHANNELS)
    return np.ascontiguousarray(values[:, :, -1] != 0)


def _split(
    lengths: Int[np.ndarray, " run"], values: Int[np.ndarray, " run"]
) -> tuple[Int[np.ndarray, " part"], Int[np.ndarray, " part"]]:
    """Runs cut into parts that are not longer than the longest that can be written; the last is the shorter one."""
    parts = -(-lengths // _LONGEST_RUN)
    cut = np.full(parts.sum(), _LONGEST_RUN)
    cut[np.cumsum(parts) - 1] = lengths - (parts - 1) * _LONGEST_RUN
    return cut, np.repeat(values, parts)


def _bytes_of(rle: object) -> bytes:
    try:
        if isinstance(rle, list):
            return bytes(rle)
    except (TypeError, ValueError):  # no whole numbers, or not in 0…255
        pass
    raise MalformedMaskError("expected brush run lengths as a list of whole numbers from 0 to 255")


def _values(stream: bytes, count: int, length_bits: list[int]) -> UInt8[np.ndarray, " value"]:
    """The values of all runs."""
    places, lengths, repeats = _runs(stream, count, length_bits)
    values = np.repeat(_read(stream, places), lengths)
    # Single values take their room in the stream, so only they are worth an index each.
    singles = np.flatnonzero(~repeats)
    counts = lengths[singles]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.cumsum(lengths) - lengths
    values[np.repeat(starts[singles], counts) + within] = _read(
        stream, np.repeat(places[singles], counts) + _VALUE_BITS * within
    )
    return values


def _runs(
    stream: bytes, count: int, length_bits: list[int]
) -> tuple[Int[np.ndarray, " run"], Int[np.ndarray, " run"], Bool[np.ndarray, " run"]]:
    """First bit of each run's values, its length, and whether it repeats one value.

    The place of a run follows from the one before, so this part is a loop.
    """
    places, lengths, repeats = [], [], []
    place, found, end = _HEAD_BITS, 0, 8 * len(stream)
    while found < count and place < end:
        # The head of a run has at most 19 bits, which lie within 4 bytes.
        head = int.from_bytes(stream[place >> 3 : (place >> 3) + 4].ljust(4, b"\0"), "big") << (place & 7) & 0xFFFFFFFF
        bits = length_bits[head >> 29 & 3]
        length = (head >> (29 - bits) & ((1 << bits) - 1)) + 1
        repeated = bool(head >> 31)
        places.append(place + 3 + bits)
        lengths.append(length)
        repeats.append(repeated)
        place += 3 + bits + (_VALUE_BITS if repeated else _VALUE_BITS * length)
        found += length
    if found != count or place > end:
        raise MalformedMaskError(f"expected brush run lengths of {count} values, got another number")
    return np.array(places), np.array(lengths), np.array(repeats)


def _read(stream: bytes, places: Int[np.ndarray, " value"]) -> UInt8[np.ndarray, " value"]:
    """The values that begin at these bits."""
    padded = np.frombuffer(stream + b"\0", dtype=np.uint8)
    high, low = (padded[(places >> 3) + further].astype(np.uint16) for further in (0, 1))
    shift = (_VALUE_BITS - (places & 7)).astype(np.uint16)
    values: UInt8[np.ndarray, " value"] = ((high << 8 | low) >> shift & 0xFF).astype(np.uint8)
    return values
