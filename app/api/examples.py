"""Examples of requests and responses for the OpenAPI document."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

Json = dict[str, Any]


def add_examples(document: Json) -> None:
    """Add the examples in examples.json to the operations of an OpenAPI document.

    They come from calls to a running service: `python -m docs.examples` writes the file. A form is shown as a command
    in the description, since no JSON value is an example of a file.
    """
    recorded = _recorded()
    for path in document["paths"].values():
        for operation in path.values():
            examples = recorded.get(operation.get("operationId"), {"commands": [], "request": {}, "responses": {}})
            commands = "\n".join(examples["commands"])
            if commands and commands not in operation["description"]:
                operation["description"] += f"\n\n```sh\n{commands}\n```"
            if examples["request"]:
                _json_or_form(operation["requestBody"])["examples"] = examples["request"]
            for status, shown in examples["responses"].items():
                _json_or_form(operation["responses"][status])["examples"] = shown


@cache
def _recorded() -> Json:
    recorded: Json = json.loads(files("app.api").joinpath("examples.json").read_text(encoding="utf-8"))
    return recorded


def _json_or_form(part: Json) -> Json:
    """The media type that the examples are of: all but pictures."""
    media_type: Json = next(content for name, content in part["content"].items() if not name.startswith("image/"))
    return media_type
