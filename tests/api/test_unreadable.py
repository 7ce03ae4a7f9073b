"""Stored records that can't be read: skipped, counted, named, and deleted through the API."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from app.storage import keys
from tests.api.test_health import value

LOST = "1" * 32
JUNK_JOBS: dict[str, dict[str, Any]] = {
    "no JSON": {"status": "{{{"},
    "junk bytes": {"status": b"\xff\xfe"},
    "an unknown status": {"status": '"paused"'},
    "an unknown kind": {"kind": '"dream"'},
    "another type": {"steps": '"three"'},
    "a list for a text": {"category": "[1]"},
    "half a surrogate pair": {"error": '"\\ud800"'},
    "deep nesting": {"loss": "[" * 100_000},
    "no status": {"status": None},
    "no kind": {"kind": None},
}
JUNK_CATEGORIES: dict[str, dict[str, Any]] = {
    "prompts": {"prompts": "{{{"},
    "prompts of another type": {"prompts": "[1, {}]"},
    "half a surrogate pair": {"prompts": '["\\ud800"]'},
    "generation": {"generation": "junk"},
    "junk bytes": {"job": b"\xff\xfe"},
    "no name": {"name": None},
    "the name of another": {"name": "dog"},
}


def record_of_a_job(redis: Redis, job_id: str = LOST, **changes: str | bytes | None) -> None:
    """Store a queued job of an unknown category, with these fields changed or, if None, left out."""
    fields: dict[str, str | bytes | None] = {"id": json.dumps(job_id), "kind": '"tune"', "status": '"queued"'}
    fields |= {"category": '"nobody"', "steps": "3", "created_at": '"2026-01-01T00:00:00.000Z"'} | changes
    redis.hset(keys.job(job_id), mapping={name: raw for name, raw in fields.items() if raw is not None})
    redis.zadd(keys.JOBS, {job_id: 1.0})


def damage(api, category: str = "cat", /, **changes: str | bytes | None) -> None:
    """Change fields of a category or, if None, remove them."""
    for name, raw in changes.items():
        if raw is None:
            assert api.redis.hdel(keys.category(category), name)
        else:
            api.redis.hset(keys.category(category), name, raw)


def skipped(api) -> list[tuple[str, str]]:
    """Kinds and ids of the records that `/readyz` names."""
    answer = api.http.get("/readyz")
    assert (answer.status_code, answer.json()["status"], answer.json()["reasons"]) == (200, "ready", [])
    assert all(one["detail"] for one in answer.json()["unreadable"])
    return [(one["kind"], one["id"]) for one in answer.json()["unreadable"]]


def counted(api, kind: str) -> float:
    return value(api, "exemplar_unreadable_records", kind=kind)


def logged(caplog, word: str) -> list[str]:
    return [each.getMessage() for each in caplog.records if word in each.getMessage() and "skipped" in each.message]


def left_of(api, category: str = "cat") -> set[bytes]:
    return {key for key in api.stored() if key.startswith(keys.category(category).encode())}


@pytest.fixture(autouse=True)
def _warnings(caplog) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield


class TestJobs:
    def test_they_stop_nothing(self, database, start, caplog) -> None:
        ids = {damage: f"{number:032}" for number, damage in enumerate(JUNK_JOBS)}
        with Redis.from_url(database) as redis:
            for damage, changes in JUNK_JOBS.items():
                record_of_a_job(redis, ids[damage], **changes)
        with start() as api:
            job = api.taught("cat")
            for _ in range(2):
                assert [each["id"] for each in api.http.get("/jobs").json()] == [job["id"]]
            assert sorted(skipped(api)) == [("job", job_id) for job_id in ids.values()]
            assert (counted(api, "job"), counted(api, "category")) == (len(ids), 0)
            for damage, job_id in ids.items():
                assert len(logged(caplog, job_id)) == 1, damage
                for path in ("", "/events"):
                    answer = api.http.get(f"/jobs/{job_id}{path}")
                    assert answer.status_code == 409, damage
                    assert "DELETE" in answer.json()["detail"]

    def test_it_is_deleted_by_cancelling_it(self, start) -> None:
        with start(worker=False) as api:
            record_of_a_job(api.redis, status="{{{")
            answer = api.http.delete(f"/jobs/{LOST}")
            assert (answer.status_code, answer.json()["status"], answer.json()["id"]) == (200, "cancelled", LOST)
            assert api.http.get(f"/jobs/{LOST}").status_code == 404
            assert api.http.delete(f"/jobs/{LOST}").status_code == 404
            assert not api.redis.exists(keys.job(LOST), keys.JOBS)
            assert (skipped(api), counted(api, "job")) == ([], 0)

    @pytest.mark.parametrize(
        ("kind", "told"), [('"rank"', "rank"), ('"tune"', "tune"), ("{{{", "tune"), (None, "tune")]
    )
    def test_that_is_deleted_tells_its_kind_if_that_can_be_read(self, start, kind: str | None, told: str) -> None:
        with start(worker=False) as api:
            record_of_a_job(api.redis, kind=kind, status="{{{")
            assert api.http.delete(f"/jobs/{LOST}").json()["kind"] == told

    def test_a_key_of_another_type(self, database, start) -> None:
        with Redis.from_url(database) as redis:
            redis.set(keys.job(LOST), "x")
            redis.zadd(keys.JOBS, {LOST: 1.0, b"\xff": 2.0})
        with start() as api:
            job = api.taught("cat")
            assert [each["id"] for each in api.http.get("/jobs").json()] == [job["id"]]
            assert skipped(api) == [("job", LOST)]
            assert api.http.delete(f"/jobs/{LOST}").status_code == 200
            assert skipped(api) == []

    @pytest.mark.parametrize("junk", ["{{{", '"queued', "7", "null"])
    def test_the_next_example_replaces_the_job_that_its_category_waits_for(self, start, junk) -> None:
        with start(worker=False) as api:
            job = api.teach("cat").json()["job"]["id"]
            api.redis.hset(keys.job(job), "status", junk)
            assert api.teach("cat").status_code == 202
            assert 0 < api.redis.ttl(keys.job(job)) <= 7 * 86_400
            api.redis.set(keys.job(api.category()["job"]), "of another type")
            assert api.teach("cat").status_code == 202
            assert api.http.delete("/categories/cat").status_code == 204

    def test_a_record_of_another_release_is_read(self, start) -> None:
        with start(worker=False) as api:
            record_of_a_job(api.redis, category=None, steps=None, created_at=None, id=None, priority='"high"')
            (job,) = api.http.get("/jobs").json()
            assert (job["id"], job["status"], job["category"], job["steps"]) == (LOST, "queued", None, 0)
            assert skipped(api) == []

    def test_a_list_of_jobs_of_another_type_does_not_stop_the_start(self, database, start) -> None:
        with Redis.from_url(database) as redis:
            redis.set(keys.JOBS, "x")
        with start() as api:
            assert api.http.get("/jobs").json() == []
            assert skipped(api) == [("job", "list of all jobs")]

    def test_a_key_of_a_retry_is_not_bound_to_it(self, start) -> None:
        with start(worker=False) as api:
            job = api.teach(headers={"Idempotency-Key": "k"}).json()["job"]["id"]
            api.redis.delete(*api.redis.keys("exemplar:idempotency:*"))
            api.redis.hset(keys.job(job), "status", "{{{")
            answer = api.teach(headers={"Idempotency-Key": "k"})
            assert answer.status_code == 202
            assert answer.json()["job"]["id"] != job
            assert api.category()["examples"] == 1


class TestCategories:
    def test_they_cost_themselves_alone(self, start, caplog) -> None:
        damages = {f"cat{number}": changes for number, changes in enumerate(JUNK_CATEGORIES.values())}
        with start() as api:
            for name in ("sofa", *damages):
                api.taught(name)
            for name, changes in damages.items():
                damage(api, name, **changes)
            for _ in range(2):
                assert [each["name"] for each in api.http.get("/categories").json()] == ["sofa"]
                answer = api.segment(refine="none")
                assert answer.status_code == 200
                assert [each["name"] for each in answer.json()["categories"]] == ["sofa"]
            found = api.segment(*damages, refine="none").json()["categories"]
            assert [(each["name"], each["adapted"], each["adapter_version"]) for each in found] == [
                (name, False, None) for name in damages
            ]
            assert sorted(skipped(api)) == [("category", name) for name in damages]
            assert counted(api, "category") == len(damages)
            for name, changes in damages.items():
                assert len(logged(caplog, f"category '{name}'")) == 1, changes
                for answer in (
                    api.http.get(f"/categories/{name}"),
                    api.http.get(f"/categories/{name}/adapter"),
                    api.http.get(f"/categories/{name}/examples"),
                    api.http.get(f"/categories/{name}/versions"),
                    api.http.post(f"/categories/{name}/rollback", json={"version": 1}),
                    api.teach(name),
                ):
                    assert answer.status_code == 409, (changes, answer.text)
                    assert "DELETE /categories/{name}" in answer.json()["detail"]
                assert api.http.delete(f"/categories/{name}").status_code == 204, changes
                assert left_of(api, name) == {keys.counters(name).encode()}
            assert (skipped(api), counted(api, "category")) == ([], 0)
            for name in damages:
                assert api.taught(name)["adapter_version"] == 2

    @pytest.mark.parametrize("key", [keys.category, keys.example_ids, keys.versions, keys.counters])
    def test_a_key_of_another_type_is_deleted_with_all_that_belongs_to_it(self, start, key) -> None:
        with start() as api:
            api.taught("cats")  # whose keys begin alike
            api.taught("cat")
            api.taught("cat", photo=api.photo_number(1))
            api.redis.delete(key("cat"))
            api.redis.set(key("cat"), "of another type")
            assert api.segment(refine="none").status_code == 200
            assert "cats" in [each["name"] for each in api.http.get("/categories").json()]
            if key is not keys.versions:  # its job says it, see below
                answer = api.teach("cat", photo=api.photo_number(2))
                assert answer.status_code == 409
                assert "delete" in answer.json()["detail"]
            assert api.http.delete("/categories/cat").status_code == 204
            assert api.http.delete("/categories/cat").status_code == 404
            assert left_of(api) == {keys.counters("cat").encode()}
            assert skipped(api) == []
            assert api.taught("cat")["status"] == "succeeded"
            assert api.category("cat")["examples"] == 1
            assert api.category("cats")["examples"] == 1

    def test_what_was_refused_changed_nothing(self, start) -> None:
        with start() as api:
            api.taught("cat")
            api.redis.hset(keys.counters("cat"), "generation", "junk")
            before = api.stored()
            assert api.teach("cat", photo=api.other_photo).status_code == 409
            assert api.teach("cat", mode="replace").status_code == 409
            (example,) = api.http.get("/categories/cat/examples").json()
            assert api.http.delete(f"/categories/cat/examples/{example['id']}").status_code == 409
            assert api.stored() == before
            assert api.http.delete("/categories/cat").status_code == 204
            assert api.taught("cat")["status"] == "succeeded"

    def test_a_counter_of_versions_that_is_no_number_is_no_outage(self, start) -> None:
        with start() as api:
            api.taught("cat")
            exported = api.http.get("/categories/cat/adapter").content
            api.redis.hset(keys.counters("cat"), "version", "junk")
            answer = api.http.put("/categories/cat/adapter", content=exported)
            assert (answer.status_code, "DELETE" in answer.json()["detail"]) == (409, True)
            job = api.wait(api.teach("cat", photo=api.other_photo).json()["job"]["id"])
            assert (job["status"], "DELETE" in job["error"]) == ("failed", True)
            assert api.http.delete("/categories/cat").status_code == 204
            assert api.taught("cat")["adapter_version"] > 1_700_000_000

    def test_a_list_of_versions_of_another_type_fails_the_job_that_says_what_to_do(self, start) -> None:
        with start() as api:
            api.taught("cat")
            api.redis.delete(keys.versions("cat"))
            api.redis.set(keys.versions("cat"), "of another type")
            job = api.wait(api.teach("cat", photo=api.other_photo).json()["job"]["id"])
            assert job["status"] == "failed"
            assert "DELETE /categories/{name}" in job["error"]

    def test_a_category_damaged_under_its_job_fails_it(self, start) -> None:
        with start(worker=False) as api:
            job = api.teach("cat").json()["job"]["id"]
            damage(api, prompts="{{{")
        with start() as api:
            ended = api.wait(job)
            assert ended["status"] == "failed"
            assert "can't be read" in ended["error"]

    def test_what_an_earlier_release_did_not_write(self, start) -> None:
        with start() as api:
            api.taught("cat")
            damage(api, created_at=None, prompts=None, generation=None, sha256_1=None)
            info = json.loads(api.redis.hget(keys.versions("cat"), 1))
            few = {"version": 1, "backbone": info["backbone"], "seen": [1]}  # and one field of a later release
            api.redis.hset(keys.versions("cat"), 1, json.dumps(few))
            adapter = api.category("cat")["adapter"]
            assert (adapter["version"], adapter["layers"], adapter["example_iou"]) == (1, [], 0)
            assert api.segment("cat", refine="none").json()["categories"][0]["adapter_version"] == 1
            assert api.http.get("/categories/cat/adapter").status_code == 200
            assert skipped(api) == []

    def test_what_another_replica_deleted_is_named_no_longer(self, start, start_on, database) -> None:
        with start() as api, start_on(database) as other:
            api.taught("cat")
            damage(api, prompts="{{{")
            assert api.http.get("/categories").json() == []
            assert other.http.delete("/categories/cat").status_code == 204
            assert (skipped(api), counted(api, "category")) == ([], 0)

    def test_the_list_of_categories_of_another_type_is_no_outage(self, start) -> None:
        with start(worker=False) as api:
            api.redis.set(keys.CATEGORIES, "of another type")
            answer = api.http.get("/categories")
            assert answer.status_code == 500
            assert "retry-after" not in answer.headers
            assert "another type" in answer.json()["detail"]


class TestAdapters:
    @pytest.fixture(params=["junk", "cut", "changed byte", "wrong type", "gone", "junk info", "info of numbers"])
    def damaged(self, request, start) -> Iterator[Any]:
        """The application with `cat`, whose second version can't be read."""
        with start() as api:
            api.taught("cat")
            api.taught("cat", photo=api.other_photo)
            key, info = keys.adapter("cat", 2), keys.versions("cat")
            raw = api.redis.get(key)
            match request.param:
                case "junk":
                    api.redis.set(key, b"\x00junk")
                case "cut":
                    api.redis.set(key, raw[:-3])
                case "changed byte":
                    api.redis.set(key, raw[:-1] + bytes([raw[-1] ^ 1]))
                case "wrong type":
                    api.redis.delete(key)
                    api.redis.rpush(key, "x")
                case "gone":
                    api.redis.delete(key)
                case "junk info":
                    api.redis.hset(info, "2", "{{{")
                case "info of numbers":
                    api.redis.hset(info, "2", '{"example_iou": NaN, "created_at": 7}')
            api.case = request.param
            yield api

    def test_its_category_goes_by_its_words_until_another_version_takes_its_place(self, damaged, caplog) -> None:
        api = damaged
        api.taught("sofa")
        for _ in range(2):
            cat, sofa = api.segment(refine="none").json()["categories"]
            assert (cat["adapted"], cat["adapter_version"]) == (False, None)
            assert "rollback" in cat["adapter_problem"]
            assert sofa["adapted"]
            assert "adapter_problem" not in sofa
        (words,) = api.segment("cat", refine="none", adapters="none").json()["categories"]
        assert words == {name: part for name, part in cat.items() if name != "adapter_problem"} | {
            name: words[name] for name in ("presence", "segmentation", "area", "bbox", "mean_probability")
        }
        if api.case != "gone":
            assert skipped(api) == [("adapter", "cat, version 2")]
            assert counted(api, "adapter") == 1
            assert len(logged(caplog, "version 2")) == 1

        refused = api.http.get("/categories/cat/adapter")
        assert refused.status_code == 409
        assert refused.headers["content-type"] == "application/problem+json"
        assert "rollback" in refused.json()["detail"]

        assert api.http.post("/categories/cat/rollback", json={"version": 1}).json()["adapter"]["version"] == 1
        (found,) = api.segment("cat", refine="none").json()["categories"]
        assert (found["adapted"], found["adapter_version"]) == (True, 1)
        assert api.http.get("/categories/cat/adapter").status_code == 200
        assert api.taught("cat")["adapter_version"] == 3
        (found,) = api.segment("cat", refine="none").json()["categories"]
        assert found["adapter_version"] == 3
        assert api.http.get("/categories/cat").status_code == 200

    def test_who_names_the_state_that_was_seen_may_change_it(self, damaged) -> None:
        """The adapter's file takes no part: neither the category's ETag nor a hash that is stored needs it."""
        api = damaged
        stale = {"If-Match": '"stale"'}
        assert api.http.post("/categories/cat/rollback", json={"version": 1}, headers=stale).status_code == 412
        seen = {"If-Match": api.http.get("/categories/cat").headers["etag"]}
        answer = api.http.post("/categories/cat/rollback", json={"version": 1}, headers=seen)
        assert answer.json()["adapter"]["version"] == 1
        exported = api.http.get("/categories/cat/adapter")
        api.redis.set(keys.adapter("cat", 1), b"junk")
        seen = {"If-Match": exported.headers["etag"]}
        answer = api.http.put("/categories/cat/adapter", content=exported.content, headers=seen)
        assert answer.json()["adapter"]["version"] == 3
        assert api.http.get("/categories/cat/adapter").status_code == 200
        api.redis.delete(keys.adapter("cat", 3))
        seen = {"If-Match": api.http.get("/categories/cat").headers["etag"]}
        assert api.http.delete("/categories/cat", headers=seen).status_code == 204

    @pytest.mark.parametrize("damage", [False, True], ids=["whole", "damaged"])
    def test_so_it_is_with_one_that_an_earlier_release_stored_without_its_hash(self, start, damage: bool) -> None:
        with start() as api:
            api.taught("cat")
            api.redis.hdel(keys.category("cat"), "sha256_1")
            exported = api.http.get("/categories/cat/adapter")
            if damage:
                api.redis.set(keys.adapter("cat", 1), b"junk")

            def put(**headers: str) -> int:
                answer = api.http.put("/categories/cat/adapter", content=exported.content, headers=headers)
                return int(answer.status_code)

            named = exported.headers["etag"]
            assert put(**{"If-Match": '"stale"'}) == 412
            assert put(**{"If-Match": named}) == (412 if damage else 200)
            if damage:
                assert put(**{"If-Match": api.http.get("/categories/cat").headers["etag"]}) == 200
                assert put(**{"If-None-Match": api.http.get("/categories/cat").headers["etag"]}) == 412

    def test_a_description_that_cannot_be_read_is_not_listed_and_not_rolled_back_to(self, start) -> None:
        with start() as api:
            api.taught("cat")
            api.taught("cat", photo=api.other_photo)
            api.redis.hset(keys.versions("cat"), mapping={"1": "{{{", "junk": "{}"})
            assert [each["version"] for each in api.http.get("/categories/cat/versions").json()] == [2]
            answer = api.http.post("/categories/cat/rollback", json={"version": 1})
            assert (answer.status_code, api.category("cat")["adapter"]["version"]) == (404, 2)
            assert set(skipped(api)) == {("adapter", "cat, version 1"), ("adapter", "cat, version junk")}
            assert api.taught("cat", photo=api.photo_number(3))["adapter_version"] == 3

    def test_it_is_read_again_once_it_is_mended(self, start) -> None:
        with start() as api:
            api.taught("cat")
            raw = api.redis.get(keys.adapter("cat", 1))
            api.redis.set(keys.adapter("cat", 1), b"junk")
            assert not api.segment("cat", refine="none").json()["categories"][0]["adapted"]
            api.redis.set(keys.adapter("cat", 1), raw)
            assert api.segment("cat", refine="none").json()["categories"][0]["adapter_version"] == 1
            assert skipped(api) == []


