"""The OpenAPI document, as generators of clients read it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parents[2]


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


def examples(document: dict) -> Iterator[tuple[str, dict, object]]:
    """(what the example is of, its schema, its value) of every example in the document."""
    for operation in operations(document):
        parts = {"request": operation.get("requestBody", {}), **operation["responses"]}
        for part, described in parts.items():
            for content in described.get("content", {}).values():
                for name, example in content.get("examples", {}).items():
                    yield f"{operation['operationId']} {part} {name}", content["schema"], example["value"]


def test_examples_are_what_the_schemas_describe(document: dict) -> None:
    for name, schema, value in examples(document):
        whole = schema | {"components": document["components"]}
        problems = [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(value)]
        assert problems == [], name


def test_the_main_operations_have_examples(document: dict) -> None:
    shown = {name.rpartition(" ")[0] for name, _, _ in examples(document)}
    assert {"teach 202", "teach 422", "segment 200", "segment 422"} <= shown
    assert {"segment_batch 200", "get_job 200", "get_job 404", "cancel_job 409", "rollback request"} <= shown
    assert {"list_jobs 200", "list_categories 200", "get_category 200", "list_examples 200"} <= shown


def test_commands_send_fields_that_forms_have(document: dict) -> None:
    shown = {
        each["operationId"]: each["description"] for each in operations(document) if "curl " in each["description"]
    }
    assert set(shown) == {"teach", "segment", "segment_batch"}
    for operation, description in shown.items():
        fields = set(re.findall(r"-F '?(\w+)=", description))
        assert fields
        assert fields <= document["components"]["schemas"][f"Body_{operation}"]["properties"].keys()
        assert all((ROOT / file).exists() for file in re.findall(r"@(\S+)", description))


def test_the_document_is_the_same_at_every_request() -> None:
    app = create_app(Settings())
    first = copy.deepcopy(app.openapi())
    assert app.openapi() == first
