"""Requests as people and other services' clients send them: understood, or refused with the right form in the message.

One situation a line. Nothing that was sent is ignored without a word.
"""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.conftest import Api, noise, png
from tests.images.cases import heic_of, turned

PHOTO, MASK = Api.photo, Api.mask


@pytest.fixture(scope="module")
def shared(new_database, start_on) -> Iterator[Api]:
    """The application with the categories cat and "salt, pepper"."""
    with new_database() as database, start_on(database) as api:
        api.taught("cat")
        api.taught("salt, pepper", photo=Api.other_photo)
        yield api


def names(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [found["name"] for found in answer.json()["categories"]]


def refusal(answer: Any, status: int, *words: str) -> str:
    """The sentence of a refusal, which has these words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    detail: str = answer.json()["detail"]
    for word in words:
        assert word in detail
    return detail


class TestLists:
    """`categories`, `background` and `prompts` as lists of every kind."""

    @pytest.mark.parametrize(
        ("sent", "understood"),
        [
            (["cat", "dog"], ["cat", "dog"]),
            (["cat,dog"], ["cat", "dog"]),
            (["cat, dog , cow"], ["cat", "dog", "cow"]),
            (["cat,dog", "cow"], ["cat", "dog", "cow"]),
            (['["cat", "dog"]'], ["cat", "dog"]),
            ([' ["cat"]'], ["cat"]),
            (['["cat"]', '["dog"]', "cow"], ["cat", "dog", "cow"]),
            (["cat,Cat"], ["cat"]),
            (['["salt, pepper"]'], ["salt, pepper"]),  # a name with a comma of its own
            (['["a,b", "cat"]'], ["a,b", "cat"]),
            (["[]"], ["cat", "salt, pepper"]),  # as if it were not sent
            ([""], ["cat", "salt, pepper"]),  # curl -F categories=, and the unused field of a form
            (["traffic light"], ["traffic light"]),
        ],
        ids=str,
    )
    def test_that_are_understood(self, shared: Api, sent: list[str], understood: list[str]) -> None:
        assert names(shared.segment(*sent)) == understood

    @pytest.mark.parametrize(
        "sent",
        ["[cat, dog]", "['cat', 'dog']", '["cat", 1]', '[["cat"]]', '{"cat": 1}', '"cat","dog"', '"cat"', '["cat"',
         "[" * 9000],
        ids=lambda text: text[:12],
    )  # fmt: skip
    @pytest.mark.parametrize("field", ["categories", "background"])
    def test_json_that_is_no_list_of_texts(self, shared: Api, field: str, sent: str) -> None:
        detail = refusal(shared.segment(**{field: sent}), 422, field, 'a,b or ["a", "b"]')
        assert len(detail) < 200

    @pytest.mark.parametrize("sent", ["cat,", ",", "cat,,dog", '["cat", ""]', '["cat", "\\ud800"]'])
    def test_with_a_name_that_is_none(self, shared: Api, sent: str) -> None:
        refusal(shared.segment(sent), 422, "A name")

    def test_too_long_ones(self, shared: Api) -> None:
        refusal(shared.segment(",".join("c" * 1001)), 422, "1001 categories", "MAX_CATEGORIES")

    def test_of_other_words(self, shared: Api) -> None:
        for sent in ("kitten,tom", '["kitten", "tom"]', ["kitten", "tom"]):
            name = f"words {len(sent)}"
            shared.teach(name, prompts=sent)
            assert shared.category(name)["prompts"] == [name, "kitten", "tom"]
            shared.http.delete(f"/categories/{name}")
        assert shared.teach("no words", prompts="").json()["category"]["prompts"] == ["no words"]
        shared.http.delete("/categories/no%20words")

    def test_of_the_background(self, shared: Api) -> None:
        one_by_one, by_comma, by_json = (
            shared.segment("cat", background=sent).json()["categories"]
            for sent in (["sofa", "rug"], "sofa,rug", '["sofa", "rug"]')
        )
        assert one_by_one == by_comma == by_json

    def test_of_names_to_rank_with(self, shared: Api) -> None:
        answer = shared.http.post("/layers/rank", files={"images": PHOTO}, data={"categories": "[cat]"})
        refusal(answer, 422, "list of texts")


class TestUnknown:
    """Fields and parameters that a call does not have."""

    @pytest.mark.parametrize(
        ("path", "data", "words"),
        [
            ("/segment", {"categories[]": "cat"}, ["send categories once for each value"]),
            ("/segment", {"categories[0]": "cat"}, ["send categories once for each value"]),
            ("/segment", {"output[]": "rle"}, ["send output once."]),
            ("/segment", {"catgories": "cat"}, ["no field 'catgories'", "did you mean categories?"]),
            ("/segment", {"Categories": "cat"}, ["did you mean categories?"]),
            ("/segment", {"minPresence": "0"}, ["did you mean min_presence?"]),
            ("/segment", {"zebra": "1"}, ["no field 'zebra'", "It has", "image", "categories", "threshold"]),
            ("/segment", {"overlay": "true"}, ["send it in the query (overlay=…)"]),
            ("/segment", {"x" * 1000: "1"}, ["no field"]),
            ("/segment?categories=cat", {}, ["categories is not a query parameter", "curl: -F categories=…"]),
            ("/segment?overlays=true", {}, ["no query parameter 'overlays'", "did you mean overlay?"]),
            ("/segment?overlay=false&overlay=true", {}, ["overlay was sent 2 times"]),
            ("/categories/dog/example", {"prompt": "hound"}, ["did you mean prompts?"]),
            ("/categories/dog/example", {"name": "hound"}, ["no field 'name'"]),
            ("/categories/dog/example?mode=replace", {}, ["mode is not a query parameter", "-F mode=…"]),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_is_refused_by_name(self, shared: Api, path: str, data: dict[str, str], words: list[str]) -> None:
        files = {"image": PHOTO, **({"mask": MASK} if "example" in path else {})}
        answer = shared.http.post(path, files=files, data=data)
        assert len(refusal(answer, 422, *words)) < 400
        assert answer.json()["errors"][0]["field"]
        assert "dog" not in [category["name"] for category in shared.http.get("/categories").json()]

    def test_file_of_another_name(self, shared: Api) -> None:
        refusal(shared.http.post("/segment", files={"file": PHOTO}), 422, "no field 'file'", "It has", "image")
        refusal(shared.http.post("/segment/batch", files={"image": PHOTO}), 422, "did you mean images?")
        refusal(shared.http.post("/layers/rank", files={"image": PHOTO}), 422, "did you mean images?")

    def test_query_of_any_call(self, shared: Api) -> None:
        (example,) = shared.http.get("/categories/cat/examples").json()
        ids = {"{name}": "cat", "/examples/{id}": f"/examples/{example['id']}", "{id}": shared.category()["job"]}
        for template, operations in shared.http.get("/openapi.json").json()["paths"].items():
            path = template
            for placeholder, value in ids.items():
                path = path.replace(placeholder, value)
            for method in operations:
                refusal(shared.http.request(method, f"{path}?zebra=1"), 422, "query parameter 'zebra'")

    def test_parameter_sent_twice(self, shared: Api) -> None:
        refusal(shared.http.get("/jobs?category=cat&category=dog"), 422, "category was sent 2 times")

    def test_query_of_the_page_is_its_own(self, shared: Api) -> None:
        assert shared.http.get("/?lang=en").status_code == 200


class TestBodies:
    """Bodies that are no form."""

    @pytest.mark.parametrize("path", ["/segment", "/segment/batch", "/categories/cat/example", "/layers/rank"])
    @pytest.mark.parametrize(
        "sent",
        [
            {"content": PHOTO, "headers": {"Content-Type": "image/jpeg"}},
            {"content": PHOTO, "headers": {"Content-Type": "application/octet-stream"}},
            {"content": PHOTO, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},  # curl --data-binary
            {"content": PHOTO},
            {"content": [PHOTO]},  # in pieces, without a length
            {"json": {"image": b64encode(PHOTO).decode(), "categories": ["cat"]}},
        ],
        ids=["raw", "bytes", "curl --data-binary", "no type", "pieces", "base64"],
    )
    def test_the_right_form_is_told(self, shared: Api, path: str, sent: dict[str, Any]) -> None:
        field = "image" if path in ("/segment", "/categories/cat/example") else "images"
        detail = refusal(shared.http.post(path, **sent), 415, f"-F {field}=@photo.jpg", f"{shared.http.base_url}{path}")
        assert "multipart/form-data" in detail
        assert ("-F mask=@mask.png" in detail) == ("example" in path)

    def test_compressed_ones(self, shared: Api) -> None:
        request = shared.http.build_request("POST", "/segment", files={"image": PHOTO})
        headers = {"Content-Type": request.headers["content-type"], "Content-Encoding": "gzip"}
        for body in (gzip.compress(request.read()), [b"some", b"pieces"]):
            refusal(
                shared.http.post("/segment", content=body, headers=headers), 415, "Content-Encoding: gzip", "as it is"
            )
        plain = {**headers, "Content-Encoding": "identity"}
        assert shared.http.post("/segment", content=request.read(), headers=plain).status_code == 200


class TestPhones:
    """Photos as phones keep them."""

    @pytest.mark.parametrize("file_format", ["HEIC", "AVIF"])
    def test_are_taught_and_segmented_upright(self, start: Any, file_format: str) -> None:
        pixels = noise(40, 60)
        raw = heic_of(pixels, 6) if file_format == "HEIC" else png(pixels, "AVIF", exif=turned(6))
        with start() as api:
            api.taught("cat", photo=raw, box="[5, 10, 20, 30]")
            (example,) = api.http.get("/categories/cat/examples").json()
            assert (example["height"], example["width"], example["area"]) == (60, 40, 600)
            stored = api.http.get(f"/categories/cat/examples/{example['id']}/image")
            assert (stored.content, stored.headers["content-type"]) == (raw, f"image/{file_format.lower()}")
            image = api.segment("cat", photo=raw).json()["image"]
            assert (image["height"], image["width"]) == (60, 40)


class TestLoad:
    """Photos of several requests at once, where there is memory for one."""

    @pytest.fixture
    def full(self, start: Any) -> Iterator[Api]:
        with start(photo_memory_bytes=1) as api:
            api.taught("cat")
            yield api

    def test_of_one_at_a_time(self, full: Api) -> None:
        for _ in range(3):
            assert full.segment("cat").status_code == 200

    def test_that_is_too_much_is_refused_until_there_is_room(self, full: Api) -> None:
        with full.http.app_state["service"].photos.memory.request() as take:
            take(1)
            for answer in (full.segment("cat"), full.teach("dog")):
                refusal(answer, 503, "EXEMPLAR_PHOTO_MEMORY_BYTES", "try again in a second")
                assert answer.headers["retry-after"] == "1"
            assert 'reason="photo_memory_full"' in full.http.get("/metrics").text
        assert full.segment("cat").status_code == 200
        assert full.teach("dog").status_code == 202

    def test_a_batch_waits_for_its_turn(self, full: Api) -> None:
        files = [("images", full.photo_number(number)) for number in range(4)]
        answer = full.http.post("/segment/batch", files=files, data={"categories": "cat"})
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert sorted(line["index"] for line in lines) == [0, 1, 2, 3]
        assert all("categories" in line for line in lines)


class TestPaths:
    @pytest.mark.parametrize(
        ("sent", "meant"),
        [("/segment/", "/segment"), ("//segment", "/segment"), ("/categories/", "/categories"), ("/docs/", "/docs"),
         ("/categories/big cat/", "/categories/big cat"), ("/healthz//", "/healthz")],
    )  # fmt: skip
    def test_with_a_slash_too_many(self, shared: Api, sent: str, meant: str) -> None:
        url = f"{str(shared.http.base_url).rstrip('/')}{sent}"
        for method in ("GET", "POST"):
            refusal(shared.http.request(method, url), 404, f"nothing at {sent}: call {meant}, without the extra slash")

    def test_that_lead_nowhere_get_no_such_hint(self, shared: Api) -> None:
        assert "slash" not in refusal(shared.http.get("/nowhere/"), 404, "/docs")

    def test_below_the_documentation_by_a_client_whose_address_is_that_of_the_documentation(self, shared: Api) -> None:
        refusal(shared.http.get("/docs/categories"), 404, "the service's address ends before /docs")


class TestHead:
    def test_is_get_without_the_body(self, shared: Api) -> None:
        for path in ("/healthz", "/readyz", "/categories", "/categories/cat", "/categories/cat/adapter", "/", "/docs"):
            got, head = shared.http.get(path), shared.http.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == got.headers["content-type"]
            assert head.headers["content-length"] == got.headers["content-length"]

    def test_of_what_is_not_there(self, shared: Api) -> None:
        for path, status in (("/nowhere", 404), ("/categories/nobody", 404), ("/segment", 405), ("/jobs?zebra=1", 422)):
            head = shared.http.head(path)
            assert (head.status_code, head.content) == (status, b"")

    def test_of_events_does_not_wait_for_the_job(self, start: Any) -> None:
        with start(worker=False) as api:
            job = api.teach("cat").json()["job"]["id"]
            head = api.http.head(f"/jobs/{job}/events")
            assert (head.status_code, head.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
            assert api.job(job)["status"] == "queued"

    def test_is_counted_by_its_route(self, shared: Api) -> None:
        shared.http.head("/categories/cat/versions")
        labels = 'method="HEAD",route="/categories/{name}/versions",status="200"'
        assert f"exemplar_requests_total{{{labels}}} 1.0" in shared.http.get("/metrics").text

    def test_a_fault_is_told(self, api: Api) -> None:
        @api.http.app.get("/bug")  # type: ignore[attr-defined]
        async def bug() -> None:
            raise KeyError("secret")

        assert api.http.head("/bug").status_code == 500


def marked(rows: slice, columns: slice, *, inverted: bool = False) -> bytes:
    """A mask file of the photo's size with a rectangle, or with all but the rectangle."""
    mask = np.zeros(Api.hw, dtype=bool)
    mask[rows, columns] = True
    return png((mask ^ inverted).astype(np.uint8) * 255)


class TestWarnings:
    """Examples that are taken, and say in the answer what was probably not meant."""

    @pytest.mark.parametrize(
        ("sent", "code", "words"),
        [
            ({"files": {"mask": marked(slice(5, 20), slice(10, 30), inverted=True)}}, "mask-looks-inverted", "79.4 %"),
            ({"files": {"mask": marked(slice(0, 31), slice(0, 1), inverted=True)}}, "mask-covers-most", "97.9 %"),
            ({"box": "[0, 0, 46, 31]"}, "mask-covers-most", "97.9 %"),
            ({"segmentation": "[[10, 10, 11, 10, 11, 11, 10, 11]]"}, "mask-very-small", "1 pixel,"),
            ({"box": "[10, 10, 3, 5]"}, "mask-very-small", "15 pixels"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_about_a_mask(self, start: Any, sent: dict[str, Any], code: str, words: str) -> None:
        with start(worker=False) as api:
            answer = api.teach("cat", **sent)
            assert answer.status_code == 202
            (warning,) = answer.json()["warnings"]
            assert warning["code"] == code
            assert words in warning["detail"]

    @pytest.mark.parametrize("rows", [slice(5, 6), slice(0, 1)], ids=["inside", "at the edge"])
    def test_about_a_mask_of_all_but_a_pixel(self, start: Any, rows: slice) -> None:
        with start(worker=False) as api:
            answer = api.teach("cat", files={"mask": marked(rows, slice(10, 11), inverted=True)})
            warnings = {warning["code"]: warning["detail"] for warning in answer.json()["warnings"]}
            assert warnings.keys() == {"mask-looks-inverted", "mask-covers-most"}
            assert all("99.9 %" in detail for detail in warnings.values())
            assert "inside" not in warnings["mask-looks-inverted"]

    @pytest.mark.parametrize("first", ["shown", "absent"])
    def test_about_a_photo_that_shows_it_and_does_not(self, start: Any, first: str) -> None:
        said = {"shown": {}, "absent": {"files": {}, "absent": "true"}}
        with start(worker=False) as api:
            api.teach("cat", photo=api.photo_number(1))
            assert api.teach("cat", **said.pop(first)).json()["warnings"] == []
            earlier = api.http.get("/categories/cat/examples").json()[-1]["id"]
            (warning,) = api.teach("cat", **said.popitem()[1]).json()["warnings"]
            assert warning["code"] == "contradicts-example"
            assert earlier in warning["detail"]
            assert api.teach("cat", mode="replace").json()["warnings"] == []

    def test_about_nothing(self, start: Any) -> None:
        with start(worker=False) as api:
            answers = [
                api.teach("cat"),
                api.teach("cat", photo=api.other_photo),
                api.teach("cat", photo=api.photo_number(1), files={}, absent="true"),
                api.teach("dog"),
                api.teach("large", box="[1, 1, 40, 30]"),  # most of the photo, but not all of its edges
                api.teach("cat", box="[10, 5, 20, 14]"),  # the same photo with another mask
            ]
            assert [answer.status_code for answer in answers] == [202] * 6
            assert not [answer.text for answer in answers if answer.json()["warnings"]]

    def test_the_same_example_again(self, start: Any) -> None:
        with start() as api:
            job = api.taught("cat")
            again = api.teach("cat")
            assert (again.status_code, again.headers["location"]) == (202, f"/jobs/{job['id']}")
            assert again.json()["job"] == job
            (warning,) = again.json()["warnings"]
            assert warning["code"] == "duplicate-example"
            assert "cat has this photo with this mask already" in warning["detail"]
            assert api.category("cat")["examples"] == 1
            assert len(api.http.get("/jobs").json()) == 1

    def test_the_same_example_in_another_form(self, start: Any) -> None:
        with start(worker=False) as api:
            first = api.teach("cat", box="[10, 5, 20, 15]").json()
            second = api.teach("cat").json()
            assert second["job"]["id"] == first["job"]["id"]
            assert api.category("cat")["examples"] == 1

    def test_the_same_photo_without_the_category_again(self, start: Any) -> None:
        with start(worker=False) as api:
            api.teach("cat")
            absent = {"photo": api.other_photo, "files": {}, "absent": "true"}
            first, second = (api.teach("cat", **absent).json() for _ in range(2))
            assert second["job"]["id"] == first["job"]["id"]
            (warning,) = second["warnings"]
            assert warning["code"] == "duplicate-example"
            assert "cat has this photo as one without it already" in warning["detail"]  # no mask was sent
            assert api.category("cat")["examples"] == 2

    def test_the_same_example_after_its_job_was_cancelled(self, start: Any) -> None:
        with start(worker=False) as api:
            cancelled = api.teach("cat").json()["job"]["id"]
            api.http.delete(f"/jobs/{cancelled}")
        with start() as api:
            again = api.teach("cat").json()
            assert again["warnings"][0]["code"] == "duplicate-example"
            assert again["category"]["job"] == again["job"]["id"] != cancelled
            assert api.wait(again["job"]["id"])["status"] == "succeeded"
            assert api.category("cat")["examples"] == 1

    def test_the_same_example_with_new_words(self, start: Any) -> None:
        with start(worker=False) as api:
            api.teach("cat", prompts="kitten")
            again = api.teach("cat", prompts="kitten,tom").json()
            assert again["category"]["prompts"] == ["cat", "kitten", "tom"]
            assert [warning["code"] for warning in again["warnings"]] == ["duplicate-example"]
            assert "nothing new" not in again["warnings"][0]["detail"]
            assert again["category"]["examples"] == 1

    def test_the_same_example_in_place_of_all(self, start: Any) -> None:
        with start(worker=False) as api:
            api.teach("cat")
            api.teach("cat", photo=api.other_photo)
            replaced = api.teach("cat", mode="replace").json()
            assert replaced["warnings"] == []
            assert replaced["category"]["examples"] == 1

    def test_are_repeated_with_the_answer(self, start: Any) -> None:
        with start(worker=False) as api:
            sent = {"box": "[10, 10, 3, 5]", "headers": {"Idempotency-Key": "k"}}
            first, second = (api.teach("cat", **sent) for _ in range(2))
            assert first.json() == second.json()
            assert [warning["code"] for warning in second.json()["warnings"]] == ["mask-very-small"]
