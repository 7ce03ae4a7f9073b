"""The demo: start a service on a free port, teach three categories from one photo each, segment other photos."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.client import Client
from app.errors import InvalidInputError, UnavailableError
from app.masks.rle import rle_to_mask

EXAMPLES = Path(__file__).parent.parent / "examples"

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class RunningService:
    """URL and process id of a running service."""

    url: str
    pid: int


@dataclass(frozen=True)
class Question:
    """A photo, the categories to segment in it, and for some of them the true mask, drawn by hand."""

    photo: str
    masks: dict[str, str]


# Categories, and the photo that each is taught from.
TAUGHT = {"person": "astronaut", "cat": "kitten", "giraffe": "giraffes"}
QUESTIONS = (
    Question("grace_hopper", {"person": "grace_hopper_mask"}),
    Question("chelsea", {"cat": "chelsea_mask"}),
    Question("giraffe_head", {"giraffe": "giraffe_head_mask"}),
    Question("dog", {"dog": "dog_mask", "cat": ""}),
)


def run_demo(console: Console, out: Path) -> None:
    """Run the demo; every number in the table comes from the responses of the service.

    Raises:
        AppError: If there are no example photos, the service doesn't start, or it refuses a request.
    """
    if not EXAMPLES.is_dir():
        raise InvalidInputError(
            f"The demo needs the repository's example photos, and there is no folder {EXAMPLES}: run it in a clone."
        )
    with running_service(console) as service, Client(service.url) as client:
        for name, photo in TAUGHT.items():
            _teach(console, client, name, photo)
        table = Table("photo", "category", "", "presence", "area", "IoU", "ms")
        pictures = []
        for question in QUESTIONS:
            _ask(client, question, table)
            pictures.append(client.overlay(EXAMPLES / f"{question.photo}.jpg", list(question.masks)))
        console.print(table)
        side_by_side(pictures).save(out, format="PNG")  # PNG with any file extension
        console.print(f"Overlay: [bold]{out}[/bold]")


def side_by_side(pictures: list[bytes], height: int = 320) -> Image.Image:
    """The pictures in one row, scaled to the same height."""
    images = [Image.open(BytesIO(picture)).convert("RGB") for picture in pictures]
    images = [image.resize((round(image.width * height / image.height), height)) for image in images]
    row = Image.new("RGB", (sum(image.width for image in images), height))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row


@contextmanager
def running_service(console: Console, **settings: str) -> Iterator[RunningService]:
    """Run a service with the embedded model and store, in a temporary folder, on a free port; stop it at the end.

    Args:
        settings: Settings by their names in `Settings`; all others have their defaults.
    """
    with tempfile.TemporaryDirectory(prefix="exemplar-demo-") as folder:
        port = free_port()
        log = Path(folder) / "service.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EXEMPLAR_")}
        settings = {**settings, "data_dir": str(Path(folder) / "data"), "port": str(port)}
        environment |= {f"EXEMPLAR_{name.upper()}": value for name, value in settings.items()}
        with log.open("w") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"], env=environment, stdout=sink, stderr=subprocess.STDOUT
            )
        url = f"http://127.0.0.1:{port}"
        try:
            with console.status("starting the service"):
                _wait_until_ready(process, url, log)
            console.print(f"The service runs at {url} (only for this demo).")
            yield RunningService(url, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _teach(console: Console, client: Client, name: str, photo: str) -> None:
    job = client.teach(name, EXAMPLES / f"{photo}.jpg", EXAMPLES / f"{photo}_mask.png")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"teaching [bold]{name}[/bold] from {photo}.jpg", total=1.0, told="")
        state = job
        for state in client.follow(job["id"]):
            bar.update(task, completed=state["progress"], told=f"step {state['step']}/{state['steps']}")
    if state["status"] != "succeeded":
        raise UnavailableError(f"The job ended as {state['status']}: {state['error']}")


def _ask(client: Client, question: Question, table: Table) -> None:
    started = time.perf_counter()
    answer = client.segment(EXAMPLES / f"{question.photo}.jpg", list(question.masks))
    milliseconds = 1000 * (time.perf_counter() - started)
    for found in answer["categories"]:
        truth = question.masks[found["name"]]
        table.add_row(
            question.photo,
            found["name"],
            f"taught (v{found['adapter_version']})" if found["adapted"] else "named",
            f"{found['presence']:.2f}",
            f"{found['area']:,}",
            f"{_iou(found['segmentation'], truth):.2f}" if truth else "–",
            f"{milliseconds:.0f}",
        )
    table.add_section()


def _iou(segmentation: dict[str, object], truth: str) -> float:
    found = rle_to_mask(segmentation)
    with Image.open(EXAMPLES / f"{truth}.png") as image:
        wanted = np.array(image.convert("L")) > 0
    return float((found & wanted).sum() / max(1, (found | wanted).sum()))


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                last = "\n".join(log.read_text().splitlines()[-5:])
                raise UnavailableError(f"The service did not start; the last lines of its log:\n{last}")
            time.sleep(0.1)


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
