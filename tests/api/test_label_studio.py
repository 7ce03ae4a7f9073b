"""Label Studio's ML backend. The requests in `label_studio_requests/` were recorded from Label Studio 1.23.2."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.images.masks import decode_mask
from app.masks.brush import brush_to_mask, mask_to_brush
from app.masks.pictures import mask_to_alpha_png
from tests.api.test_access import SETTING, basic
from tests.conftest import DEADLINE_S

EXAMPLES = Path(__file__).parents[2] / "examples"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
KINDS = {"brushlabels", "polygonlabels", "rectanglelabels", "bitmasklabels"}


def recorded(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "label_studio_requests" / f"{name}.json").read_text())


class FakeLabelStudio(ThreadingHTTPServer):
    """Answers with photos and tasks to who sends the token, and notes what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tasks: list[dict[str, Any]] = []
        self.accepted = {f"Token {TOKEN}"}
        self.asked: list[tuple[str, str | None]] = []
        self.redirects: dict[str, str] = {}
        self.has_projects = True
        self.annotations: set[int] = set()  # those that are on no page of tasks
        self.refuses_with = 302  # to the login page; or 401
        self.login = "/user/login/"
        self.fresh = iter(["fresh", "fresher", "freshest"])  # what a personal access token is exchanged for


class _Handler(BaseHTTPRequestHandler):
    server: FakeLabelStudio

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization")
        self.server.asked.append((self.path, sent))
        if location := self.server.redirects.get(self.path):
            self._send(302, b"", location=location)
        elif sent not in self.server.accepted:
            self._send(self.server.refuses_with, b"", location=f"{self.server.login}?next={self.path}")
        elif self.path.startswith("/api/tasks?") and self.server.has_projects:
            page = [] if "page=2" in self.path else self.server.tasks
            self._send(200, json.dumps({"tasks": page}).encode())
        elif self.path in {f"/api/annotations/{id}/" for id in self.server.annotations}:
            self._send(200, b"{}")
        else:
            file = EXAMPLES / self.path.rpartition("-")[2]
            self._send(200, file.read_bytes()) if file.is_file() else self._send(404, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body["refresh"]))
        self._send(200, json.dumps({"access": next(self.server.fresh)}).encode())

    def _send(self, status: int, body: bytes, *, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def api(start, label_studio: FakeLabelStudio):
    # With one background word the random model finds something in every photo.
    with start(label_studio_url=label_studio.url, label_studio_token=TOKEN, background="sky") as running:
        yield running


# What was learnt, what waits to be learnt, and who learns it.
ANNOTATIONS = "exemplar:label-studio:annotations"
CHANGES, LOCK = "exemplar:label-studio:changes", "exemplar:label-studio:changes-lock"


def kept_from_learning(api) -> None:
    """Another process learns the changes, and is slow."""
    until(lambda: api.redis.set(LOCK, "another process", nx=True))


def call(api, name: str, body: dict[str, Any], **options: Any):
    return api.http.post(f"/label-studio/{name}", json=body, **options)


def tell(api, body: dict[str, Any]) -> None:
    answer = call(api, "webhook", body)
    assert (answer.status_code, answer.json()) == (201, {"status": "ok", "result": {}})


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def example_ids(api, name: str = "cat") -> list[str]:
    answer = api.http.get(f"/categories/{name}/examples")
    return [example["id"] for example in answer.json()] if answer.status_code == 200 else []


def stored(api, annotation: int) -> dict[str, Any]:
    """What the store has of an annotation."""
    return json.loads(api.redis.hget(ANNOTATIONS, str(annotation)))


def mask_of_example(api, id: str) -> np.ndarray:
    raw = api.http.get(f"/categories/cat/examples/{id}/mask").content
    return decode_mask(raw, photo_hw=(480, 640), max_pixels=480 * 640)


def data_url(photo: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(photo).decode()


def small_task(api, **data: str) -> dict[str, Any]:
    return {"id": 7, "data": {"image": data_url(api.photo), **data}}


def config(*controls: str) -> str:
    return f'<View><Image name="image" value="$image"/>{"".join(controls)}</View>'


BRUSH = '<BrushLabels name="brush" toName="image"><Label value="cat"/></BrushLabels>'
# Its labels come out of the data of each task.
DYNAMIC = '<BrushLabels name="dynamic" toName="image" value="$options"/>'
ANIMALS = ("cat", "dog", "horse")


class TestConnecting:
    def test_health(self, api) -> None:
        for path in ("/label-studio/health", "/label-studio/"):
            assert api.http.get(path).json() == {"status": "UP", "model_class": "Exemplar"}

    def test_setup_tells_a_version_that_changes_with_a_category_of_the_config(self, api) -> None:
        first = call(api, "setup", recorded("setup")).json()["model_version"]
        assert api.http.get("/label-studio/versions").json() == {"versions": [first]}
        api.taught("horse")  # not in the config
        assert call(api, "setup", recorded("setup")).json()["model_version"] == first
        api.taught("dog")
        second = call(api, "setup", recorded("setup")).json()["model_version"]
        assert second != first
        assert api.http.get("/label-studio/versions").json() == {"versions": [second]}

    @pytest.mark.parametrize(
        ("schema", "told"),
        [
            ("<View", "XML"),
            ('<!DOCTYPE x [<!ENTITY a "b">]><View/>', "document type"),
            (config(BRUSH.replace("cat", "cat/dog")), "slash"),
            (config(DYNAMIC), 'add <Label value="'),
        ],
    )
    def test_a_config_that_cannot_be_used_is_refused(self, api, schema: str, told: str) -> None:
        before = api.http.get("/label-studio/versions").json()
        for answer in (
            call(api, "setup", recorded("setup") | {"schema": schema}),
            call(api, "predict", {"tasks": [small_task(api)], "label_config": schema}),
        ):
            assert answer.status_code == 422, answer.text
            assert told in answer.json()["detail"]
            assert answer.json()["errors"][0]["field"] == "label_config"
        assert api.http.get("/label-studio/versions").json() == before

    @pytest.mark.parametrize(
        "schema", ["<View/>", config('<Choices name="c" toName="image"><Choice value="x"/></Choices>')]
    )
    def test_a_project_that_marks_no_areas_connects_and_has_empty_predictions(self, api, schema: str) -> None:
        """A new project has an empty config when it is connected."""
        api.taught("cat")
        assert call(api, "setup", recorded("setup") | {"schema": schema}).status_code == 200
        answer = call(api, "predict", {"tasks": [small_task(api)], "label_config": schema})
        assert answer.json()["results"][0]["result"] == []

    @pytest.mark.parametrize("name", ["validate", "delete", "duplicate_model", "job_status"])
    def test_the_rest_is_answered_and_does_nothing(self, api, name: str) -> None:
        before = api.stored()
        assert call(api, name, {"project": "1.2"}).status_code == 200
        assert api.stored() == before

    def test_a_config_of_more_labels_than_one_request_may_have_is_refused(self, start) -> None:
        with start(worker=False, max_categories=3) as api:
            for count, status in ((3, 200), (4, 422)):
                labels = "".join(f'<Label value="breed {number}"/>' for number in range(count))
                breeds = config(BRUSH.replace('<Label value="cat"/>', labels))
                for answer in (
                    call(api, "setup", recorded("setup") | {"schema": breeds}),
                    call(api, "predict", {"tasks": [small_task(api)], "label_config": breeds}),
                ):
                    assert answer.status_code == status, answer.text
            problem = answer.json()
            assert problem["detail"] == "4 categories are too many: at most 3 in one request (EXEMPLAR_MAX_CATEGORIES)."
            assert problem["errors"][0]["field"] == "label_config"

    def test_a_config_larger_than_any_is_not_read(self, api) -> None:
        large = config(BRUSH + " " * 600_000)
        setup = call(api, "setup", recorded("setup") | {"schema": large})
        predict = call(api, "predict", {"tasks": [small_task(api)], "label_config": large})
        assert [(answer.status_code, answer.json()["errors"][0]["field"]) for answer in (setup, predict)] == [
            (422, "schema"),
            (422, "label_config"),
        ]


class TestPredictions:
    def test_of_recorded_tasks_under_all_controls(self, api, label_studio: FakeLabelStudio) -> None:
        answer = call(api, "predict", recorded("predict"))
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        version = call(api, "setup", recorded("setup")).json()["model_version"]
        assert [result["model_version"] for result in results] == [version, version]
        assert {region["type"] for result in results for region in result["result"]} == KINDS
        assert {path for path, _ in label_studio.asked} == {
            "/data/upload/1/92e3cee5-kitten.jpg",
            "/data/upload/1/5d1fdec8-chelsea.jpg",
        }

    def test_they_are_the_masks_of_segment(self, api) -> None:
        result = call(api, "predict", {"tasks": [small_task(api)], "label_config": config(BRUSH)}).json()["results"][0]
        segmented = api.segment("cat").json()["categories"][0]
        (region,) = result["result"]
        mask = brush_to_mask(region["value"]["rle"], api.hw)
        assert int(mask.sum()) == segmented["area"]
        assert region["value"]["brushlabels"] == ["cat"]
        assert (region["from_name"], region["to_name"]) == ("brush", "image")
        assert (region["original_height"], region["original_width"]) == api.hw
        assert region["score"] == result["score"] == segmented["presence"]

    def test_an_alias_stands_for_its_label(self, api) -> None:
        aliased = BRUSH.replace('"cat"', '"cat" alias="c1"')
        result = call(api, "predict", {"tasks": [small_task(api)], "label_config": config(aliased)}).json()
        assert result["results"][0]["result"][0]["value"]["brushlabels"] == ["c1"]

    @pytest.mark.parametrize("photo", ["image", "other"])
    def test_a_control_without_labels_of_its_own_is_left_out(self, api, photo: str) -> None:
        """Labels out of the tasks' data are in no config; categories that are taught don't take their place."""
        api.taught("dog")
        mixed = config('<Image name="other" value="$other"/>', DYNAMIC.replace("image", photo), BRUSH)
        task = small_task(api, other=data_url(api.photo_number(2)), options="fox")
        answer = call(api, "predict", {"tasks": [task], "label_config": mixed})
        assert answer.status_code == 200, answer.text
        (region,) = answer.json()["results"][0]["result"]
        assert (region["from_name"], region["value"]["brushlabels"]) == ("brush", ["cat"])

    def test_a_task_whose_photo_cannot_be_read_has_none(self, api) -> None:
        tasks = [{"id": 1, "data": {"image": "data:image/png;base64,AAAA"}}, small_task(api)]
        first, second = call(api, "predict", {"tasks": tasks, "label_config": config(BRUSH)}).json()["results"]
        assert first == []
        assert second["result"]
        assert call(api, "predict", {"tasks": tasks[:1], "label_config": config(BRUSH)}).status_code == 422

    def test_what_is_not_found_has_no_region(self, start) -> None:
        with start() as api:
            assert not api.segment("cat").json()["categories"][0]["found"]
            body = {"tasks": [small_task(api)], "label_config": config(BRUSH)}
            (result,) = call(api, "predict", body).json()["results"]
            assert result["result"] == []

    def test_if_they_take_long_the_first_is_answered(self, api, monkeypatch: pytest.MonkeyPatch) -> None:
        """Label Studio then asks for each task alone."""
        monkeypatch.setattr("app.services.labelling.label_studio._ANSWER_S", 0.0)
        tasks = [small_task(api) | {"id": number} for number in range(9)]
        answer = call(api, "predict", {"tasks": tasks, "label_config": config(BRUSH)})
        assert len(answer.json()["results"]) == 1


class TestAnnotations:
    def test_a_recorded_annotation_teaches_its_label(self, api) -> None:
        tell(api, recorded("tasks_created"))
        tell(api, recorded("annotation_created"))
        (id,) = until(lambda: example_ids(api))
        assert until(lambda: api.category()["adapter"])["version"] == 1
        region = recorded("annotation_created")["annotation"]["result"][0]
        assert np.array_equal(mask_of_example(api, id), brush_to_mask(region["value"]["rle"], (480, 640)))

    def test_an_update_replaces_its_example_by_the_union_of_its_regions(self, api) -> None:
        tell(api, recorded("annotation_created"))
        (first,) = until(lambda: example_ids(api))
        tell(api, recorded("annotation_updated"))
        (second,) = until(lambda: len(ids := example_ids(api)) == 1 and ids != [first] and ids)
        brush = recorded("annotation_created")["annotation"]["result"][0]
        expected = brush_to_mask(brush["value"]["rle"], (480, 640))
        expected[48:240, 64:256] = True  # the box of 10 %, 10 %, 30 % and 40 %
        assert np.array_equal(mask_of_example(api, second), expected)

    def test_the_same_update_again_changes_nothing(self, api) -> None:
        tell(api, recorded("annotation_created"))
        ids = until(lambda: example_ids(api))
        job = api.category()["job"]
        tell(api, recorded("annotation_created"))
        self._tell_another_and_wait(api)
        assert example_ids(api) == ids
        assert api.category()["job"] == job

    def test_an_update_that_was_overtaken_changes_nothing(self, api) -> None:
        tell(api, recorded("annotation_updated"))
        ids = until(lambda: example_ids(api))
        tell(api, recorded("annotation_created"))
        self._tell_another_and_wait(api)
        assert example_ids(api) == ids

    @pytest.mark.parametrize("name", ["annotations_deleted", "tasks_deleted"])
    def test_a_deleted_annotation_or_task_takes_its_example_away(self, api, name: str) -> None:
        tell(api, recorded("annotation_created"))
        until(lambda: example_ids(api))
        tell(api, recorded(name))
        until(lambda: not example_ids(api))
        until(lambda: not api.redis.exists(ANNOTATIONS))

    def test_a_skipped_task_takes_it_away_too(self, api) -> None:
        tell(api, recorded("annotation_created"))
        until(lambda: example_ids(api))
        change = recorded("annotation_updated")
        change["annotation"]["was_cancelled"] = True
        tell(api, change)
        until(lambda: not example_ids(api))

    def test_an_example_deleted_by_hand_is_taught_again_by_the_next_update(self, api) -> None:
        tell(api, recorded("annotation_created"))
        (id,) = until(lambda: example_ids(api))
        api.http.delete(f"/categories/cat/examples/{id}")
        tell(api, recorded("annotation_created"))
        until(lambda: example_ids(api))

    def test_a_category_that_is_full_has_the_update_in_its_place(self, start, label_studio: FakeLabelStudio) -> None:
        with start(label_studio_url=label_studio.url, label_studio_token=TOKEN, max_examples=1) as api:
            tell(api, recorded("annotation_created"))
            (first,) = until(lambda: example_ids(api))
            tell(api, recorded("annotation_updated"))
            until(lambda: example_ids(api) not in ([], [first]))

    def test_a_category_that_is_full_keeps_no_other_label_and_no_correction_waiting(
        self, start, label_studio: FakeLabelStudio, caplog
    ) -> None:
        with start(label_studio_url=label_studio.url, label_studio_token=TOKEN, max_examples=1) as api:
            tell(api, recorded("annotation_created"))
            until(lambda: example_ids(api))
            tell(api, self._marked(api, 2, "dog"))
            until(lambda: example_ids(api, "dog"))
            # The dog is corrected to a cat, for which there is no room, and to a horse.
            tell(api, self._marked(api, 2, "cat", "horse"))
            until(lambda: example_ids(api, "horse"))
            until(lambda: not example_ids(api, "dog"))
            assert len(example_ids(api)) == 1
            assert "cat has as many examples as it may" in caplog.text
            # What it taught is all that is stored of it.
            until(lambda: [example["category"] for example in stored(api, 2)["examples"]] == ["horse"])

    def test_several_at_once(self, api) -> None:
        one = recorded("annotation_created")
        other = one["annotation"] | {"id": 2, "task": 2}
        task = one["task"] | {"id": 2, "data": {"image": "/data/upload/1/x-kitten.jpg"}}
        change = one | {
            "action": "ANNOTATIONS_CREATED",
            "annotation": [one["annotation"], other],
            "task": [one["task"], task],
        }
        tell(api, change)
        until(lambda: len(example_ids(api)) == 2)

    def test_an_empty_one_keeps_no_other_from_being_learnt(self, api) -> None:
        """Predictions without a result become annotations without one."""
        one = recorded("annotation_created")
        empty = one["annotation"] | {"id": 2, "result": None}
        tell(api, one | {"action": "ANNOTATIONS_CREATED", "annotation": [empty, one["annotation"]]})
        until(lambda: example_ids(api))

    def test_a_project_without_a_config_tells_what_is_deleted(self, api) -> None:
        tell(api, recorded("annotation_created"))
        until(lambda: example_ids(api))
        for name in ("annotation_updated", "start_training", "tasks_deleted"):
            tell(api, recorded(name) | {"project": {"id": 1, "label_config": None}})
        until(lambda: not example_ids(api))

    def test_training_learns_all_annotations_of_the_project(self, api, label_studio: FakeLabelStudio) -> None:
        change = recorded("annotation_created")
        label_studio.tasks = [change["task"] | {"annotations": [change["annotation"]]}]
        tell(api, recorded("start_training"))
        until(lambda: example_ids(api))
        tell(api, recorded("annotations_deleted"))
        until(lambda: not example_ids(api))

    def test_training_repairs_what_was_missed(self, api, label_studio: FakeLabelStudio) -> None:
        for id in (2, 3, 4, 5):
            tell(api, self._marked(api, id, "cat"))
        until(lambda: len(example_ids(api)) == 4)
        examples = {id: stored(api, id)["examples"][0]["id"] for id in (2, 3, 4, 5)}
        # Label Studio could not tell that annotations 3 and 5 were deleted, and an older release had learnt 5. Others
        # are deleted while the pages are read, so that 4 moves to one that was read before.
        change = self._marked(api, 2, "cat")
        label_studio.tasks = [change["task"] | {"annotations": [change["annotation"]]}]
        label_studio.annotations = {4}
        older = stored(api, 5)
        del older["project"]
        api.redis.hset(ANNOTATIONS, "5", json.dumps(older))
        tell(api, recorded("start_training"))
        until(lambda: len(example_ids(api)) == 3)
        self._tell_another_and_wait(api)
        assert set(example_ids(api)) == {examples[2], examples[4], examples[5]}

    def test_training_of_a_project_that_is_not_there_deletes_nothing(
        self, api, label_studio: FakeLabelStudio, caplog
    ) -> None:
        tell(api, self._marked(api, 2, "cat"))
        ids = until(lambda: example_ids(api))
        label_studio.has_projects = False
        tell(api, recorded("start_training"))
        self._tell_another_and_wait(api)
        assert "its host answers with 404" in caplog.text
        assert example_ids(api) == ids

    def test_what_was_told_outlives_the_process(self, start, label_studio: FakeLabelStudio) -> None:
        settings = {"label_studio_url": label_studio.url, "label_studio_token": TOKEN}
        with start(**settings) as api:
            kept_from_learning(api)
            tell(api, recorded("annotation_created"))
        with start(**settings) as api:
            assert not example_ids(api)
            api.redis.delete(LOCK)  # as it expires after the death of its owner
            until(lambda: example_ids(api))
            until(lambda: not api.redis.exists(CHANGES, LOCK))

    def test_too_many_that_wait_are_refused(self, start, label_studio: FakeLabelStudio, monkeypatch) -> None:
        monkeypatch.setattr("app.wiring._MOST_CHANGES", 1)
        with start(label_studio_url=label_studio.url, label_studio_token=TOKEN) as api:
            kept_from_learning(api)
            tell(api, recorded("annotation_created"))
            refused = call(api, "webhook", recorded("annotation_updated"))
            assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
            api.redis.delete(LOCK)
            until(lambda: example_ids(api))

    @pytest.mark.parametrize("deleted", ["ANNOTATIONS_DELETED", "TASKS_DELETED"])
    def test_many_that_are_deleted_at_once_are_one_change(
        self, start, label_studio: FakeLabelStudio, monkeypatch, deleted: str
    ) -> None:
        monkeypatch.setattr("app.wiring._MOST_CHANGES", 2)
        with start(label_studio_url=label_studio.url, label_studio_token=TOKEN) as api:
            for id in (1, 2, 3):
                tell(api, self._marked(api, id, "cat"))
                until(lambda: not api.redis.exists(CHANGES))
            kept_from_learning(api)
            many = [{"id": id} for id in (1, 2, 3)]
            tell(api, recorded("tasks_deleted") | {"action": deleted, "annotations": many, "tasks": many})
            assert len(example_ids(api)) == 3
            api.redis.delete(LOCK)
            until(lambda: not example_ids(api))

    @pytest.mark.parametrize("damage", ["{{{", '{"kind": "learn"}', '{"kind": "unknown"}', None], ids=str)
    def test_a_damaged_change_keeps_no_other_from_being_learnt(self, api, damage: str | None) -> None:
        if damage is None:
            api.redis.set(CHANGES, "no list")
        else:
            api.redis.rpush(CHANGES, damage)
        tell(api, recorded("annotation_created"))
        until(lambda: example_ids(api))

    def test_every_control_is_read(self, api) -> None:
        marks = {"cat": api.marked}
        predicted = recorded("predict")
        value = {"x": 100 * 10 / 47, "y": 100 * 5 / 31, "width": 100 * 20 / 47, "height": 100 * 15 / 31, "rotation": 0}
        x, y, right, bottom = value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]
        corners = [[x, y], [right, y], [right, bottom], [x, bottom]]
        url = "data:image/png;base64," + base64.b64encode(mask_to_alpha_png(marks["cat"])).decode()
        values = {
            "brush": {"format": "rle", "rle": mask_to_brush(api.marked), "brushlabels": ["cat"]},
            "polygon": {"points": corners, "closed": True, "polygonlabels": ["cat"]},
            "box": value | {"rectanglelabels": ["cat"]},
            "bitmask": {"imageDataURL": url, "bitmasklabels": ["cat"]},
        }
        for number, (name, one) in enumerate(values.items(), 1):
            photo = base64.b64encode(api.photo_number(number)).decode()
            tell(
                api,
                {
                    "action": "ANNOTATION_CREATED",
                    "annotation": {"id": number, "task": number, "result": [{"from_name": name, "value": one}]},
                    "task": {"id": number, "data": {"image": f"data:image/png;base64,{photo}"}},
                    "project": {"id": 1, "label_config": predicted["label_config"]},
                },
            )
        ids = until(lambda: len(ids := example_ids(api)) == 4 and ids)
        masks = [api.http.get(f"/categories/cat/examples/{id}/mask").content for id in ids]
        assert len(set(masks)) == 1

    @pytest.mark.parametrize(
        "result",
        [[1, None, {}], [{"from_name": "brush"}], [{"from_name": "brush", "value": {"rle": "x"}}], [{"from_name": []}]],
    )
    def test_what_cannot_be_read_teaches_nothing(self, api, result: list[Any]) -> None:
        change = recorded("annotation_created")
        tell(api, change | {"annotation": change["annotation"] | {"result": result}})
        self._tell_another_and_wait(api)
        assert example_ids(api) == []

    def test_other_changes_are_ignored(self, api) -> None:
        kept_from_learning(api)  # so that what waits to be learnt stays in the store
        before = api.stored()
        for action in ("PROJECT_UPDATED", "ANNOTATION_CREATED", "", "START_TRAINING"):
            tell(api, {"action": action})
        assert api.stored() == before

    @staticmethod
    def _marked(api, id: int, *labels: str) -> dict[str, Any]:
        """An annotation of another task with a region of each label."""
        regions = [
            {"from_name": "brush", "value": {"rle": mask_to_brush(api.marked), "brushlabels": [label]}}
            for label in labels
        ]
        controls = BRUSH.replace('<Label value="cat"/>', "".join(f'<Label value="{name}"/>' for name in ANIMALS))
        return {
            "action": "ANNOTATION_UPDATED",
            "annotation": {"id": id, "task": id, "result": regions},
            "task": {"id": id, "data": {"image": data_url(api.photo_number(id))}},
            "project": {"id": 1, "label_config": config(controls)},
        }

    @staticmethod
    def _tell_another_and_wait(api) -> None:
        """Changes are made one after another, so all that were told before are made when this one is."""
        photo = base64.b64encode(api.photo).decode()
        tell(
            api,
            {
                "action": "ANNOTATION_CREATED",
                "annotation": {
                    "id": 99,
                    "task": 99,
                    "result": [
                        {"from_name": "brush", "value": {"rle": mask_to_brush(api.marked), "brushlabels": ["last"]}}
                    ],
                },
                "task": {"id": 99, "data": {"image": f"data:image/png;base64,{photo}"}},
                "project": {"id": 1, "label_config": config(BRUSH.replace("cat", "last"))},
            },
        )
        until(lambda: example_ids(api, "last"))


class TestPhotos:
    def predicted(self, api, address: str):
        body = {"tasks": [{"id": 1, "data": {"image": address}}], "label_config": config(BRUSH)}
        return call(api, "predict", body)

    def test_of_other_hosts_are_not_fetched(self, api) -> None:
        for address in (
            "http://169.254.169.254/latest/meta-data",
            "http://localhost:1/x.jpg",
            "//127.0.0.1/x.jpg",
            "file:///etc/passwd",
            "ftp://127.0.0.1/x.jpg",
            "s3://bucket/x.jpg",
            "x.jpg",
            "http://[",
        ):
            answer = self.predicted(api, address)
            assert answer.status_code == 422, (address, answer.text)

    def test_of_what_is_no_address_are_told_and_others_predicted(self, api) -> None:
        for address in ("/data/a\n.jpg", "/" + "a" * 70_000, "http://localhost/\0"):
            answer = self.predicted(api, address)
            assert answer.status_code == 422, answer.text
            assert "is no address of a photo" in answer.json()["detail"]
            tasks = [{"id": 1, "data": {"image": address}}, small_task(api)]
            first, second = call(api, "predict", {"tasks": tasks, "label_config": config(BRUSH)}).json()["results"]
            assert first == []
            assert second["result"]

    def test_a_name_before_the_host_is_not_the_host(self, api, label_studio: FakeLabelStudio) -> None:
        assert self.predicted(api, f"http://{label_studio.url[7:]}@localhost:1/x-cat.jpg").status_code == 422
        assert label_studio.asked == []

    def test_nor_where_a_redirect_leads_to(self, api, label_studio: FakeLabelStudio) -> None:
        label_studio.redirects = {"/data/a": "http://169.254.169.254/", "/data/b": "/data/upload/1/x-coffee.jpg"}
        answer = self.predicted(api, "/data/a")
        assert answer.status_code == 422
        assert "169.254.169.254" in answer.json()["detail"]
        assert self.predicted(api, "/data/b").status_code == 200
        assert self.predicted(api, f"{label_studio.url}/data/b").status_code == 200

    def test_a_loop_of_redirects_ends(self, api, label_studio: FakeLabelStudio) -> None:
        label_studio.redirects = {"/data/a": "/data/a"}
        assert "too often" in self.predicted(api, "/data/a").json()["detail"]

    def test_another_host_of_the_settings_gets_no_token(self, start, label_studio: FakeLabelStudio) -> None:
        label_studio.accepted = {None}
        host = f"localhost:{label_studio.server_port}"
        with start(label_studio_url=label_studio.url, label_studio_token=TOKEN, label_studio_hosts=host) as api:
            assert self.predicted(api, f"http://{host}/x-coffee.jpg").status_code == 200
        assert [sent for _, sent in label_studio.asked] == [None]

    @pytest.mark.parametrize("folder", ["", "/ls"])
    def test_a_wrong_token_is_told(self, start, label_studio: FakeLabelStudio, folder: str) -> None:
        label_studio.login = f"{folder}/user/login/"
        with start(label_studio_url=label_studio.url + folder, label_studio_token="wrong") as api:
            answer = self.predicted(api, "/data/upload/1/x-coffee.jpg")
            assert answer.status_code == 422
            assert "EXEMPLAR_LABEL_STUDIO_TOKEN" in answer.json()["detail"]

    def test_without_a_token_that_of_setup_is_used_if_it_comes_from_label_studio(
        self, start, label_studio: FakeLabelStudio
    ) -> None:
        with start(label_studio_url=label_studio.url) as api:
            body = recorded("setup") | {"hostname": "http://elsewhere.example"}
            call(api, "setup", body)
            assert self.predicted(api, "/data/upload/1/x-coffee.jpg").status_code == 422
            call(api, "setup", body | {"hostname": label_studio.url})
            assert self.predicted(api, "/data/upload/1/x-coffee.jpg").status_code == 200

    @pytest.mark.parametrize(
        ("first", "refuses_with"), [(TOKEN, 302), ("junk", 302), ("a.b.c", 302), (TOKEN, 401)], ids=str
    )
    def test_a_token_that_label_studio_does_not_know_replaces_none_that_it_knows(
        self, start, label_studio: FakeLabelStudio, first: str, refuses_with: int
    ) -> None:
        label_studio.refuses_with = refuses_with
        photo = "/data/upload/1/x-coffee.jpg"
        with start(label_studio_url=label_studio.url, background="sky") as api:
            body = recorded("setup") | {"hostname": label_studio.url}
            call(api, "setup", body | {"access_token": first})
            if first == TOKEN:
                assert self.predicted(api, photo).status_code == 200
            call(api, "setup", body | {"access_token": TOKEN if first != TOKEN else "junk"})
            call(api, "setup", body | {"access_token": ""})
            assert self.predicted(api, photo).status_code == 200
            label_studio.accepted = {"Token new"}  # its user has made a new one
            call(api, "setup", body | {"access_token": "new"})
            assert self.predicted(api, photo).status_code == 200

    @pytest.mark.parametrize("refuses_with", [302, 401])
    def test_a_personal_access_token_is_exchanged_and_renewed(
        self, start, label_studio: FakeLabelStudio, refuses_with: int
    ) -> None:
        label_studio.refuses_with = refuses_with
        label_studio.accepted = {"Bearer fresh"}

        def exchanges() -> int:
            return [path for path, _ in label_studio.asked].count("/api/token/refresh")

        with start(label_studio_url=label_studio.url, label_studio_token="a.b.c") as api:
            for _ in range(2):
                assert self.predicted(api, "/data/upload/1/x-coffee.jpg").status_code == 200
            assert exchanges() == 1
            label_studio.accepted = {"Bearer fresher"}  # the first one has expired
            for _ in range(2):
                assert self.predicted(api, "/data/upload/1/x-coffee.jpg").status_code == 200
            assert exchanges() == 2
            label_studio.accepted = set()  # its user has lost access
            answer = self.predicted(api, "/data/upload/1/x-coffee.jpg")
            assert answer.status_code == 422
            assert "EXEMPLAR_LABEL_STUDIO_TOKEN" in answer.json()["detail"]
            assert exchanges() == 3

    def test_two_photos_at_once_renew_an_expired_token(self, start, label_studio: FakeLabelStudio) -> None:
        label_studio.accepted = {"Bearer fresh"}
        photo = "/data/upload/1/x-coffee.jpg"
        with start(label_studio_url=label_studio.url, label_studio_token="a.b.c", background="sky") as api:
            assert self.predicted(api, photo).status_code == 200
            label_studio.accepted = {"Bearer fresher", "Bearer freshest"}
            tasks = [{"id": number, "data": {"image": photo}} for number in (1, 2)]
            answer = call(api, "predict", {"tasks": tasks, "label_config": config(BRUSH)})
            assert all(result["result"] for result in answer.json()["results"])

    def test_a_large_one_is_refused(self, start, label_studio: FakeLabelStudio) -> None:
        with start(label_studio_url=label_studio.url, label_studio_token=TOKEN, max_upload_bytes=1000) as api:
            assert self.predicted(api, "/data/upload/1/x-coffee.jpg").status_code == 413
            assert self.predicted(api, "data:image/png;base64," + "A" * 4000).status_code == 413

    def test_label_studio_that_is_away(self, start) -> None:
        with start(label_studio_url="http://127.0.0.1:1") as api:
            answer = self.predicted(api, "/data/x.jpg")
            assert answer.status_code == 503
            assert "Retry-After" in answer.headers

    def test_without_a_label_studio_only_data_urls_are_read(self, start) -> None:
        with start() as api:
            assert "EXEMPLAR_LABEL_STUDIO_URL" in self.predicted(api, "/data/x.jpg").json()["detail"]
            assert self.predicted(api, small_task(api)["data"]["image"]).status_code == 200

    @pytest.mark.parametrize("folder", ["", "/ls"])
    def test_below_a_folder_of_its_host(self, start, label_studio: FakeLabelStudio, folder: str) -> None:
        with start(label_studio_url=f"{label_studio.url}/ls/", label_studio_token=TOKEN) as api:
            assert self.predicted(api, f"{folder}/data/x-coffee.jpg").status_code == 200
        assert label_studio.asked[0][0] == "/ls/data/x-coffee.jpg"


class TestKeys:
    def test_the_password_of_basic_authentication_is_a_key(self, start) -> None:
        with start(api_keys=SETTING, client=("10.0.0.7", 50007)) as api:
            body = {"tasks": [small_task(api)], "label_config": config(BRUSH)}
            assert api.http.get("/label-studio/health").status_code == 401
            reading, teaching = ({"Authorization": basic(f"exemplar:{key}")} for key in ("look", "learn"))
            assert api.http.get("/label-studio/health", headers=reading).status_code == 200
            assert call(api, "setup", recorded("setup"), headers=reading).status_code == 200
            assert call(api, "predict", body, headers=reading).status_code == 200
            change = recorded("tasks_created")
            assert call(api, "webhook", change).status_code == 401
            assert call(api, "webhook", change, headers=reading).status_code == 403
            assert call(api, "webhook", change, headers=teaching).status_code == 201


SMART = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="cat" alias="c"/></BrushLabels>'
    '<KeyPointLabels name="point" toName="image" smart="true"><Label value="cat" alias="c"/></KeyPointLabels>'
    '<RectangleLabels name="box" toName="image" smart="true"><Label value="cat" alias="c"/></RectangleLabels></View>'
)


