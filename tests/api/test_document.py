"""The OpenAPI document, as generators of clients read it."""

from __future__ import annotations

import pytest

from app.main import create_app
from app.settings import Settings


@pytest.fixture(scope="module")
def document() -> dict:
    return create_app(Settings()).openapi()


def operations(document: dict) -> list[dict]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_generated_functions_have_the_names_of_the_operations(document: dict) -> None:
    names = [operation["operationId"] for operation in operations(document)]
    assert len(set(names)) == len(names)
    assert {"teach", "segment", "segment_batch", "list_categories", "get_job", "follow_job"} <= set(names)


def test_every_tag_is_described(document: dict) -> None:
    used = {tag for operation in operations(document) for tag in operation["tags"]}
    assert used == {tag["name"] for tag in document["tags"] if tag["description"]}


@pytest.mark.parametrize(
    ("form", "field"), [("teach", "image"), ("teach", "mask"), ("segment", "image"), ("segment_batch", "images")]
)
def test_files_are_files_to_generators_that_know_openapi_3_0_only(document: dict, form: str, field: str) -> None:
    schema = document["components"]["schemas"][f"Body_{form}"]["properties"][field]
    assert schema.get("items", schema)["format"] == "binary"
