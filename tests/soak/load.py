"""Load: clients that send valid requests of every kind, so that any answer but success is an error."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import httpx2

from tests.chaos.clients import mask_of, photo_of

TIMEOUT_S = 60.0
# All clients' jobs wait for one another, on a machine that may do other work too.
JOB_S = 600.0
_LOOK_PAUSE_S = 0.5
ENDED = {"succeeded", "failed", "cancelled", "superseded"}


class Tally:
    """Requests by name, their errors, and the times of all, of all clients together."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.errors: list[str] = []
        self.times_s: list[float] = []
        self._lock = threading.Lock()

    def note(self, name: str, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self.requests[name] += 1
            self.times_s.append(seconds)

    def blame(self, error: str) -> None:
        """Note an error."""
        with self._lock:
            self.errors.append(error)


class Client(threading.Thread):
    """One client with categories of its own.

    Args:
        number: Tells it from others.
        seed: Of its choices.
        categories: Number of its categories.
        url: Address of the service.
        tally: Of all clients.
    """

    def __init__(self, number: int, *, seed: int, categories: int, url: str, tally: Tally) -> None:
        super().__init__(name=f"client {number}")
        self._random = Random(f"{seed}/{number}")
        self._names = [f"thing {number} {other}" for other in range(categories)]
        self._http = httpx2.Client(base_url=url, timeout=TIMEOUT_S)
        self._tally = tally
        self._leaves = threading.Event()
        self._actions: list[tuple[int, Callable[[], None]]] = [
            (6, self._segment), (4, self._segment_all), (1, self._batch), (3, self._teach_anew), (1, self._teach_more),
            (1, self._delete_and_teach), (1, self._export_and_import), (2, self._read), (1, self._refused),
        ]  # fmt: skip

    def leave(self) -> None:
        """Have it end after its current action."""
        self._leaves.set()

    def run(self) -> None:
        """Teach all categories, then act until told to leave."""
        weights = [weight for weight, _ in self._actions]
        try:
            for name in self._names:
                self._taught(name)
            while not self._leaves.is_set():
                self._random.choices(self._actions, weights)[0][1]()
        except Exception as error:  # ends this client: the run fails by it
            self._tally.blame(f"{self.name}: {error!r}")
        self._http.close()

    def _send(self, name: str, method: str, path: str, *, expected: tuple[int, ...] = (200,), **request: Any) -> Any:
        began = time.perf_counter()
        answer = self._http.request(method, path, **request)
        self._tally.note(name, time.perf_counter() - began)
        if answer.status_code not in expected:
            self._tally.blame(f"{name}: {answer.status_code} {answer.text[:200]}")
        return answer

    def _any(self) -> str:
        return self._random.choice(self._names)

    def _taught(self, category: str, **fields: str) -> None:
        """Teach and wait for the job, which must succeed."""
        files = {"image": photo_of(self._random), "mask": mask_of(self._random)}
        headers = {"Idempotency-Key": f"{self._random.getrandbits(64):x}"}
        answer = self._send(
            "teach", "POST", f"/categories/{category}/example",
            files=files, data=fields, headers=headers, expected=(202,),
        )  # fmt: skip
        if answer.status_code != 202:
            return
        job = answer.json()["job"]
        deadline = time.monotonic() + JOB_S
        while job["status"] not in ENDED and time.monotonic() < deadline:
            time.sleep(_LOOK_PAUSE_S)
            job = self._send("job", "GET", f"/jobs/{job['id']}").json()
        if job["status"] != "succeeded":
            self._tally.blame(f"a job of {category} is {job['status']}: {job['error']}")

    def _teach_anew(self) -> None:
        self._taught(self._any(), mode="replace")

    def _teach_more(self) -> None:
        category = self._any()
        self._taught(category)
        examples = self._send("examples", "GET", f"/categories/{category}/examples").json()
        if len(examples) > 2:
            self._send(
                "delete example", "DELETE", f"/categories/{category}/examples/{examples[0]['id']}", expected=(202,)
            )

    def _segment(self) -> None:
        self._send(
            "segment", "POST", "/segment",
            files={"image": photo_of(self._random)}, data={"categories": [self._any(), "sky"]},
        )  # fmt: skip

    def _segment_all(self) -> None:
        output = self._random.choice(["rle", "polygons", "png"])
        self._send("segment all", "POST", "/segment", files={"image": photo_of(self._random)}, data={"output": output})

    def _batch(self) -> None:
        files = [("images", (f"{number}.png", photo_of(self._random))) for number in range(4)]
        answer = self._send("batch", "POST", "/segment/batch", files=files, data={"categories": [self._any()]})
        if '"problem"' in answer.text:
            self._tally.blame(f"batch: {answer.text[:300]}")

    def _delete_and_teach(self) -> None:
        category = self._any()
        self._send("delete", "DELETE", f"/categories/{category}", expected=(204,))
        self._taught(category)

    def _export_and_import(self) -> None:
        raw = self._send("export", "GET", f"/categories/{self._any()}/adapter").content
        self._send("import", "PUT", f"/categories/{self._any()}/adapter", content=raw)

    def _read(self) -> None:
        for path in ("/categories", "/jobs", "/layers", "/backbones", "/metrics", "/readyz"):
            self._send("read", "GET", path)

    def _refused(self) -> None:
        """What is refused must leave nothing behind either."""
        self._send("refused", "POST", "/segment", files={"image": b"no photo"}, expected=(415, 422))
        self._send("refused", "GET", "/categories/never taught", expected=(404,))
