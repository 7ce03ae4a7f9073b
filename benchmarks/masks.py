"""Compare the masks of two versions of the code: record those of a running service, then compare two records.

    python -m benchmarks.masks record before.npz --data DIR --url http://127.0.0.1:8000
    python -m benchmarks.masks compare before.npz after.npz

For each photo of the data set it requests four label maps over HTTP: the photo's classes by words, with and without
refinement; all taught categories; and the photo's classes with adapters. It first teaches ten classes, or imports their
adapters from `--adapters`. The records before and after a change that should not affect masks must be equal.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np
from PIL import Image
from rich.progress import track

# A job takes about a second.
_POLL_S, _POLLS = 0.25, 400
_TAUGHT = 10


def main() -> int:
    """Run one of the two commands; exit status 1 if two records are not of the same photos and requests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    record_ = commands.add_parser("record", help="Request the masks of every photo from a running service.")
    record_.add_argument("file", type=Path)
    record_.add_argument("--data", type=Path, required=True, help="Folder with index.json, images/ and masks/.")
    record_.add_argument("--url", default="http://127.0.0.1:8000")
    record_.add_argument("--limit", type=int, default=None, help="Maximum number of photos.")
    record_.add_argument("--adapters", type=Path, help="Folder: export the adapters to it, or import those in it.")
    compare_ = commands.add_parser("compare", help="Count the pixels whose label differs.")
    compare_.add_argument("before", type=Path)
    compare_.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.file, arguments.data, arguments.url, arguments.limit, arguments.adapters)
    else:
        return compare(arguments.before, arguments.after)
    return 0


def record(file: Path, data: Path, url: str, limit: int | None, adapters: Path | None) -> None:
    """Write the label maps of every photo to a file.

    Args:
        file: NumPy archive, a uint8 array [height, width] per photo and request.
        data: Data set as `python -m app evaluate` reads it.
        url: Address of the service.
        limit: Maximum number of photos.
        adapters: Folder of exported adapters. If it has some, they are imported instead of teaching; else it is filled.
    """
    index = json.loads((data / "index.json").read_text())
    names = index["classes"]
    maps: dict[str, np.ndarray] = {}
    with httpx.Client(base_url=url, timeout=120) as client:
        taught = _teach(client, data, index, adapters)
        for item in track(index["images"][:limit], "segmenting"):
            photo = (data / "images" / f"{item['id']}.jpg").read_bytes()
            present = [names[number] for number in item["classes"]]
            for variant, categories, fields in (
                ("words", present, {"adapters": "none"}),
                ("unrefined", present, {"adapters": "none", "refine": "none"}),
                ("taught", taught, {}),
                ("present", present, {}),
            ):
                answer = client.post(
                    "/segment",
                    files={"image": photo},
                    data={"categories": categories, **fields},
                    headers={"Accept": "image/png"},
                )
                answer.raise_for_status()
                maps[f"{item['id']}/{variant}"] = np.array(Image.open(io.BytesIO(answer.content)))
    np.savez_compressed(file, **maps)


def compare(before: Path, after: Path) -> int:
    """Print the number of photos and pixels that differ, for each kind of request; 1 if one record lacks some."""
    old, new = np.load(before), np.load(after)
    keys = sorted(set(old) & set(new))
    for variant in sorted({key.rpartition("/")[2] for key in keys}):
        chosen = [key for key in keys if key.endswith(f"/{variant}")]
        different = [int((old[key] != new[key]).sum()) for key in chosen]
        pixels = sum(old[key].size for key in chosen)
        print(
            f"{variant}: {sum(map(bool, different))} of {len(chosen)} photos differ, "
            f"{sum(different)} of {pixels} pixels, at most {max(different)} in one photo"
        )
    missing = [(before, sorted(set(new) - set(old))), (after, sorted(set(old) - set(new)))]
    for file, lacks in missing:
        if lacks:
            print(f"{file} lacks {len(lacks)} masks: {', '.join(lacks[:5])}{' …' if len(lacks) > 5 else ''}")
    return int(any(lacks for _, lacks in missing))


def _teach(client: httpx.Client, data: Path, index: dict, adapters: Path | None) -> list[str]:
    """Teach the first ten classes that cover 2 to 60 % of a photo, or import their adapters from an earlier record."""
    if adapters and (files := sorted(adapters.glob("*.safetensors"))):
        for file in files:
            client.put(f"/categories/{file.stem}/adapter", content=file.read_bytes()).raise_for_status()
        return [file.stem for file in files]
    taught: list[str] = []
    for item in index["images"]:
        labels = np.array(Image.open(data / "masks" / f"{item['id']}.png"))
        for number in item["classes"]:
            name = index["classes"][number]
            if name in taught or len(taught) == _TAUGHT or not 0.02 < (labels == number).mean() < 0.6:
                continue
            mask = io.BytesIO()
            Image.fromarray(np.uint8(255) * (labels == number)).save(mask, "PNG")
            answer = client.post(
                f"/categories/{name}/example",
                files={"image": (data / "images" / f"{item['id']}.jpg").read_bytes(), "mask": mask.getvalue()},
            )
            answer.raise_for_status()
            _follow(client, name, answer.headers["Location"])
            taught.append(name)
    if adapters:
        adapters.mkdir(parents=True, exist_ok=True)
        for name in taught:
            raw = client.get(f"/categories/{name}/adapter")
            raw.raise_for_status()
            (adapters / f"{name}.safetensors").write_bytes(raw.content)
    return taught


def _follow(client: httpx.Client, name: str, job: str) -> None:
    """Wait for the end of a job; a job that does not succeed ends the recording."""
    for _ in range(_POLLS):
        state = client.get(job).json()
        if state["status"] not in ("queued", "running"):
            break
        time.sleep(_POLL_S)
    print(f"{name}: {state['status']}, example IoU {state['example_iou']}")
    if state["status"] != "succeeded":
        raise SystemExit(f"The job that teaches {name} did not succeed: {state['error'] or state['status']}")


if __name__ == "__main__":
    sys.exit(main())
