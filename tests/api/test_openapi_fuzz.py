"""Random requests, valid and invalid by the OpenAPI document, get responses that match it."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, settings
from PIL import Image
from schemathesis.schemas import BaseSchema

from app.main import create_app
from app.method.backbone import Backbone
from app.settings import Settings
from tests.conftest import NewDatabase
from tests.served import served


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PHOTO = png(np.random.default_rng(5).integers(0, 256, (13, 17, 3), dtype=np.uint8))
MASK = png(np.eye(13, 17, dtype=np.uint8) * 255)


def document(mode: str) -> BaseSchema:
    """The OpenAPI document as a source of requests that are valid by it ("positive"), or of all kinds ("all")."""
    config = schemathesis.Config.from_dict(
        {
            "generation": {"mode": mode, "max-examples": 15, "deterministic": True},
            "checks": {
                # No schema says that a file is an image, a text is a mask, a name has no slash, an ETag is today's.
                "positive_data_acceptance": {"expected-statuses": ["2xx", 304, 400, 404, 409, 412, 413, 415, 422]},
            },
        }
    )
    return schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=config)


ANYTHING, VALID = document("all"), document("positive")


class Running:
    """The application at this address with one category, taught anew, and the ids of what there is."""

    def __init__(self, url: str) -> None:
        self.url = url
        files = {"image": PHOTO, "mask": MASK}
        taught = httpx2.post(f"{url}/categories/cat/example", files=files, data={"mode": "replace"})
        self.job_id = taught.json()["job"]["id"]
        (example,) = httpx2.get(f"{url}/categories/cat/examples").json()
        self.example_id = example["id"]

    def fill_in(self, case: schemathesis.Case) -> None:
        """Fills in values that a schema cannot describe: image files, exactly one form of mask, existing ids."""
        if "name" in case.path_parameters:
            case.path_parameters["name"] = "cat"
        if "id" in case.path_parameters:
            case.path_parameters["id"] = self.example_id if "name" in case.path_parameters else self.job_id
        if isinstance(case.body, dict):
            case.body.update({"image": PHOTO} if "image" in case.body else {})
            case.body.update({"images": [PHOTO]} if "images" in case.body else {})
            case.body.update({"backbone": "tiny"} if "backbone" in case.body else {})
            case.body.update({"points": "[[3, 5, 1], [8, 2, 0]]"} if "points" in case.body else {})
            for field in {"categories", "background", "prompts"} & case.body.keys():
                if not isinstance(case.body[field], list):
                    continue  # a field that this call does not have, of any value
                case.body[field] = [f"{field} {n}" for n in range(len(case.body[field]))]
        if case.operation.path.endswith("/example"):
            for other in ("segmentation", "box"):
                case.body.pop(other, None)
            case.body["mask"] = MASK


@pytest.fixture(scope="module")
def url(new_database: NewDatabase, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Over a socket: schemathesis ends an application that it is given after each test.
    with new_database() as database:
        folder = tmp_path_factory.mktemp("data")
        settings = Settings(redis_url=database, data_dir=folder, allow_anonymous=True, tune_steps=1)
        with served(create_app(settings, loaded=[tiny])) as address:
            while httpx2.get(f"{address}/readyz").status_code == 503:
                time.sleep(0.01)
            yield address


@pytest.fixture
def running(url: str) -> Running:
    return Running(url)


def _numbers_for_texts(case: schemathesis.Case) -> bool:
    """True if a form has numbers where texts are expected: in a form, every number is a text."""
    fields = case.body if isinstance(case.body, dict) else {}
    lists = [fields[name] for name in ("categories", "background", "prompts") if isinstance(fields.get(name), list)]
    return any(isinstance(value, (int, float)) for values in lists for value in values)


@ANYTHING.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_documented(case: schemathesis.Case, running: Running) -> None:
    assume(not _numbers_for_texts(case))
    case.call_and_validate(base_url=running.url)


@VALID.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_so_is_every_answer_to_a_request_that_makes_sense(case: schemathesis.Case, running: Running) -> None:
    running.fill_in(case)
    case.call_and_validate(base_url=running.url)
