"""Write app/api/examples.json, the examples of the OpenAPI document, from calls to a service with the embedded model.

Run it with `python -m docs.examples` after a change of requests or responses. tests/api/test_document.py validates
every example against its schema.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from app.demo import EXAMPLES, running_service

FILE = Path(__file__).parents[1] / "app" / "api" / "examples.json"
FILES = ("image", "mask", "images")  # fields of forms

Json = dict[str, Any]


class Calls:
    """Calls of a service, each recorded as an example."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=120)
        self.examples: dict[str, Json] = {}

    def record(
        self, operation: str, shows: str, method: str, path: str, *, form: Json | None = None, body: Any = None
    ) -> Any:
        """Call the service, keep the response and a request that succeeded as examples, and return the response."""
        answer = self._send(method, path, form=form, body=body)
        lines = answer.text.strip().splitlines()
        value = json.loads(lines[0]) if "ndjson" in answer.headers["content-type"] else answer.json()
        name = re.sub(r"\W+", "-", shows.lower()).strip("-")
        entry = self.examples.setdefault(operation, {"commands": [], "request": {}, "responses": {}})
        if form and answer.is_success:
            entry["commands"].append(f"# {shows}\n{_curl(form, path)}")
        elif body and answer.is_success:
            entry["request"][name] = {"summary": shows, "value": body}
        entry["responses"].setdefault(str(answer.status_code), {})[name] = {"summary": shows, "value": value}
        return value

    def finished(self, job: Json) -> None:
        """Wait for the end of a job."""
        while self.http.get(f"/jobs/{job['id']}").json()["status"] in ("queued", "running"):
            time.sleep(0.1)

    def _send(self, method: str, path: str, *, form: Json | None, body: Any) -> httpx2.Response:
        if form is None:
            return self.http.request(method, path, json=body)
        with ExitStack() as stack:
            files = [
                (field, (name, stack.enter_context((EXAMPLES / name).open("rb"))))
                for field in FILES
                for name in _listed(form.get(field, []))
            ]
            fields = {field: value for field, value in form.items() if field not in FILES}
            return self.http.request(method, path, files=files, data=fields)


def examples(url: str) -> Iterator[tuple[str, Json]]:
    """The examples of each operation, by its name."""
    calls = Calls(url)
    kitten = {"image": "kitten.jpg", "mask": "kitten_mask.png"}
    taught = calls.record("teach", "An example with a mask image", "POST", "/categories/cat/example", form=kitten)
    calls.finished(taught["job"])
    calls.record("get_category", "A category with an adapter", "GET", "/categories/cat")
    box = {"image": "coffee.jpg", "box": "[173, 18, 236, 293]", "prompts": ["mug", "teacup"]}
    calls.finished(calls.record("teach", "A box", "POST", "/categories/cup/example", form=box)["job"])
    dog = {"image": "dog.jpg", "absent": True}
    taught = calls.record("teach", "A photo without the category", "POST", "/categories/cat/example", form=dog)
    calls.finished(taught["job"])
    both = dog | {"mask": "dog_mask.png"}
    calls.record("teach", "A mask although the category is absent", "POST", "/categories/cat/example", form=both)
    other = {"image": "chelsea.jpg", "mask": "dog_mask.png"}
    calls.record("teach", "A mask of another photo", "POST", "/categories/cat/example", form=other)

    calls.record("get_job", "A job that has ended", "GET", f"/jobs/{taught['job']['id']}")
    calls.record("get_job", "No such job", "GET", "/jobs/8c1f")
    calls.record("list_jobs", "The latest job", "GET", "/jobs?category=cat&limit=1")
    calls.record("cancel_job", "A job that has ended", "DELETE", f"/jobs/{taught['job']['id']}")
    calls.record("list_categories", "Two categories", "GET", "/categories")
    calls.record("get_category", "No such category", "GET", "/categories/unicorn")
    calls.record("list_versions", "The adapter in use and the one before", "GET", "/categories/cat/versions?limit=2")
    calls.record("list_examples", "Two examples", "GET", "/categories/cat/examples?limit=2")
    calls.record("rollback", "The first adapter again", "POST", "/categories/cat/rollback", body={"version": 1})

    form: Json = {"image": "chelsea.jpg", "categories": ["cat", "sofa"]}
    calls.record("segment", "Run lengths of a taught and a merely named category", "POST", "/segment", form=form)
    calls.record("segment", "No such model", "POST", "/segment", form=form | {"backbone": "blip"})
    calls.record("segment", "A probability above 1", "POST", "/segment", form=form | {"threshold": 1.5})
    calls.record("segment", "A file that is no photo", "POST", "/segment", form={"image": "README.md"})
    batch = {"images": ["chelsea.jpg"], "categories": ["cat"]}
    calls.record("segment_batch", "One of the lines", "POST", "/segment/batch", form=batch)
    calls.record("list_layers", "The layers of the embedded model", "GET", "/layers")
    yield from sorted(calls.examples.items())


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _curl(form: Json, path: str) -> str:
    """The command that sends a form, to be run in the root of the repository."""
    texts = {"absent": "true"}
    fields = [
        shlex.quote(f"{field}=@examples/{value}" if field in FILES else f"{field}={texts.get(field, value)}")
        for field, values in form.items()
        for value in _listed(values)
    ]
    return f"curl {' '.join(f'-F {field}' for field in fields)} http://127.0.0.1:8000{path}"


def main() -> None:
    """Write the file."""
    with running_service(Console(quiet=True)) as service:
        written = json.dumps(dict(examples(service.url)), indent=1, ensure_ascii=False)
    FILE.write_text(written + "\n", encoding="utf-8")
    print(f"{FILE.name}: {len(written)} characters")


if __name__ == "__main__":
    main()
