"""Read, follow and cancel jobs; jobs whose category changes while they run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from app.main import create_app
from app.settings import Settings
from app.storage import jobs as jobs_module
from app.storage import keys
from tests.conftest import Api
from tests.served import served

LONG = 100_000  # steps: minutes, unless it is stopped


class TestLooking:
    def test_a_job_by_its_id(self, api) -> None:
        job = api.taught("cat")
        assert api.http.get(f"/jobs/{job['id']}").json() == job

    def test_jobs_are_listed_the_newest_first_and_filtered(self, start) -> None:
        with start(worker=False) as api:
            cats = [api.teach("cat", photo=api.photo_number(n)).json()["job"]["id"] for n in range(2)]
            dog = api.teach("dog").json()["job"]["id"]

            def listed(query: str) -> list[str]:
                return [job["id"] for job in api.http.get(f"/jobs{query}").json()]

            assert listed("") == [dog, *cats[::-1]]
            assert listed("?category=CAT") == cats[::-1]
            assert listed("?status=queued") == [dog, cats[1]]
            assert listed("?status=superseded&category=cat") == [cats[0]]
            assert listed("?category=bird") == []

    def test_an_unknown_job(self, api) -> None:
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            answer = api.http.request(method, f"/jobs/none{path}")
            assert answer.status_code == 404
            assert answer.json()["errors"][0]["field"] == "id"

    def test_an_ended_job_is_forgotten_after_its_time(self, start) -> None:
        with start(job_ttl_s=60) as api:
            job = api.taught("cat")
            assert 0 < api.redis.ttl(f"exemplar:job:{job['id']}") <= 60
            api.redis.delete(f"exemplar:job:{job['id']}")
            assert api.http.get("/jobs").json() == []
            assert not api.redis.exists("exemplar:jobs")


class TestFollowing:
    def test_events_are_the_job_at_every_change_and_end_with_its_end(self, start) -> None:
        with start(tune_steps=30) as api:
            job = api.teach("cat").json()["job"]
            events = api.follow(job["id"])
            assert all(event.keys() == job.keys() for event in events)
            assert events[-1] == api.job(job["id"])
            assert events[-1]["status"] == "succeeded"
            assert all(event["status"] in ("queued", "running") for event in events[:-1])
            assert len({event["step"] for event in events}) > 3
            progress = [event["progress"] for event in events]
            assert progress == sorted(progress)
            assert all(event["progress"] == round(event["step"] / 30, 4) for event in events)
            assert all(event["loss"] is not None for event in events if event["step"])

    def test_of_an_ended_job_there_is_one_event(self, api) -> None:
        job = api.taught("cat")
        assert api.follow(job["id"]) == [job]

    def test_events_end_when_the_job_is_cancelled(self, start) -> None:
        with start(tune_steps=LONG) as api, ThreadPoolExecutor() as pool:
            job = api.teach("cat").json()["job"]
            following = pool.submit(api.follow, job["id"])
            api.wait_running(job["id"])
            api.http.delete(f"/jobs/{job['id']}")
            assert following.result()[-1]["status"] == "cancelled"

    def test_one_stream_too_many_is_told_when_to_come_again(self, start, monkeypatch) -> None:
        monkeypatch.setattr(jobs_module, "MAX_STREAMS", 2)
        with start(worker=False) as api, ThreadPoolExecutor() as pool:
            job = api.teach("cat").json()["job"]["id"]
            following = [pool.submit(api.follow, job) for _ in range(2)]
            deadline = time.monotonic() + 10
            while api.redis.pubsub_numsub(keys.job_channel(job))[0][1] < 2:
                assert time.monotonic() < deadline
            refused = api.http.get(f"/jobs/{job}/events")
            assert refused.status_code == 503
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.json()["title"] == "Overloaded"
            assert refused.headers["retry-after"]
            api.http.delete(f"/jobs/{job}")
            assert [stream.result()[-1]["status"] for stream in following] == ["cancelled"] * 2
            assert api.follow(job)[-1]["status"] == "cancelled"


class TestCancelling:
    def test_a_queued_job(self, start) -> None:
        with start(worker=False) as api:
            job = api.teach("cat").json()["job"]
            answer = api.http.delete(f"/jobs/{job['id']}")
            assert answer.status_code == 200
            assert answer.json() == api.job(job["id"])
            assert answer.json()["status"] == "cancelled"
            assert answer.json()["finished_at"]
        with start() as api:
            api.taught("dog")
            assert api.job(job["id"]) == answer.json()
            assert api.category("cat")["adapter"] is None

    def test_a_running_job_stops_and_changes_nothing(self, start) -> None:
        with start(tune_steps=LONG, job_concurrency=1) as api:
            job = api.teach("cat").json()["job"]
            api.wait_running(job["id"])
            cancelled = api.http.delete(f"/jobs/{job['id']}").json()
            assert cancelled["status"] == "cancelled"
            # The only worker is free again.
            api.wait_running(api.teach("dog").json()["job"]["id"])
            assert api.job(job["id"]) == cancelled
            assert api.category("cat")["adapter"] is None

    def test_an_ended_job(self, api) -> None:
        job = api.taught("cat")
        before = api.stored()
        answer = api.http.delete(f"/jobs/{job['id']}")
        assert answer.status_code == 409
        assert "succeeded" in answer.json()["detail"]
        assert api.stored() == before

    def test_after_cancelling_the_category_can_be_taught_again(self, start) -> None:
        with start(worker=False) as api:
            job = api.teach("cat").json()["job"]
            api.http.delete(f"/jobs/{job['id']}")
        with start() as api:
            assert api.taught("cat", photo=api.other_photo)["adapter_version"] == 1
            assert api.category("cat")["examples"] == 2


class TestSuperseding:
    @pytest.mark.parametrize("running", [True, False], ids=["running", "queued"])
    def test_a_newer_example_takes_over(self, start, running) -> None:
        with start(tune_steps=LONG, worker=running) as api:
            first = api.teach("cat").json()["job"]["id"]
            if running:
                api.wait_running(first)
            second = api.teach("cat", photo=api.other_photo).json()["job"]["id"]
            assert api.job(first)["status"] == "superseded"
            assert "newer example" in api.job(first)["error"]
            assert api.category("cat")["job"] == second
            if running:
                api.wait_running(second)
            assert api.category("cat")["adapter"] is None

    def test_only_the_last_of_many_examples_at_once_succeeds(self, api) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: api.teach("cat", photo=api.photo_number(n)), range(8)))
        jobs = [api.wait(answer.json()["job"]["id"]) for answer in answers]
        last = api.category("cat")["job"]
        assert api.category("cat")["examples"] == 8
        assert {job["status"] for job in jobs if job["id"] != last} <= {"superseded", "succeeded"}
        assert api.job(last)["status"] == "succeeded"
        assert api.job(last)["adapter_version"] == api.category("cat")["adapter"]["version"]

    @pytest.mark.parametrize("running", [True, False], ids=["running", "queued"])
    def test_a_deleted_categorys_job(self, start, running) -> None:
        with start(tune_steps=LONG, worker=running) as api:
            job = api.teach("cat").json()["job"]["id"]
            if running:
                api.wait_running(job)
            assert api.http.delete("/categories/cat").status_code == 204
            assert api.wait(job)["status"] == "superseded"
            assert api.http.get("/categories/cat").status_code == 404
        with start() as api:
            assert api.taught("cat")["status"] == "succeeded"
            assert api.category("cat")["examples"] == 1

    def test_a_deleted_examples_job(self, start) -> None:
        with start(tune_steps=LONG) as api:
            job = api.teach("cat").json()["job"]["id"]
            api.wait_running(job)
            (example,) = api.http.get("/categories/cat/examples").json()
            assert api.http.delete(f"/categories/cat/examples/{example['id']}").status_code == 204
            assert api.wait(job)["status"] == "superseded"


class TestIdempotencyKey:
    def test_is_not_that_of_a_category_whose_name_looks_quoted(self, database, tiny, tmp_path) -> None:
        settings = Settings(redis_url=database, data_dir=tmp_path, worker=False, threads=1)
        sent, key = {"image": Api.photo, "mask": Api.mask}, {"Idempotency-Key": "k"}
        # Over a socket: the test client decodes a path twice.
        with served(create_app(settings, loaded=[tiny])) as url:
            for path, status in (("col%3Fx", 202), ("col%253Fx", 422)):
                answer = httpx2.post(f"{url}/categories/{path}/example", files=sent, headers=key)
                assert answer.status_code == status, answer.text

    def test_a_retry_gets_the_first_answer_and_teaches_once(self, start) -> None:
        with start(worker=False) as api:
            first, second = (api.teach(headers={"Idempotency-Key": "k"}) for _ in range(2))
            assert (first.status_code, first.json(), first.headers["location"]) == (
                second.status_code, second.json(), second.headers["location"],
            )  # fmt: skip
            assert api.category()["examples"] == 1
            assert len(api.http.get("/jobs").json()) == 1

    @pytest.mark.parametrize(
        "other",
        [
            {"mode": "replace"},
            {"prompts": ["kitten"]},
            {"box": "[1, 2, 3, 4]"},
            {"name": "dog"},
            {"photo": "other"},
        ],
        ids=lambda other: next(iter(other)),
    )
    def test_other_content_under_the_same_key(self, start, other) -> None:
        with start(worker=False) as api:
            if "photo" in other:
                other = {"photo": api.other_photo}
            api.teach(headers={"Idempotency-Key": "k"})
            before = api.stored()
            answer = api.teach(headers={"Idempotency-Key": "k"}, **other)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
            assert api.stored() == before

    def test_two_at_once_teach_once(self, start) -> None:
        with start(worker=False) as api, ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: api.teach(headers={"Idempotency-Key": "k"}), range(8)))
            assert {answer.status_code for answer in answers} <= {202, 409}
            assert len({answer.text for answer in answers if answer.status_code == 202}) == 1
            assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 409)
            assert api.category()["examples"] == 1

    def test_a_refused_request_leaves_the_key_free(self, start) -> None:
        with start(worker=False) as api:
            before = api.stored()
            assert api.teach(photo=b"no photo", headers={"Idempotency-Key": "k"}).status_code == 422
            assert api.stored() == before
            assert api.teach(headers={"Idempotency-Key": "k"}).status_code == 202

    @pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
    def test_a_key_that_is_none(self, api, key) -> None:
        answer = api.teach(headers={"Idempotency-Key": key})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "Idempotency-Key"

    def test_ranking_has_it_too(self, start) -> None:
        with start(worker=False) as api:

            def rank(photo: bytes) -> object:
                return api.http.post("/layers/rank", files={"images": photo}, headers={"Idempotency-Key": "k"})

            first, second, third = rank(api.photo), rank(api.photo), rank(api.other_photo)
            assert first.json() == second.json()
            assert third.status_code == 422
            assert len(api.http.get("/jobs").json()) == 1


class TestRequestsBesideJobs:
    def test_requests_do_not_wait_for_a_job(self, start) -> None:
        with start(tune_steps=LONG) as api:
            jobs = [api.teach(name).json()["job"]["id"] for name in ("cat", "dog")]
            for job in jobs:
                api.wait_running(job)
            started = time.monotonic()
            for _ in range(5):
                assert api.segment("cat", refine="none").status_code == 200
            assert time.monotonic() - started < 10
            assert all(api.job(job)["status"] == "running" for job in jobs)

    def test_more_requests_than_may_wait_are_told_when_to_come_again(self, start) -> None:
        with start(tune_steps=LONG, queue_limit=1) as api, ThreadPoolExecutor(16) as pool:
            api.wait_running(api.teach("cat").json()["job"]["id"])
            answers = list(pool.map(lambda _: api.segment("cat", refine="none"), range(48)))
            refused = [answer for answer in answers if answer.status_code == 503]
            assert {answer.status_code for answer in answers} == {200, 503}
            assert all(answer.headers["retry-after"] == "1" for answer in refused)
            assert refused[0].json()["title"] == "Overloaded"
            lines = api.http.get("/metrics").text.splitlines()
            assert f'exemplar_rejected_total{{reason="queue_full"}} {len(refused)}.0' in lines
            assert api.http.get("/readyz").status_code == 200
