"""Whatever the OpenAPI document allows, and much that it doesn't, is answered as the document says."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.python.asgi import shutdown_lifespans

from app.main import create_app
from app.settings import Settings


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PHOTO = png(np.random.default_rng(5).integers(0, 256, (13, 17, 3), dtype=np.uint8))
MASK = png(np.eye(13, 17, dtype=np.uint8) * 255)
# Random bytes are never an image: without these no request would get beyond the decoder.
schemathesis.openapi.media_type("application/octet-stream", st.sampled_from([PHOTO, MASK]) | st.binary(max_size=99))

CONFIG = schemathesis.Config.from_dict(
    {
        "generation": {"max-examples": 20, "deterministic": True},
        "checks": {
            # That a file is an image, a text is a mask and a name has no slash is more than a schema says.
            "positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404, 409, 413, 415, 422]},
        },
    }
)


DOCUMENT = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=CONFIG)


@pytest.fixture(scope="module")
def app(new_database, tiny, tmp_path_factory) -> Iterator[FastAPI]:
    with new_database() as database:
        folder = tmp_path_factory.mktemp("fuzz")
        yield create_app(
            Settings(redis_url=database, data_dir=folder, allow_anonymous=True, tune_steps=1), loaded=[tiny]
        )
        shutdown_lifespans()


@DOCUMENT.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_documented(case: schemathesis.Case, app: FastAPI) -> None:
    case.call_and_validate(app=app)
