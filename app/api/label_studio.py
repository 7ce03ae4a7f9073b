"""Routes that Label Studio calls on an ML backend: it takes predictions, and tells every change of an annotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.context import Live
from app.api.problems import documented
from app.services.labelling.annotations import marked_of
from app.services.labelling.changes import Change, Forget, ForgetTasks, Learn, LearnProject

router = APIRouter(prefix="/label-studio", tags=["label-studio"])

_MODEL_CLASS = "Exemplar"

# Ids in Label Studio's database.
Id = Annotated[int, Field(strict=True, ge=0, lt=2**63)]

# A config is XML, which takes seconds to read where it has megabytes; that of a thousand labels has about 100,000.
Config = Annotated[str, Field(max_length=512 * 1024)]


class Up(BaseModel):
    """Answer of a backend that is there."""

    status: str = "UP"
    model_class: str = _MODEL_CLASS


class SetUp(BaseModel):
    """A project that connects."""

    label_schema: Config = Field("<View/>", alias="schema", description="Label config, as XML.")
    hostname: str = Field("", description="Address of Label Studio.")
    access_token: str = Field("", description="Access token for its photos.")


class ModelVersion(BaseModel):
    """Version of the predictions for a project."""

    model_version: str


class ModelVersions(BaseModel):
    """Versions of the predictions."""

    versions: list[str]


class Predict(BaseModel):
    """Tasks to predict."""

    tasks: list[dict[str, Any]] = Field(max_length=10_000)
    label_config: Config = Field(description="XML.")
    params: dict[str, Any] | None = Field(
        default=None,
        description="Its `context.result` has the regions that a person drew, of interactive preannotation.",
    )


class Predictions(BaseModel):
    """One prediction for each task, or an empty list for a task whose photo can't be read."""

    results: list[dict[str, Any] | list[Any]]


class Project(BaseModel):
    """The project of a change; one that was never set up has no config."""

    id: Id
    label_config: Config | None = None


class Task(BaseModel):
    """The task of a change."""

    id: Id
    data: dict[str, Any] = {}


class Annotation(BaseModel):
    """An annotation that was made or changed; of a deleted one there is only the id, of an empty one no result."""

    id: Id
    task: Id | None = None
    result: list[Any] | None = None
    was_cancelled: Annotated[bool, Field(strict=True)] = False
    updated_at: str = ""


class ToldChange(BaseModel):
    """A change, as Label Studio tells it. A list stands for several annotations or tasks."""

    action: str = ""
    project: Project | None = None
    annotation: Annotation | list[Annotation] | None = None
    annotations: list[Annotation] = []
    task: Task | list[Task] | None = None
    tasks: list[Task] = []


class Noted(BaseModel):
    """Answer to a change."""

    status: str = "ok"
    result: dict[str, Any] = {}


class Nothing(BaseModel):
    """Answer to a call for which there is nothing to do."""

    status: str = "ok"


class JobStatus(BaseModel):
    """State of a training of which Label Studio has the id. Jobs of this service are at `/jobs`."""

    job_status: str = "finished"


@router.get("/", include_in_schema=False)
@router.get("/health", responses=documented())
async def health() -> Up:
    """Return 200 if the process answers requests, whether its model is warm or not."""
    return Up()


@router.post("/setup", responses=documented(400, 413, 422))
async def setup(body: SetUp, live: Live) -> ModelVersion:
    """Get to know a project and return the version of its predictions; the model need not be warm."""
    version = await live.label_studio.set_up(body.label_schema, hostname=body.hostname, token=body.access_token)
    return ModelVersion(model_version=version)


@router.get("/versions", responses=documented())
async def versions(live: Live) -> ModelVersions:
    """Return the version of the predictions for the project that connected last."""
    return ModelVersions(versions=await live.label_studio.versions())


@router.post("/predict", responses=documented(400, 413, 415, 422))
async def predict(body: Predict, live: Live) -> Predictions:
    """Segment the photos of tasks into the labels of the config; only labels that are found have regions.

    If a person drew key points, boxes or strokes of the brush, the object that they point at is marked instead.
    """
    return Predictions(results=await live.label_studio.predict(body.tasks, body.label_config, body.params))


@router.post("/webhook", status_code=201, responses=documented(400, 413, 422))
async def webhook(body: ToldChange, live: Live) -> Noted:
    """Take note of a change: annotations are taught in the background. Other changes are ignored."""
    await live.label_changes.add(list(_changes(body)))
    return Noted()


@router.post("/validate", responses=documented(), name="validate")
@router.post("/delete", responses=documented(), name="delete_project")
@router.post("/duplicate_model", responses=documented(), name="duplicate_model")
async def nothing() -> Nothing:
    """Return 200: there is nothing to do. What was learnt stays."""
    return Nothing()


@router.post("/job_status", responses=documented())
async def job_status() -> JobStatus:
    """Return that the training is finished: Label Studio is given no ids of jobs."""
    return JobStatus()


def _changes(told: ToldChange) -> Iterator[Change]:
    match told.action:
        case "ANNOTATION_CREATED" | "ANNOTATIONS_CREATED" | "ANNOTATION_UPDATED":
            yield from _learnt(told)
        case "ANNOTATIONS_DELETED":
            for annotation in told.annotations:
                yield Forget(annotation.id)
        case "TASKS_DELETED":
            yield ForgetTasks(tuple(task.id for task in told.tasks))
        case "START_TRAINING" if told.project and told.project.label_config:
            yield LearnProject(told.project.id, told.project.label_config)


def _learnt(told: ToldChange) -> Iterator[Learn]:
    if not (told.project and told.project.label_config):
        return
    tasks = {task.id: task for task in _list(told.task)}
    for annotation in _list(told.annotation):
        # One annotation of one task need not name it.
        id = annotation.task if annotation.task is not None else next(iter(tasks), None)
        if id in tasks:
            with_task = {**tasks[id].model_dump(), "annotations": [annotation.model_dump()]}
            for marked in marked_of(with_task, told.project.label_config, told.project.id):
                yield Learn(marked)


def _list(one_or_many: Any) -> list[Any]:
    if one_or_many is None:
        return []
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]
