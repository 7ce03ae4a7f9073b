"""Draw the pictures of docs/tutorial.md: what a service with the embedded model answers at each of its steps.

Run it with `python -m docs.pictures`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from app.client import Client
from app.demo import EXAMPLES, running_service, side_by_side
from app.masks.pictures import overlay, rgb_to_png

FOLDER = Path(__file__).parent / "tutorial"
_HEIGHT_PX = 260


def main() -> None:
    """Draw them."""
    FOLDER.mkdir(exist_ok=True)
    with running_service(Console(quiet=True)) as service, Client(service.url) as client:
        _save("example", photo("kitten"), marked("kitten", "cat"))
        job = client.teach("cat", EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png")
        list(client.follow(job["id"]))  # to its end
        _save("found", photo("chelsea"), client.overlay(EXAMPLES / "chelsea.jpg", ["cat"]))
        _save("named", photo("dog"), client.overlay(EXAMPLES / "dog.jpg", ["cat", "dog"]))


def photo(name: str) -> bytes:
    """The file of a photo among the examples."""
    return (EXAMPLES / f"{name}.jpg").read_bytes()


def marked(name: str, category: str) -> bytes:
    """A photo with its mask among the examples, PNG."""
    with Image.open(EXAMPLES / f"{name}.jpg") as image, Image.open(EXAMPLES / f"{name}_mask.png") as mask:
        return rgb_to_png(overlay(np.asarray(image.convert("RGB")), [np.asarray(mask) > 0], [category]))


def _save(name: str, *pictures: bytes) -> None:
    path = FOLDER / f"{name}.jpg"
    side_by_side(list(pictures), height=_HEIGHT_PX).save(path, quality=85)
    print(f"{path.relative_to(FOLDER.parent)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
