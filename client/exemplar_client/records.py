"""Records that the service answers with, other than masks. Fields of newer services are ignored."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "superseded"]


def folded(name: str) -> str:
    """A category's name as the service compares it."""
    return unicodedata.normalize("NFC", name.strip()).casefold()


class Record(BaseModel):
    """Base class: an immutable answer."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Warned(Record):
    """A warning about an example that was accepted: a mask that looks inverted, or one that was not learned."""

    code: str
    detail: str


class JobState(Record):
    """A job at one moment. `progress` goes from 0 to 1; `status` may be one that a newer service has added."""

    id: str
    kind: str
    category: str | None
    status: Status | str
    progress: float
    step: int
    steps: int
    loss: float | None
    example_iou: float | None
    error: str | None
    adapter_version: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    warnings: list[Warned] = []

    @property
    def ended(self) -> bool:
        """True if the job is neither queued nor running."""
        return self.status not in ("queued", "running")


class Adapter(Record):
    """A tuned adapter. `kept` says what makes the masks of its category; None if an older service does not tell it.

    `adapter` = the adapter; `words` = the words alone, which marked the examples better; `presence` = the words alone,
    which suffice for the masks, while the examples serve the category's presence.
    """

    version: int
    backbone: str
    layers: list[int]
    ensemble: list[float]
    example_iou: float
    zero_shot_example_iou: float
    kept: Literal["adapter", "presence", "words"] | str | None = None
    bytes: int
    created_at: datetime


class Version(Adapter):
    """An adapter version that is kept; `current` is true for the one in use."""

    current: bool


class Category(Record):
    """A category. `prompts` are its words, the name first; `job` is the id of its latest job."""

    name: str
    prompts: list[str]
    examples: int
    adapter: Adapter | None
    job: str | None


class Example(Record):
    """An example. Sizes are in pixels after EXIF rotation; `area` is that of the mask.

    `absent` is true for a photo without the category, whose mask is empty.
    """

    id: str
    width: int
    height: int
    area: int
    absent: bool
    sha256: str
    media_type: str
    created_at: datetime


class Taught(Record):
    """The answer to an example: the started job, the category, and what is odd about the example."""

    job: JobState
    category: Category
    note: str | None = None
    warnings: list[Warned] = []


class Health(Record):
    """Whether the service answers (`alive`) and accepts requests (`ready`); if not, why."""

    alive: bool
    ready: bool
    detail: str = ""
