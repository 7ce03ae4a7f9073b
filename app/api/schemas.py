"""The JSON of the HTTP contract."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from app.api.problems import Problem
from app.masks.formats import OUTPUT_FORMS
from app.storage.categories import AdapterInfo, CategoryRecord, ExampleInfo
from app.storage.jobs import Job, Kind, Status


class JobOut(BaseModel):
    """A job: what it is, how far it is, and how it ended."""

    id: str
    kind: Kind
    category: str | None
    status: Status
    progress: float
    step: int
    steps: int
    loss: float | None
    example_iou: float | None
    error: str | None
    adapter_version: int | None
    created_at: str
    started_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, job: Job) -> JobOut:
        """From its record."""
        return cls(**{name: getattr(job, name) for name in cls.model_fields})


class AdapterOut(BaseModel):
    """An adapter in use. Where `example_iou` is below `zero_shot_example_iou` the category kept the words alone."""

    version: int
    backbone: str
    layers: list[int]
    ensemble: list[float]
    example_iou: float
    zero_shot_example_iou: float
    bytes: int
    created_at: str

    @classmethod
    def of(cls, info: AdapterInfo) -> AdapterOut:
        """From its description."""
        return cls(**{name: getattr(info, name) for name in cls.model_fields})


class CategoryOut(BaseModel):
    """A category. `prompts` are the words it is asked with, its name first; `job` is the last one's id."""

    name: str
    prompts: list[str]
    examples: int
    adapter: AdapterOut | None
    job: str | None

    @classmethod
    def of(cls, record: CategoryRecord) -> CategoryOut:
        """From its record."""
        return cls(
            name=record.name,
            prompts=list(record.words),
            examples=record.examples,
            adapter=AdapterOut.of(record.adapter) if record.adapter else None,
            job=record.job,
        )


class VersionOut(AdapterOut):
    """An adapter version; `current` is the one in use."""

    current: bool


class Rollback(BaseModel):
    """The version to use again."""

    version: Annotated[int, Field(strict=True, ge=1)]


class Taught(BaseModel):
    """The job that was started, and the category as it is now; `note` says if the photo was read in a special way."""

    job: JobOut
    category: CategoryOut
    note: str | None = None


class Started(BaseModel):
    """The job that was started."""

    job: JobOut


class ExampleOut(BaseModel):
    """One example. `area` is the mask's, in pixels."""

    id: str
    width: int
    height: int
    area: int
    sha256: str
    media_type: str
    created_at: str

    @classmethod
    def of(cls, example: ExampleInfo) -> ExampleOut:
        """From what is stored."""
        return cls(**{name: getattr(example, name) for name in cls.model_fields})


class ImageOut(BaseModel):
    """The photo as it was read: its size after EXIF rotation, the hash of the file, and a note if there is one."""

    width: int
    height: int
    sha256: str
    note: str | None = None


class BackboneRef(BaseModel):
    """The model that answered: its name and the hash of its weights."""

    name: str
    revision: str


Segmentation = Annotated[Any, WithJsonSchema({"anyOf": [dict(form.schema) for form in OUTPUT_FORMS.values()]})]


class FoundOut(BaseModel):
    """A category in the photo. `segmentation` is its mask in the form that `output` names."""

    name: str
    adapted: bool
    adapter_version: int | None
    match_score: float
    mean_probability: float
    area: int
    bbox: list[int]
    segmentation: Segmentation
    heatmap: str | None = None


class SegmentOut(BaseModel):
    """Every category asked for, in order; one that isn't in the photo has an empty mask."""

    image: ImageOut
    backbone: BackboneRef
    layers: list[int]
    categories: list[FoundOut]
    timings_ms: dict[str, float]


class BatchLine(BaseModel):
    """One photo of a batch: its place and name, and a `SegmentOut` or the problem."""

    index: int
    filename: str | None
    image: ImageOut | None = None
    backbone: BackboneRef | None = None
    layers: list[int] = []
    categories: list[FoundOut] = []
    timings_ms: dict[str, float] = {}
    problem: Problem | None = None


class LayerOut(BaseModel):
    """A layer of a backbone: what InfoScore says of it, if it was ranked, and whether it is read."""

    backbone: str
    layer: int
    infoscore: float | None
    entropy_ratio: float | None
    cov: float | None
    images: int
    chosen: bool
    chosen_by: Literal["InfoScore", "setting", "default"]


class BackboneOut(BaseModel):
    """A loaded model."""

    name: str
    family: str
    revision: str
    device: str
    dtype: str
    memory_bytes: int
    layers: int
    patch_grid: list[int]
    image_text_score: Literal["match head", "yes/no question", "none"]
    warm: bool


class Healthy(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """The process can serve."""

    status: Literal["ready"] = "ready"
    reasons: list[str] = []
