"""Every key of the store and every time to live, with its reason.

Values are JSON, safetensors or images, never pickle. A category's keys share a hash tag and are written by scripts,
which also keep the list of all categories: one server (or Sentinel) holds it all, not a cluster. Category ids are
percent-encoded, so a name can't reach into another key.
"""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

PREFIX = "exemplar"

# Photos of a ranking job are deleted at its end, whatever that is; a day leaves room for an outage.
RANKING_IMAGES_TTL_S = 86_400

# Long enough for a client that retries after its own outage.
IDEMPOTENCY_TTL_S = 86_400

# Two requests with one key can only overlap for as long as an upload takes.
IDEMPOTENCY_RUNNING_TTL_S = 120


def category_id(name: str) -> str:
    """Names are compared without case and in composed form: one id for all spellings that are the same name."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return quote(folded, safe="")


# Written by the readiness probe, for a second.
PROBE = f"{PREFIX}:probe"

# All categories: sorted set of ids by time of creation.
CATEGORIES = f"{PREFIX}:categories"

# All jobs: sorted set of ids by time of creation; ids whose record has expired are dropped when read.
JOBS = f"{PREFIX}:jobs"


def category(id_: str) -> str:
    """Hash: name, prompts, generation, job, adapter_version, adapter_generation, created_at."""
    return f"{PREFIX}:category:{{{id_}}}"


def counters(id_: str) -> str:
    """Hash of the last generation and the last version. It outlives the category: neither is ever used twice."""
    return f"{category(id_)}:counters"


def example_ids(id_: str) -> str:
    """List of example ids, in the order they were given."""
    return f"{category(id_)}:examples"


def example_prefix(id_: str) -> str:
    """Prefix of the keys of a category's examples, for scripts that read their ids from the store."""
    return f"{category(id_)}:example:"


def example(id_: str, example_id: str) -> str:
    """Hash: the photo's bytes, the mask as PNG, and what there is to know of them."""
    return f"{example_prefix(id_)}{example_id}"


def versions(id_: str) -> str:
    """Hash: version to the adapter's description as JSON, so that listing reads no tensors."""
    return f"{category(id_)}:versions"


def adapter_prefix(id_: str) -> str:
    """Prefix of the keys of a category's adapters, for scripts that read their versions from the store."""
    return f"{category(id_)}:adapter:"


def adapter(id_: str, version: int) -> str:
    """The adapter's safetensors."""
    return f"{adapter_prefix(id_)}{version}"


# Prefixes of the two below, for scripts that read a job's id from the store.
JOB_PREFIX = f"{PREFIX}:job:"
JOB_CHANNEL_PREFIX = f"{PREFIX}:job-events:"


def job(job_id: str) -> str:
    """Hash: the job's record. It expires `EXEMPLAR_JOB_TTL_S` after its end."""
    return f"{JOB_PREFIX}{job_id}"


def job_channel(job_id: str) -> str:
    """Channel: a message at every change of the record."""
    return f"{JOB_CHANNEL_PREFIX}{job_id}"


def ranking_images(job_id: str) -> str:
    """List of the photos that a ranking job will look at."""
    return f"{PREFIX}:ranking:{job_id}:images"


def ranking_names(job_id: str) -> str:
    """List of the category names that a ranking job asks for."""
    return f"{PREFIX}:ranking:{job_id}:names"


def layer_statistics(revision: str) -> str:
    """JSON: InfoScore's running sums for a model's weights, and the prompts they were taken with."""
    return f"{PREFIX}:layers:{revision}"


def layer_ranking(revision: str) -> str:
    """JSON: what those sums say of each layer. Requests read it: the sums of a thousand prompts are half a megabyte."""
    return f"{PREFIX}:layers:{revision}:ranking"


def idempotency(key_hash: str) -> str:
    """JSON: the body's hash and the answer that an Idempotency-Key stands for."""
    return f"{PREFIX}:idempotency:{key_hash}"
