"""Calls of a client: sends a request until it has an answer that decides it, and checks every answer on the way."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

PROBLEM = "application/problem+json"
# A request is given up after this time, as by an impatient client.
TIMEOUT_S = 8.0
# All tries of one request together.
PATIENCE_S = 25.0
PAUSE_S = 0.2


@dataclass
class Watch:
    """What all clients saw: answers by status, tries without an answer, and what must not happen.

    Args:
        document: OpenAPI document of the service.
    """

    document: Mapping[str, Any]
    answers: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    context: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        """Count an answer, or a try without one."""
        with self._lock:
            self.answers[what] += 1

    def blame(self, violation: str) -> None:
        """Note a violation."""
        with self._lock:
            self.violations.append(f"{self.context}: {violation}" if self.context else violation)

    @contextmanager
    def about(self, context: str) -> Iterator[None]:
        """In the body, violations are told with this context; for one thread."""
        self.context = context
        try:
            yield
        finally:
            self.context = ""

    def answered(self, method: str, template: str, answer: httpx2.Response) -> None:
        """Check an answer: documented, and no failure of the service except a refusal that says when to come back."""
        self.count(str(answer.status_code))
        call = f"{method} {template}"
        documented = self.document["paths"][template][method.lower()]["responses"]
        if str(answer.status_code) not in documented:
            self.blame(f"{call}: undocumented {answer.status_code} {answer.text[:200]}")
        if answer.status_code < 400:
            return
        if answer.headers.get("content-type") != PROBLEM:
            self.blame(f"{call}: {answer.status_code} is no problem+json: {answer.text[:200]}")
        if answer.status_code >= 500 and (answer.status_code != 503 or "retry-after" not in answer.headers):
            self.blame(f"{call}: {answer.status_code} {answer.text[:200]}")


@dataclass(frozen=True)
class Told:
    """What became of a request.

    Attributes:
        answer: The answer that decided it; None if there was none in time.
        doubtful: True if another try of it may have had an effect.
    """

    answer: httpx2.Response | None
    doubtful: bool

    @property
    def status(self) -> int:
        """Status of the answer; 0 if there was none."""
        return self.answer.status_code if self.answer else 0

    def json(self) -> Any:
        """JSON of the answer."""
        assert self.answer is not None
        return self.answer.json()


class Calls:
    """Sends requests.

    Args:
        http: Client of the service.
        watch: Checks the answers.
    """

    def __init__(self, http: httpx2.Client, watch: Watch) -> None:
        self._http = http
        self._watch = watch

    def once(self, method: str, template: str, names: Mapping[str, object] = {}, **request: Any) -> Told:
        """Send a request once."""
        path = re.sub(r"\{(\w+)\}", lambda match: str(names[match[1]]), template)
        try:
            answer = self._http.request(method, path, **request)
        except httpx2.ConnectError:
            self._watch.count("no connection")
            return Told(None, doubtful=False)
        except httpx2.TransportError as error:
            self._watch.count(type(error).__name__)
            return Told(None, doubtful=True)
        self._watch.answered(method, template, answer)
        return Told(answer, doubtful=answer.status_code == 503)

    def until_told(
        self, method: str, template: str, names: Mapping[str, object] = {}, *, stop: Callable[[], bool], **request: Any
    ) -> Told:
        """Send a request again and again until an answer decides it, patience ends, or `stop` says so."""
        deadline = time.monotonic() + PATIENCE_S
        doubtful = False
        while True:
            told = self.once(method, template, names, **request)
            decided = told.answer is not None and "retry-after" not in told.answer.headers
            if decided:
                return Told(told.answer, doubtful)
            doubtful |= told.doubtful or told.status == 409  # an earlier try is still at work
            if time.monotonic() > deadline or stop():
                return Told(None, doubtful)
            time.sleep(PAUSE_S)

    def lines(self, template: str, **request: Any) -> list[Any]:
        """The JSON lines of a streamed answer; none if it was refused or cut off."""
        told = self.once("POST", template, **request)
        if told.status != 200:
            return []
        assert told.answer is not None
        return [json.loads(line) for line in told.answer.text.splitlines()]