class TestInteractive:
    def drawn(self, api, *regions: dict[str, Any], config: str = SMART):
        tasks = [{"id": 1, "data": {"image": "/data/upload/1/x-kitten.jpg"}}]
        return call(
            api, "predict", {"tasks": tasks, "label_config": config, "params": {"context": {"result": list(regions)}}}
        )

    @staticmethod
    def point(x: float, y: float, **more: Any) -> dict[str, Any]:
        value = {"x": 100 * x / 640, "y": 100 * y / 480, "width": 0.5, "keypointlabels": ["c"]}
        return {"from_name": "point", "to_name": "image", "type": "keypointlabels", "value": value, **more}

    @staticmethod
    def box(x: float, y: float, width: float, height: float) -> dict[str, Any]:
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["c"]}
        return {"from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value}

    @staticmethod
    def mask(answer) -> np.ndarray:
        ((region,),) = [result["result"] for result in answer.json()["results"]]
        assert (region["from_name"], region["type"], region["value"]["brushlabels"]) == ("brush", "brushlabels", ["c"])
        assert 0.5 <= region["score"] <= 1
        return brush_to_mask(region["value"]["rle"], (480, 640))

    @pytest.fixture
    def api(self, start, embedded, label_studio: FakeLabelStudio):
        with start(loaded=[embedded], label_studio_url=label_studio.url, label_studio_token=TOKEN) as running:
            yield running

    def test_key_points_on_the_object_and_beside_it(self, api) -> None:
        found = self.mask(self.drawn(api, self.point(540, 240)))
        answer = api.http.post(
            "/segment/clicks",
            files={"image": (EXAMPLES / "kitten.jpg").read_bytes()},
            data={"points": "[[540, 240, 1]]"},
        ).json()
        assert found.sum() == answer["area"]
        rows, columns = np.nonzero(found)
        last = int(rows.argmax())
        beside = self.point(columns[last] + 0.5, rows[last] + 0.5, is_positive=0)
        assert not self.mask(self.drawn(api, self.point(540, 240, is_positive=1), beside))[rows[last], columns[last]]

    def test_the_object_in_a_box(self, api) -> None:
        rows, columns = np.nonzero(self.mask(self.drawn(api, self.box(20, 15, 70, 60))))
        assert 0.15 * 480 <= rows.min() <= rows.max() < 0.75 * 480
        assert 0.20 * 640 <= columns.min() <= columns.max() < 0.90 * 640

    def test_a_stroke_of_the_brush(self, api) -> None:
        stroke = np.zeros((480, 640), bool)
        stroke[235:245, 520:560] = True
        value = {"format": "rle", "rle": mask_to_brush(stroke), "brushlabels": ["c"]}
        region = {"from_name": "brush", "to_name": "image", "type": "brushlabels", "value": value}
        assert self.mask(self.drawn(api, region))[240, 540]

    def test_what_no_control_knows_is_left_out(self, api) -> None:
        stranger = self.point(540, 240) | {"value": {"x": 1, "y": 1, "keypointlabels": ["dog"]}}
        only_beside = self.point(540, 240, is_positive=False)
        for regions in ([stranger], [only_beside], [{"type": "keypointlabels"}], [{"type": "choices", "value": {}}]):
            assert self.drawn(api, *regions).json()["results"][0]["result"] == []

    def test_what_can_not_be_read_is_refused(self, api) -> None:
        broken = self.point(540, 240)
        broken["value"]["x"] = "left"
        for region in (broken, self.box(10, 10, 0, 5), self.box(10, 10, 5, None)):
            answer = self.drawn(api, region)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] == "params"