class TestExamples:
    @pytest.mark.parametrize(
        "changes", [{"width": "wide"}, {"area": None}, {"sha256": b"\xff"}, {"media_type": "image/\n"}], ids=repr
    )
    def test_one_of_them_is_not_listed_and_can_be_deleted(self, start, changes) -> None:
        with start() as api:
            api.taught("cat")
            api.taught("cat", photo=api.other_photo)
            first, second = (each["id"] for each in api.http.get("/categories/cat/examples").json())
            for name, raw in changes.items():
                if raw is None:
                    api.redis.hdel(keys.example("cat", first), name)
                else:
                    api.redis.hset(keys.example("cat", first), name, raw)
            for _ in range(2):
                assert [each["id"] for each in api.http.get("/categories/cat/examples").json()] == [second]
            assert skipped(api) == [("example", f"cat, example {first}")]
            for file in ("image", "mask"):
                answer = api.http.get(f"/categories/cat/examples/{first}/{file}")
                assert answer.status_code == 409
                assert "DELETE" in answer.json()["detail"]
            failed = api.wait(api.teach("cat").json()["job"]["id"])
            assert (failed["status"], first in failed["error"]) == ("failed", True)
            job = api.http.delete(f"/categories/cat/examples/{first}").json()["job"]["id"]
            assert api.wait(job)["status"] == "succeeded"
            assert skipped(api) == []

    def test_a_key_of_another_type(self, start) -> None:
        with start() as api:
            api.taught("cat")
            api.taught("cat", photo=api.other_photo)
            first, second = (each["id"] for each in api.http.get("/categories/cat/examples").json())
            api.redis.delete(keys.example("cat", first))
            api.redis.set(keys.example("cat", first), "x")
            assert [each["id"] for each in api.http.get("/categories/cat/examples").json()] == [second]
            assert api.http.get(f"/categories/cat/examples/{first}/image").status_code == 409
            job = api.http.delete(f"/categories/cat/examples/{first}").json()["job"]["id"]
            assert api.wait(job)["status"] == "succeeded"
            assert skipped(api) == []


class TestRanking:
    @pytest.mark.parametrize("junk", ["{{{", '{"images": 2, "infoscore": [1], "entropy_ratio": [1], "cov": [1]}'])
    def test_without_it_the_default_layers_are_read(self, start, tiny, junk) -> None:
        with start() as api:
            layers = api.segment("cat", refine="none").json()["layers"]
            api.redis.set(keys.layer_ranking(tiny.revision), junk)
            assert api.segment("cat", refine="none").json()["layers"] == layers
            assert {each["chosen_by"] for each in api.http.get("/layers").json()} == {"default"}
            job = api.http.post("/layers/rank", files={"images": api.photo}).json()["job"]["id"]
            assert api.wait(job)["status"] == "succeeded"
            assert skipped(api) == []
