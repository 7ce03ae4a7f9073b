"""Clients that teach, change and segment categories for as long as they may, and write a journal."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from random import Random
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from .calls import TIMEOUT_S, Calls, Told, Watch
from .journal import Action, Entry, Journal

PHOTO_HW = (31, 47)
# Shared by all clients: their changes overlap, so that less is certain about them than about a client's own categories.
SHARED = ("shared one", "shared two")
OWN_CATEGORIES = 2
# Chance that a change comes without a key: its client does not send it again.
WITHOUT_KEY = 0.15
# Time that a client which is told to leave has for its last request.
_LEAVING_S = 4.0

_EXAMPLE = "/categories/{name}/example"
_EXAMPLES = "/categories/{name}/examples"


def png(pixels: np.ndarray) -> bytes:
    """An image file of these pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def photo_of(random: Random) -> bytes:
    """A photo like no other."""
    generator = np.random.default_rng(random.getrandbits(64))
    return png(generator.integers(0, 256, (*PHOTO_HW, 3), dtype=np.uint8))


def mask_of(random: Random) -> bytes:
    """A mask of a rectangle."""
    mask = np.zeros(PHOTO_HW, np.uint8)
    top, left = random.randrange(15), random.randrange(25)
    mask[top : top + 12, left : left + 18] = 255
    return png(mask)


