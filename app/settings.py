"""Every setting of the service, defined once. Read from the environment as `EXEMPLAR_<NAME>`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1024 * 1024

Scope = Literal["read", "teach", "admin"]
# Each may do what those before it may.
SCOPES: tuple[Scope, ...] = get_args(Scope)
_KEY = re.compile(rf"({'|'.join(SCOPES)}):([0-9a-f]{{64}})", re.IGNORECASE)


class Settings(BaseSettings):
    """Settings of one process. A field's description is its row in the README's table."""

    model_config = SettingsConfigDict(env_prefix="EXEMPLAR_", env_ignore_empty=True, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    data_dir: Path = Field(
        Path("var"), description="Folder of the embedded server: its socket, lock and append-only file."
    )
    redis_url: str | None = Field(
        None, description="Redis or Valkey to use instead of the embedded one (`redis://`, `rediss://`, `unix://`)."
    )
    log: Literal["text", "json"] = Field("text", description="Form of the log lines.")

    backbone: str = Field(
        "embedded",
        description="Models to load, comma-separated, the first is the default: `embedded`, or family and "
        "transformers id or folder, such as `blip:Salesforce/blip-itm-large-coco`.",
    )
    backbone_memory_bytes: int = Field(
        0,
        ge=0,
        description="Memory for all models' weights: beyond it the one not used for longest, never the default, is "
        "dropped until it is asked for. 0 = no limit.",
    )
    device: str = Field("auto", description="`auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1`, …")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format of the network; `auto` is bfloat16 where it makes products 1.5 times as fast.",
    )
    threads: int = Field(0, ge=0, description="Threads of one tensor operation; 0 = one per core.")

    method: Literal["tuned", "paper"] = Field(
        "tuned", description="`tuned` = what measured best; `paper` = the paper's own choices."
    )
    tiles: bool = Field(
        False, description="Look at four overlapping parts of each photo too: small things are larger there; slower."
    )
    layers: str = Field("", description="Layers to read, such as `0,3`; empty = InfoScore if ranked, else the default.")
    tune_steps: int = Field(0, ge=0, description="Optimiser steps of one tuning job; 0 = as many as the method says.")
    background: str = Field("", description="Background words, comma-separated; empty = the method's own list.")

    worker: bool = Field(True, description="Run jobs inside this process; off where `python -m app worker` runs.")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port where `python -m app worker` serves `/metrics`; 0 = nowhere."
    )
    metrics_categories: int = Field(
        0, ge=0, le=1000, description="Most categories told apart in metrics, the others are `other`; 0 = none is."
    )
    job_concurrency: int = Field(2, ge=1, le=64, description="Jobs that one process runs at a time.")
    job_redelivery_s: float = Field(30.0, ge=1.0, description="Seconds after which a dead worker's job is taken over.")
    job_ttl_s: float = Field(7 * 86400.0, ge=60.0, description="Seconds that an ended job can be read.")
    queue_limit: int = Field(64, ge=1, description="Requests that may wait for a model; one more is answered 503.")
    versions_kept: int = Field(5, ge=1, description="Adapter versions kept per category.")
    adapter_cache_bytes: int = Field(512 * MEBIBYTE, ge=0, description="Memory for loaded adapters.")
    image_cache_bytes: int = Field(
        64 * MEBIBYTE, ge=0, description="Memory for encoded photos, so that one asked again is quick."
    )

    max_upload_bytes: int = Field(20 * MEBIBYTE, ge=1, description="Largest file in a request.")
    max_image_pixels: int = Field(40_000_000, ge=1, description="Largest photo, in pixels.")
    max_categories: int = Field(1000, ge=1, le=10_000, description="Most categories in one request.")
    max_batch_images: int = Field(64, ge=1, le=1000, description="Most photos in one request.")
    max_examples: int = Field(64, ge=1, description="Most examples (shots) of one category.")

    api_keys: str = Field(
        "",
        description="Keys that may call, comma-separated: `read`, `teach` or `admin`, a colon, and the key's SHA-256. "
        "`python -m app key` makes one. Empty = no keys, and only this machine may call.",
    )
    allow_anonymous: bool = Field(False, description="Without keys: answer other machines too, not only this one.")

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
        # The value itself is not told: it may be a key that was put here instead of its hash.
        if not all(_KEY.fullmatch(part) for part in _parts(value)):
            raise PydanticCustomError(
                "api_keys", "expected scope:SHA-256, such as teach:5e88…, several separated by commas; see `app key`"
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


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
