"""What a job shows, whichever client it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from exemplar_client.errors import JobFailed
from exemplar_client.records import JobState, Warned


class JobView:
    """A job as last seen.

    Attributes:
        state: The job when the service was last asked.
        note: What was left out of the photo's file, such as further pages; None if nothing.
    """

    def __init__(self, state: JobState, *, note: str | None = None, warnings: Sequence[Warned] = ()) -> None:
        self.state = state
        self.note = note
        self._doubts = list(warnings)

    def __repr__(self) -> str:
        return f"<Job {self.id} of {self.category}: {self.status}, {self.progress:.0%}>"

    @property
    def warnings(self) -> list[Warned]:
        """What is odd about the example that started the job, and, once it has ended, if it was not learned."""
        return [*self._doubts, *self.state.warnings]

    @property
    def id(self) -> str:
        """The job's id."""
        return self.state.id

    @property
    def category(self) -> str | None:
        """Name of the category that the job teaches; None for a job about all."""
        return self.state.category

    @property
    def status(self) -> str:
        """`queued`, `running`, `succeeded`, `failed`, `cancelled` or `superseded`."""
        return self.state.status

    @property
    def progress(self) -> float:
        """Done so far, 0 to 1."""
        return self.state.progress

    @property
    def ended(self) -> bool:
        """True if the job is neither queued nor running."""
        return self.state.ended

    @property
    def error(self) -> str | None:
        """Why the job failed."""
        return self.state.error

    @property
    def example_iou(self) -> float | None:
        """IoU of the tuned category with its examples' masks."""
        return self.state.example_iou

    @property
    def adapter_version(self) -> int | None:
        """The adapter version that the job made."""
        return self.state.adapter_version

    @property
    def finished_at(self) -> datetime | None:
        """When the job ended."""
        return self.state.finished_at

    def _check_outcome(self) -> None:
        """Raise `JobFailed` unless the job succeeded."""
        if self.status != "succeeded":
            raise JobFailed(self.state)


def label_of(job: JobState) -> str:
    """Text before the bar of a job."""
    return f"teaching {job.category}" if job.category else job.kind


def note_of(job: JobState) -> str:
    """Text beside the bar of a job."""
    steps = f" {job.step}/{job.steps}" if job.steps else ""
    return f"{job.status}{steps}"