class Client(threading.Thread):
    """One client with categories of its own.

    Args:
        number: Tells it from others.
        seed: Of its choices.
        url: Address of the service.
        journal: Of all clients.
        watch: Of all clients.
    """

    def __init__(self, number: int, *, seed: int, url: str, journal: Journal, watch: Watch) -> None:
        super().__init__(name=f"client {number}")
        self._random = Random(f"{seed}/{number}")
        self._own = [f"client {number} category {letter}" for letter in "ab"[:OWN_CATEGORIES]]
        self._journal = journal
        self._watch = watch
        self._http = httpx2.Client(base_url=url, timeout=TIMEOUT_S)
        self._calls = Calls(self._http, watch)
        self._leaves = threading.Event()
        self._gives_up_at = inf
        self._exported: bytes | None = None
        self._actions: list[tuple[int, Callable[[str], None]]] = [
            (8, self._teach), (3, self._replace), (3, self._absent), (3, self._delete_example),
            (1, self._delete_category), (2, self._roll_back), (2, self._cancel), (5, self._segment), (1, self._batch),
            (1, self._export), (1, self._import), (1, self._follow), (1, self._lists),
        ]  # fmt: skip

    def leave(self) -> None:
        """Have it end after its current action, for which it has some more time."""
        self._gives_up_at = time.monotonic() + _LEAVING_S
        self._leaves.set()

    def run(self) -> None:
        """Act until told to leave."""
        weights = [weight for weight, _ in self._actions]
        while not self._leaves.is_set():
            (_, act) = self._random.choices(self._actions, weights)[0]
            category = self._random.choice([*self._own, *self._own, *SHARED])
            try:
                act(category)
                if category in self._own and self._random.random() < 0.5:
                    self._look_at(category)
            except Exception as error:  # a bug of this client, or an answer that it does not understand
                self._watch.blame(f"{self.name} in {act.__name__}: {error!r}")
            time.sleep(self._random.uniform(0.0, 0.1))
        self._http.close()

    # Changes.

    def _change(self, action: Action, category: str, photo: str, send: Callable[[], Told], done: Sequence[int]) -> Told:
        entry = self._journal.begin(action, category, photo)
        told = send()
        _close(entry, told, done)
        return told

    def _send_example(self, action: Action, category: str, *, masked: bool = True, **fields: str) -> None:
        photo = photo_of(self._random)
        files = {"image": photo} | ({"mask": mask_of(self._random)} if masked else {})
        names = {"name": category}
        if self._random.random() < WITHOUT_KEY:

            def send() -> Told:
                return self._calls.once("POST", _EXAMPLE, names, files=files, data=fields)
        else:
            headers = {"Idempotency-Key": f"{self._random.getrandbits(64):x}"}

            def send() -> Told:
                return self._until_told("POST", _EXAMPLE, names, files=files, data=fields, headers=headers)

        self._change(action, category, hashlib.sha256(photo).hexdigest(), send, done=(202,))

    def _until_told(self, method: str, template: str, names: dict[str, Any], **request: Any) -> Told:
        return self._calls.until_told(method, template, names, stop=self._gives_up, **request)

    def _gives_up(self) -> bool:
        return time.monotonic() > self._gives_up_at

    def _teach(self, category: str) -> None:
        self._send_example("append", category)

    def _replace(self, category: str) -> None:
        self._send_example("replace", category, mode="replace")

    def _absent(self, category: str) -> None:
        self._send_example("absent", category, masked=False, absent="true")

    def _delete_example(self, category: str) -> None:
        examples = self._calls.once("GET", _EXAMPLES, {"name": category})
        if examples.status != 200 or not examples.json():
            return
        example = self._random.choice(examples.json())
        names = {"name": category, "id": example["id"]}
        # 404: an earlier try did it, or somebody else.
        self._change(
            "delete example", category, example["sha256"],
            lambda: self._until_told("DELETE", "/categories/{name}/examples/{id}", names), done=(202, 204, 404),
        )  # fmt: skip

    def _delete_category(self, category: str) -> None:
        names = {"name": category}
        self._change(
            "delete category", category, "",
            lambda: self._until_told("DELETE", "/categories/{name}", names), done=(204, 404),
        )  # fmt: skip

    def _roll_back(self, category: str) -> None:
        versions = self._calls.once("GET", "/categories/{name}/versions", {"name": category})
        if versions.status != 200 or not versions.json():
            return
        body = {"version": self._random.choice(versions.json())["version"]}
        self._change(
            "rollback", category, "",
            lambda: self._until_told("POST", "/categories/{name}/rollback", {"name": category}, json=body), done=(200,),
        )  # fmt: skip

    def _cancel(self, category: str) -> None:
        jobs = self._calls.once("GET", "/jobs", params={"category": category, "limit": "3"})
        going = [job for job in jobs.json() if job["status"] in ("queued", "running")] if jobs.status == 200 else []
        if not going:
            return
        names = {"id": self._random.choice(going)["id"]}
        self._change("cancel", category, "", lambda: self._until_told("DELETE", "/jobs/{id}", names), done=(200,))

    def _export(self, category: str) -> None:
        told = self._calls.once("GET", "/categories/{name}/adapter", {"name": category})
        if told.status == 200 and told.answer is not None:
            self._exported = told.answer.content

    def _import(self, category: str) -> None:
        raw = self._exported
        if raw is None:
            return
        names, headers = {"name": category}, {"Content-Type": "application/octet-stream"}
        self._change(
            "import", category, "",
            lambda: self._until_told("PUT", "/categories/{name}/adapter", names, content=raw, headers=headers),
            done=(200,),
        )  # fmt: skip

    # Reading.

    def _segment(self, category: str) -> None:
        named = self._random.choice([[], [category], [category, "sky", "client"]])
        files = {"image": photo_of(self._random)}
        told = self._calls.once("POST", "/segment", files=files, data={"categories": named, "refine": "none"})
        if told.status == 200 and named:
            found = [one["name"] for one in told.json()["categories"]]
            if found != named:
                self._watch.blame(f"POST /segment: asked for {named}, told of {found}")

    def _batch(self, category: str) -> None:
        files = [("images", (f"{number}.png", photo_of(self._random))) for number in range(3)]
        lines = self._calls.lines("/segment/batch", files=files, data={"categories": [category], "refine": "none"})
        for line in lines:
            problem = line.get("problem")
            if problem and problem["status"] != 503:
                self._watch.blame(f"POST /segment/batch: a line has the problem {problem}")
        if lines and sorted(line["index"] for line in lines) != [0, 1, 2]:
            self._watch.blame(f"POST /segment/batch: lines {[line['index'] for line in lines]}")

    def _follow(self, category: str) -> None:
        jobs = self._calls.once("GET", "/jobs", params={"category": category, "limit": "1"})
        if jobs.status == 200 and jobs.json():
            self._calls.once("GET", "/jobs/{id}/events", {"id": jobs.json()[0]["id"]})

    def _lists(self, _: str) -> None:
        for template in ("/categories", "/jobs", "/layers", "/backbones"):
            self._calls.once("GET", template)

    def _look_at(self, category: str) -> None:
        """Compare what the service lists with the journal."""
        asked = time.monotonic()
        told = self._calls.once("GET", _EXAMPLES, {"name": category}, params={"limit": "1000"})
        listed = [example["sha256"] for example in told.json()] if told.status == 200 else []
        if told.status in (200, 404):
            for fault in self._journal.faults(category, listed, asked=asked, answered=time.monotonic()):
                self._watch.blame(f"while running: {fault}")


def _close(entry: Entry, told: Told, done: Sequence[int]) -> None:
    """Note what became of an operation."""
    entry.status, entry.doubtful = told.status, told.doubtful
    if told.answer is None or told.status == 503:
        entry.outcome = "unknown"
    else:
        entry.outcome = "acknowledged" if told.status in done else "refused"
    if told.status == 202:
        with suppress(KeyError):
            entry.job = told.json()["job"]["id"]
    entry.ended = time.monotonic()
