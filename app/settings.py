"""Every setting of the service, defined once and read from the environment as `EXEMPLAR_<NAME>`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast, get_args

import limits
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1024 * 1024

Scope = Literal["read", "teach", "admin"]
# In ascending order: each scope includes the ones before it.
SCOPES: tuple[Scope, ...] = get_args(Scope)
_KEY = re.compile(rf"({'|'.join(SCOPES)}):([0-9a-f]{{64}})", re.IGNORECASE)

_PREFIX = "EXEMPLAR_"
# Variables of the command line and of docker-compose.yml.
_OTHERS = {"URL", "MODELS"}


class Settings(BaseSettings):
    """Settings of one process. `make docs` writes the field descriptions to docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on. 0 picks a free port.")
    root_path: str = Field(
        "",
        description="Prefix under which a proxy in front serves it, such as `/exemplar`, if the proxy takes it off: "
        "addresses in answers and on `/docs` then begin with it.",
    )
    data_dir: Path = Field(
        Path("var"),
        description="Folder of the embedded Valkey server: socket, lock and append-only file. Not used when "
        "`EXEMPLAR_REDIS_URL` is set.",
    )
    redis_url: str | None = Field(
        None,
        description="Address of a Redis or Valkey server (`redis://`, `rediss://` for TLS, `unix://`). Empty: the "
        "service starts its embedded Valkey server. Redis Cluster is not supported.",
    )
    log: Literal["text", "json"] = Field("text", description="Format of the log lines.")

    backbone: str = Field(
        "embedded",
        description="Models to load, comma-separated. Each is `embedded` or `family:source`, where the source is a "
        "transformers model id or a local folder, such as `blip:Salesforce/blip-itm-large-coco`. The first one is the "
        "default: categories are tuned on it. Requests choose another with the field `backbone`.",
    )
    backbone_memory_bytes: int = Field(
        0,
        ge=0,
        description="Memory limit for the weights of all models. Above it the least recently used model is unloaded, "
        "and loaded again on the next request for it. The default model is never unloaded. 0 = no limit.",
    )
    device: str = Field(
        "auto", description="Device of the models: `auto` (CUDA if available), `cpu`, `cuda`, `cuda:1`, …"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format of the network. `auto` is bfloat16 where the device multiplies matrices of it in "
        "hardware (CUDA, AMX or AVX-512 BF16), else float32.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Threads that compute: all of them for a request that is alone; on a CPU one for each of as many "
        "requests at a time. 0 = one per core that the process may use, by its CPU set or a container's CPU limit.",
    )

    method: Literal["tuned", "paper"] = Field(
        "tuned",
        description="`tuned` = the configuration with the best measured quality; `paper` = the paper's configuration "
        "(no mask decoder, full-rank adapters, 20 CRF iterations).",
    )
    tiles: bool = Field(
        False,
        description="Also segment four overlapping tiles of each photo, and average their score maps with that of the "
        "whole photo. Small objects are larger in a tile. Five images are encoded instead of one.",
    )
    min_presence: float = Field(
        0.25,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Least probability that a category is in the photo for it to get a mask, for requests that send no "
        "`min_presence`. Models without calibrated presence ignore it.",
    )
    layers: str = Field(
        "",
        description="Layers whose attention is read, such as `0,3`. Empty: the layers chosen by InfoScore after "
        "`POST /layers/rank`, else the model's default layers.",
    )
    tune_steps: int = Field(0, ge=0, description="Optimiser steps of one tuning job. 0 = the method's own number.")
    background: str = Field(
        "", description="Background words, comma-separated, for requests that send none. Empty = the method's own list."
    )

    worker: bool = Field(
        True,
        description="Run jobs in this process. Set to `false` if separate `python -m app worker` processes run them.",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port on which `python -m app worker` serves `/metrics`. 0 = no metrics port."
    )
    metrics_categories: int = Field(
        0,
        ge=0,
        le=1000,
        description="Number of categories with a metric label of their own; all others share the label `other`. 0 = no "
        "category label. Category names are then visible at `/metrics`.",
    )
    job_concurrency: int = Field(2, ge=1, le=64, description="Jobs that one process runs at the same time.")
    job_redelivery_s: float = Field(
        30.0, ge=1.0, description="Seconds after which another worker takes over the job of a worker that died."
    )
    job_ttl_s: float = Field(7 * 86400.0, ge=60.0, description="Seconds for which the record of an ended job is kept.")
    queue_limit: int = Field(
        64, ge=1, description="Requests that may wait for one model. Further requests are answered with 503."
    )
    photo_memory_bytes: int = Field(
        1024 * MEBIBYTE,
        ge=1,
        description="Memory limit for the photos and masks of all current requests: the file, and for each "
        "pixel 11 to 19 bytes while it is decoded, by its format, and 3 afterwards (1 of a mask); for each character "
        "of run lengths or polygons 41 bytes while they are read, and 1 afterwards. Above it requests are answered "
        "with 503 before their photo is decoded. A single request may always be served.",
    )
    upload_space_bytes: int = Field(
        768 * MEBIBYTE,
        ge=1,
        description="Limit for the bodies of all current requests. Files of more than 1 MiB in a form are in the "
        "folder for temporary files (`/tmp`) until the request ends. A request that finds no space is answered with "
        "503, and the rest of its body is discarded. A request that is alone is always read.",
    )
    versions_kept: int = Field(5, ge=1, description="Adapter versions kept per category.")
    adapter_cache_bytes: int = Field(512 * MEBIBYTE, ge=0, description="Size of the in-memory cache of adapters.")
    image_cache_bytes: int = Field(
        64 * MEBIBYTE,
        ge=0,
        description="Size of the in-memory cache of encoded photos. A repeated photo is not encoded again.",
    )

    max_upload_bytes: int = Field(
        20 * MEBIBYTE,
        ge=1,
        description="Size limit of one file. A request may have twice as much plus 1 MiB in all, a request with "
        "several photos eight times as much plus 1 MiB.",
    )
    max_image_pixels: int = Field(40_000_000, ge=1, description="Size limit of one photo or mask, width × height.")
    max_categories: int = Field(1000, ge=1, le=10_000, description="Maximum number of categories in one request.")
    max_batch_images: int = Field(64, ge=1, le=1000, description="Maximum number of photos in one request.")
    max_examples: int = Field(64, ge=1, description="Maximum number of examples (shots) of one category.")
    max_prompts: int = Field(
        32,
        ge=1,
        le=128,
        description="Maximum number of other words (`prompts`) for one category, each a prompt of its own.",
    )

    api_keys: str = Field(
        "",
        description="API keys, comma-separated, each as `scope:SHA-256 of the key` with the scope `read`, `teach` or "
        "`admin`. `python -m app key` makes one. Empty: no keys, and only loopback callers are answered.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Without keys, also answer callers on other machines, except other sites' pages in a browser. Has "
        "no effect if keys are set.",
    )

    rate_limit: str = Field(
        "",
        description="Most requests of each API key, or of each address where the service has no keys, such as "
        "`100/minute` or `10/second`, counted for all replicas together; more are answered with 429. Empty: no limit.",
    )

    label_studio_url: str = Field(
        "",
        description="Address of the Label Studio whose photos are read, such as `http://label-studio:8080`. Empty: "
        "only photos in data URLs are.",
    )
    label_studio_token: str = Field(
        "",
        repr=False,
        description="Access token for the photos of Label Studio, a legacy or a personal one. Empty: the token that "
        "Label Studio sends when it connects, until Label Studio refuses it or the service restarts.",
    )
    label_studio_hosts: str = Field(
        "",
        description="Other hosts that photos of tasks are fetched from, comma-separated, each with its port unless it "
        "is the usual one, such as `bucket.s3.amazonaws.com`.",
    )

    @field_validator("root_path")
    @classmethod
    def _root_path_is_one(cls, value: str) -> str:
        if not re.fullmatch(r"(/[\w.~-]+)*", value, re.ASCII):
            raise ValueError("expected a path without a slash at its end, such as /exemplar")
        return value

    @field_validator("label_studio_url")
    @classmethod
    def _label_studio_is_at_a_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", value):
            raise ValueError("expected an address such as http://label-studio:8080")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _rate_limit_is_one(cls, value: str) -> str:
        try:
            if value:
                limits.parse(value)
        except ValueError as error:
            raise ValueError("expected a number of requests and a period, such as 100/minute") from error
        return value

    @field_validator("layers")
    @classmethod
    def _layers_are_numbers(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",")] if value else []
        if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
            raise ValueError("expected different layer numbers separated by commas, such as 0,3")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_are_hashes_with_scopes(cls, value: str) -> str:
        # The message omits the value, which may be a key that was set by mistake instead of its hash.
        if not all(_KEY.fullmatch(part) for part in _parts(value)):
            raise PydanticCustomError(
                "api_keys",
                "expected scope:SHA-256, such as teach:5e88…, several separated by commas; see `python -m app key`",
            )
        return value

    @field_validator("job_redelivery_s", "job_ttl_s")
    @classmethod
    def _is_finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("expected a finite number of seconds")
        return value

    @property
    def key_scopes(self) -> dict[str, Scope]:
        """The scope of each API key, by its hash."""
        pairs = (part.lower().split(":") for part in _parts(self.api_keys))
        return {digest: cast("Scope", scope) for scope, digest in pairs}

    @property
    def label_studio_photo_hosts(self) -> tuple[str, ...]:
        """Other hosts that photos of tasks are fetched from."""
        return _parts(self.label_studio_hosts)

    @property
    def backbone_specs(self) -> tuple[str, ...]:
        """The backbones to load, the default first."""
        return _parts(self.backbone)

    @property
    def layer_numbers(self) -> tuple[int, ...] | None:
        """The layers set by hand, or None."""
        return tuple(int(part) for part in self.layers.split(",")) if self.layers else None

    @property
    def background_words(self) -> tuple[str, ...] | None:
        """The background words set by hand, or None."""
        return _parts(self.background) or None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Sentences that name the variables which look like settings and are none.

    They are no errors: while an update rolls out, an older release may get the settings of a newer one.
    """
    settings = {name.upper() for name in Settings.model_fields}
    variables = {name.upper() for name, value in environment.items() if value}
    given = {name.removeprefix(_PREFIX) for name in variables if name.startswith(_PREFIX)}
    others = _OTHERS
    if "API_KEYS" in given:
        others = others | {"API_KEY"}  # the key that the command line and the client send; alone it may be a slip
    return [_is_no_setting(name, settings) for name in sorted(given - settings - others)]


def _is_no_setting(name: str, settings: set[str]) -> str:
    nearest = difflib.get_close_matches(name, sorted(settings), n=1)
    meant = "".join(f": is {_PREFIX}{setting} meant?" for setting in nearest)
    return f"{_PREFIX}{name} is no setting and has no effect{meant or '.'}"


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
