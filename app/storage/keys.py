"""All keys of the store, and all times to live with their reasons.

Values are JSON, safetensors or images, never pickle, except in the messages of the queue (`queue.py`). Scripts change a
category's keys together with the list of all categories and with jobs, so one server (or Sentinel) must hold all keys;
Redis Cluster is not supported. Category ids are percent-encoded, so no name produces the key of another.
"""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

PREFIX = "exemplar"

# Every end of a ranking job deletes its photos; a day covers an outage before that.
RANKING_IMAGES_TTL_S = 86_400

# Covers a client that retries after an outage of its own.
IDEMPOTENCY_TTL_S = 86_400

# A process at work on a request renews its slot before it expires. If the process dies, a retry waits for this long.
IDEMPOTENCY_RUNNING_TTL_S = 12

# Far longer than a command whose connection broke is sent again (`connection.py`).
RECEIPT_TTL_S = 60


def category_id(name: str) -> str:
    """Id of a name: its composed form without case, percent-encoded. `CategoryName` holds it."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return quote(folded, safe="")


# Prefix of the counts of the rate limit, each with a time to live of two periods.
RATE_LIMIT = f"{PREFIX}:limit"

# Written by the readiness probe; expires after a second.
PROBE = f"{PREFIX}:probe"

# All categories: sorted set of ids by time of creation.
CATEGORIES = f"{PREFIX}:categories"

# Prefix of the keys of the job engine's queue (pydocket).
QUEUE = f"{PREFIX}:docket"

# All jobs: sorted set of ids by time of creation; ids whose record has expired are dropped when read.
JOBS = f"{PREFIX}:jobs"

# Hash: id of a Label Studio annotation to JSON, the examples that were made of it.
ANNOTATIONS = f"{PREFIX}:label-studio:annotations"

# List: JSON of the changes of annotations that wait to be learnt, the oldest first; those that came together are one.
ANNOTATION_CHANGES = f"{PREFIX}:label-studio:changes"

# String: there while a process learns them.
ANNOTATION_CHANGES_LOCK = f"{PREFIX}:label-studio:changes-lock"


def category(id_: str) -> str:
    """Hash: name, prompts, generation, job, adapter_version, adapter_generation, result_version, created_at.

    Also `sha256_<version>`, the hash of an adapter's file, for every version that is kept.
    """
    return f"{PREFIX}:category:{{{id_}}}"


def counters(id_: str) -> str:
    """Hash: last generation and last version. It outlives the category, so that neither number is used twice."""
    return f"{category(id_)}:counters"


def example_ids(id_: str) -> str:
    """List: ids of the examples, in the order in which they were added."""
    return f"{category(id_)}:examples"


def example_prefix(id_: str) -> str:
    """Prefix of the keys of a category's examples, for scripts that read their ids from the store."""
    return f"{category(id_)}:example:"


def example(id_: str, example_id: str) -> str:
    """Hash: the photo's bytes, the mask as PNG, and the fields of `ExampleInfo`."""
    return f"{example_prefix(id_)}{example_id}"


def versions(id_: str) -> str:
    """Hash: version to `AdapterInfo` as JSON, so that a list of versions reads no tensors."""
    return f"{category(id_)}:versions"


def adapter_prefix(id_: str) -> str:
    """Prefix of the keys of a category's adapters, for scripts that read their versions from the store."""
    return f"{category(id_)}:adapter:"


def adapter(id_: str, version: int) -> str:
    """String: the adapter's safetensors."""
    return f"{adapter_prefix(id_)}{version}"


def receipt(call: str) -> str:
    """String: the answer of a call that changed a category, for the same call sent again because its reply was lost."""
    return f"{PREFIX}:receipt:{call}"


# Prefixes of the two below, for scripts that read a job's id from the store.
JOB_PREFIX = f"{PREFIX}:job:"
JOB_CHANNEL_PREFIX = f"{PREFIX}:job-events:"


def job(job_id: str) -> str:
    """Hash: the job's record. It expires `EXEMPLAR_JOB_TTL_S` after the job's end.

    Also `ended_by`, the call that ended the job.
    """
    return f"{JOB_PREFIX}{job_id}"


def job_lease(job_id: str) -> str:
    """String: there while a worker runs the job. It expires `EXEMPLAR_JOB_REDELIVERY_S` after the worker's death."""
    return f"{PREFIX}:job-lease:{job_id}"


def job_channel(job_id: str) -> str:
    """Channel: a message at every change of the record."""
    return f"{JOB_CHANNEL_PREFIX}{job_id}"


def ranking_images(job_id: str) -> str:
    """List: the photos of a ranking job."""
    return f"{PREFIX}:ranking:{job_id}:images"


def ranking_names(job_id: str) -> str:
    """List: the category names of a ranking job."""
    return f"{PREFIX}:ranking:{job_id}:names"


def layer_statistics(revision: str) -> str:
    """JSON: InfoScore's running sums for a model's weights, and the prompts of these sums."""
    return f"{PREFIX}:layers:{revision}"


def layer_ranking(revision: str) -> str:
    """JSON: the scores of those sums. Requests read them alone: sums of a thousand prompts take half a megabyte."""
    return f"{PREFIX}:layers:{revision}:ranking"


def idempotency(key_hash: str) -> str:
    """JSON: hash of the request that an Idempotency-Key stands for, and its answer."""
    return f"{PREFIX}:idempotency:{key_hash}"
