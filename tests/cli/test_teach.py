"""Teaching on the command line: one category, and all of a COCO file."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import pytest


@pytest.mark.parametrize("words", [[], ["README.md", "--absent"]], ids=["neither", "both"])
def test_an_example_has_a_mask_or_lacks_the_category(command, words: list[str]) -> None:
    done = command("register", "cat", "examples/dog.jpg", *words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Give a mask of the category, or --absent" in done.stderr


class Warning202(BaseHTTPRequestHandler):
    """A service that takes an example with a warning, whose job has ended already."""

    job: ClassVar = {"id": "j", "status": "succeeded", "progress": 1.0, "error": None}
    adapter: ClassVar = {"version": 1, "example_iou": 0.5, "zero_shot_example_iou": 0.4}
    warning: ClassVar = {"code": "mask-very-small", "detail": "The mask [bold]marks 1 pixel."}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer({"job": self.job, "category": {}, "warnings": [self.warning]})

    def do_GET(self) -> None:
        if self.path.endswith("/events"):
            self.answer(self.job, kind="text/event-stream", prefix="data: ", suffix="\n\n")
        else:
            self.answer({"adapter": self.adapter})

    def answer(self, body: dict, *, kind: str = "application/json", prefix: str = "", suffix: str = "") -> None:
        raw = f"{prefix}{json.dumps(body)}{suffix}".encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


def test_teach_tells_what_is_probably_not_meant(command, serving) -> None:
    with serving(Warning202) as url:
        files = ("examples/kitten.jpg", "examples/kitten_mask.png")
        done = command("teach", "cat", *files, "--url", url)
    assert done.returncode == 0
    assert done.stderr == "Warning: The mask [bold]marks 1 pixel.\n"
    assert "version 1" in done.stdout
