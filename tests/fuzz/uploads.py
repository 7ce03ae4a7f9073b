"""Hostile uploads: files, masks, adapters and texts that are nearly valid, or not at all."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.chaos.calls import Calls

HW = (13, 17)
_LARGEST_INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_NAMES = (
    "cat", "CAT", "ca\u0301t", " ", "%00", "x" * 64, "x" * 65, "\u202ecat", "\ufb01", "\u00df",
    "a%2Fb", "a%3Fb", "\u0131", "\U0001f469",
)  # fmt: skip
_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**63, 10**400, 1e308, -0.0, 0.5, float("nan"), float("inf"), "7", None, True,
)  # fmt: skip


@cache
def seeds() -> tuple[bytes, ...]:
    """Valid files of every format, small and in odd modes, and a picture that claims to be enormous."""
    pixels = np.random.default_rng(5).integers(0, 256, (*HW, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    files = [_file(picture, form) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "ICO", "TGA")]
    files += [_file(picture.convert(mode), "PNG") for mode in ("1", "L", "P", "LA", "RGBA", "I;16")]
    files += [_file(picture.convert(mode), "TIFF") for mode in ("CMYK", "YCbCr", "F", "I", "LAB")]
    files.append(_file(picture, "TIFF", save_all=True, append_images=[picture] * 3))
    files.append(_file(picture, "GIF", save_all=True, append_images=[picture] * 3))
    return (*files, _enormous_png(), b"", b"\0" * 64, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n")


def _file(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _enormous_png() -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")


def mangled(random: Random, whole: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A file with a few changes of the kinds that parsers stumble over; sometimes none."""
    raw = bytearray(whole)
    for _ in range(random.choice([0, 1, 1, 2, 4, 8])):
        at = random.randrange(len(raw) + 1)
        match random.randrange(6):
            case 0:
                raw[at : at + 1] = random.randbytes(1)
            case 1:
                number = struct.pack(random.choice("<>") + "I", random.choice(_LARGEST_INTEGERS))
                raw[at : at + 4] = number
            case 2:
                del raw[at:]
            case 3:
                del raw[at : at + random.randrange(1, 40)]
            case 4:
                raw[at:at] = raw[at : at + random.randrange(1, 200)]
            case 5 if others:
                other = random.choice(others)
                raw[at:] = other[min(at, len(other)) :]
    return bytes(raw)


def hostile_file(random: Random) -> bytes:
    """A file that may be a picture."""
    return mangled(random, random.choice(seeds()), seeds())


def hostile_json(random: Random) -> str:
    """A text that may be a mask as RLE, polygons or a box."""

    def number() -> Any:
        return random.choice(_NUMBERS) if random.random() < 0.3 else random.randrange(-3, 30)

    def numbers(most: int) -> list[Any]:
        return [number() for _ in range(random.randrange(most))]

    counts = random.choice(
        [numbers(9), "".join(chr(random.randrange(32, 128)) for _ in range(random.randrange(40))), number()]
    )
    value = random.choice([
        {"size": [*HW], "counts": counts}, {"size": numbers(4), "counts": counts}, {"counts": counts},
        [numbers(12) for _ in range(random.randrange(4))], numbers(6), [0, 0, number(), number()], number(), {}, "",
    ])  # fmt: skip
    text = json.dumps(value)
    if random.random() < 0.1:
        text = random.choice(
            ["[" * 100_000, '{"a":' * 50_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "\0"]
        )
    return mangled(random, text.encode()).decode("latin-1") if random.random() < 0.2 else text


def attack(calls: Calls, random: Random, adapter: bytes) -> None:
    """Send one hostile request; `calls` checks the answer.

    Args:
        calls: Client of the service.
        random: Chooses.
        adapter: A valid adapter file to start from.
    """
    kind: Callable[[Calls, Random, bytes], None] = random.choice(
        [_segment, _segment, _clicks, _teach, _teach, _batch, _adapter, _rank, _options]
    )
    kind(calls, random, adapter)


def _segment(calls: Calls, random: Random, _: bytes) -> None:
    calls.once(
        "POST", "/segment", files={"image": hostile_file(random)}, data={"categories": random.choice(["cat", "sky"])}
    )


def _clicks(calls: Calls, random: Random, _: bytes) -> None:
    if random.random() < 0.5:
        image, points = hostile_file(random), "[[3, 5, 1]]"
    else:
        number = json.dumps(random.choice([3, 5.5, -1, 10**400, True, None, "3"]))
        image, points = (
            seeds()[0],
            random.choice([hostile_json(random), f"[[{number}, 5, 1], [3, {number}, {number}]]"]),
        )
    calls.once("POST", "/segment/clicks", files={"image": image}, data={"points": points})


def _teach(calls: Calls, random: Random, _: bytes) -> None:
    image = hostile_file(random) if random.random() < 0.5 else seeds()[0]
    files: dict[str, bytes] = {"image": image}
    fields: dict[str, str] = {"mode": "replace"} if random.random() < 0.5 else {}
    match random.randrange(4):
        case 0 | 1:
            files["mask"] = hostile_file(random)
        case 2:
            fields["segmentation"] = hostile_json(random)
        case 3:
            fields["box"] = hostile_json(random)
    names = {"name": random.choice(_NAMES)}
    calls.once("POST", "/categories/{name}/example", names, files=files, data=fields)


def _batch(calls: Calls, random: Random, _: bytes) -> None:
    files = [("images", (random.choice(["a.png", "\r\n", "x" * 300, "../a"]), hostile_file(random))) for _ in range(3)]
    for line in calls.lines("/segment/batch", files=files, data={"categories": "cat"}):
        if line.get("problem", {}).get("status") == 500:
            raise AssertionError(f"a line of a batch has the problem {line['problem']}")


def _adapter(calls: Calls, random: Random, adapter: bytes) -> None:
    calls.once("PUT", "/categories/{name}/adapter", {"name": "imported"}, content=mangled(random, adapter))


def _rank(calls: Calls, random: Random, _: bytes) -> None:
    files = [("images", hostile_file(random)) for _ in range(2)]
    calls.once("POST", "/layers/rank", files=files)


def _options(calls: Calls, random: Random, _: bytes) -> None:
    """A valid photo with hostile options."""
    names = [
        "categories",
        "background",
        "threshold",
        "min_presence",
        "refine",
        "adapters",
        "backbone",
        "output",
        "more",
    ]
    values = [*_NAMES, *map(str, _NUMBERS), hostile_json(random), "true", "rle", "polygons", "png", "none"]
    fields = {random.choice(names): random.choice(values) for _ in range(3)}
    calls.once("POST", "/segment", files={"image": seeds()[0]}, data=fields)
