"""Schemas of the JSON in requests and responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from app.api.problems import Problem
from app.masks.formats import OUTPUT_FORMS
from app.storage.category_records import AdapterInfo, CategoryRecord, ExampleInfo
from app.storage.jobs import Job, Kind, Status

_NOT_LEARNED = (
    "The model finds this object badly in its own photo: mark it more exactly, or choose a photo where it is larger."
)


class Doubt(BaseModel):
    """Something about an example that is probably not meant."""

    code: Literal[
        "mask-looks-inverted",
        "mask-very-small",
        "mask-covers-most",
        "duplicate-example",
        "contradicts-example",
        "example-not-learned",
    ]
    detail: str


class JobOut(BaseModel):
    """A job: its kind, progress and outcome. `progress` goes from 0 to 1.

    `warnings` say of a job that succeeded that little came of it.
    """

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
    warnings: list[Doubt]

    @classmethod
    def of(cls, job: Job) -> JobOut:
        """Convert the record of a job."""
        warnings = [Doubt(code="example-not-learned", detail=_NOT_LEARNED)] if job.not_learned else []
        return cls(**{name: getattr(job, name) for name in cls.model_fields.keys() - {"warnings"}}, warnings=warnings)


class AdapterOut(BaseModel):
    """An adapter. `kept` says what makes the masks of its category.

    `adapter` = the adapter; `words` = the words alone, which marked the examples better; `presence` = the words alone,
    which suffice for the masks, while the examples serve the category's presence.
    """

    version: int
    backbone: str
    layers: list[int]
    ensemble: list[float]
    example_iou: float
    zero_shot_example_iou: float
    kept: Literal["adapter", "presence", "words"]
    bytes: int
    created_at: str

    @classmethod
    def of(cls, info: AdapterInfo) -> AdapterOut:
        """Convert the description of an adapter."""
        return cls(**{name: getattr(info, name) for name in cls.model_fields})


class CategoryOut(BaseModel):
    """A category. `prompts` are its words, the name first; `job` is the id of its latest job."""

    name: str
    prompts: list[str]
    examples: int
    adapter: AdapterOut | None
    job: str | None

    @classmethod
    def of(cls, record: CategoryRecord) -> CategoryOut:
        """Convert the record of a category."""
        return cls(
            name=record.name,
            prompts=list(record.words),
            examples=record.examples,
            adapter=AdapterOut.of(record.adapter) if record.adapter else None,
            job=record.job,
        )


class VersionOut(AdapterOut):
    """An adapter version; `current` is true for the one in use."""

    current: bool


class Rollback(BaseModel):
    """The version to use again."""

    version: Annotated[int, Field(strict=True, ge=1)]


class Taught(BaseModel):
    """The started job and the category; `note` says if only a part of the file was read, such as its first page.

    `warnings` say what is probably not meant.
    """

    job: JobOut
    category: CategoryOut
    note: str | None = None
    warnings: list[Doubt]


class Started(BaseModel):
    """The started job."""

    job: JobOut


class ExampleOut(BaseModel):
    """One example. Sizes are in pixels after EXIF rotation; `area` is that of the mask.

    `absent` is true for a photo without the category, whose mask is empty.
    """

    id: str
    width: int
    height: int
    area: int
    absent: bool
    sha256: str
    media_type: str
    created_at: str

    @classmethod
    def of(cls, example: ExampleInfo) -> ExampleOut:
        """Convert the description of an example."""
        return cls(**{name: getattr(example, name) for name in cls.model_fields})


class ImageOut(BaseModel):
    """The photo: its size in pixels after EXIF rotation, the hash of its file, and a note if there is one."""

    width: int
    height: int
    sha256: str
    note: str | None = None


class BackboneRef(BaseModel):
    """The model in use: its name and the hash of its weights."""

    name: str
    revision: str


Segmentation = Annotated[Any, WithJsonSchema({"anyOf": [dict(form.schema) for form in OUTPUT_FORMS.values()]})]


class FoundOut(BaseModel):
    """The result for one category. `segmentation` is the mask in the format chosen by `output`."""

    name: str
    adapted: bool
    adapter_version: int | None
    presence: float = Field(description="Probability that the photo shows the category.")
    found: bool = Field(description="True if the category has a mask: it is present enough, and has a pixel.")
    match_score: float = Field(
        description="Image-text score of the category's words and the whole photo, uncalibrated."
    )
    mean_probability: float = Field(description="Mean over the mask's pixels; high for absent categories too.")
    area: int
    bbox: list[int]
    segmentation: Segmentation
    heatmap: str | None = None
    adapter_problem: str | None = Field(
        default=None, description="Only if the category's adapter could not be used: why, and what to do."
    )


class SegmentOut(BaseModel):
    """The result for every requested category, in order; a category that was not found has an empty mask."""

    image: ImageOut
    backbone: BackboneRef
    layers: list[int]
    categories: list[FoundOut]
    timings_ms: dict[str, float]


class ClickedOut(BaseModel):
    """The object that was clicked."""

    image: ImageOut
    backbone: BackboneRef
    mean_probability: float = Field(description="Mean over the mask's pixels; 0 for an empty mask.")
    area: int
    bbox: list[int]
    segmentation: Segmentation
    timings_ms: dict[str, float]


class BatchLine(BaseModel):
    """One photo of a batch: its position and file name, and the fields of `SegmentOut` or a problem."""

    index: int
    filename: str | None
    image: ImageOut | None = None
    backbone: BackboneRef | None = None
    layers: list[int] = []
    categories: list[FoundOut] = []
    timings_ms: dict[str, float] = {}
    problem: Problem | None = None


class LayerOut(BaseModel):
    """A layer of a backbone. The scores are null if it was not ranked; `chosen` is true if the layer is read."""

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
    """The process answers requests."""

    status: Literal["ok"] = "ok"


class UnreadableOut(BaseModel):
    """A stored record that can't be read and is skipped: what it is, and what is wrong with it."""

    kind: Literal["job", "category", "example", "adapter", "ranking"]
    id: str
    detail: str


class Ready(BaseModel):
    """The process is ready for requests. `unreadable` names stored records that it skips."""

    status: Literal["ready"] = "ready"
    reasons: list[str] = []
    unreadable: list[UnreadableOut] = []
