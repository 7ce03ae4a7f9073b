"""Client of Exemplar, the service that learns to segment a category from one example.

`Client` and `AsyncClient` call a running service; `Masks` is what a photo is answered with.
"""

from exemplar_client.async_client import AsyncClient, AsyncJob
from exemplar_client.coco import coco_instances
from exemplar_client.errors import (
    BatchFailed,
    Conflict,
    ExemplarError,
    FieldError,
    Forbidden,
    Invalid,
    JobFailed,
    NotFound,
    Overloaded,
    ServerFault,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from exemplar_client.masks import ClickedMask, Mask, Masks
from exemplar_client.records import Adapter, Category, Example, Health, JobState, Version
from exemplar_client.sync_client import Client, Job

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AsyncClient",
    "AsyncJob",
    "BatchFailed",
    "Category",
    "ClickedMask",
    "Client",
    "Conflict",
    "Example",
    "ExemplarError",
    "FieldError",
    "Forbidden",
    "Health",
    "Invalid",
    "Job",
    "JobFailed",
    "JobState",
    "Mask",
    "Masks",
    "NotFound",
    "Overloaded",
    "ServerFault",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMedia",
    "Version",
    "coco_instances",
]
