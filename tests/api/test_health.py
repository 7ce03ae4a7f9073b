"""Liveness, readiness, metrics."""

from __future__ import annotations

import threading
import time

from prometheus_client.parser import text_string_to_metric_families


def samples(api) -> dict[tuple[str, frozenset], float]:
    text = api.http.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(api, name: str, **labels: str) -> float:
    return samples(api).get((name, frozenset(labels.items())), 0.0)


class TestHealth:
    def test_the_process_answers(self, api) -> None:
        started = time.monotonic()
        answer = api.http.get("/healthz")
        assert answer.json() == {"status": "ok"}
        assert time.monotonic() - started < 1

    def test_it_is_ready_when_warm_and_the_store_takes_writes(self, api) -> None:
        answer = api.http.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "reasons": [], "unreadable": []})
        assert value(api, "exemplar_ready") == 1
        assert value(api, "exemplar_redis_up") == 1
        assert 0 < api.redis.pttl("exemplar:probe") <= 1000

    def test_without_writes_it_is_not_ready_and_says_why(self, api, valkey) -> None:
        api.redis.config_set("maxmemory", "1")
        try:
            answer = api.http.get("/readyz")
            assert value(api, "exemplar_ready") == 0
            assert value(api, "exemplar_redis_up") == 0
        finally:
            api.redis.config_set("maxmemory", "0")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["content-type"] == "application/problem+json"
        reply = "command not allowed when used memory > 'maxmemory'"
        assert answer.json()["detail"] == f"The store does not take writes: {reply}."
        assert api.http.get("/readyz").status_code == 200

    def test_a_full_queue_and_a_cold_model_are_reasons(self, start, tiny) -> None:
        class Slow:
            """The tiny model, held up at its first use."""

            held = threading.Event()
            busy = threading.Event()

            def __getattr__(self, name: str) -> object:
                return getattr(tiny, name)

            def preprocess(self, photo):
                self.busy.set()
                self.held.wait(10)
                return tiny.preprocess(photo)

        slow = Slow()
        slow.held.set()
        with start(loaded=[slow], queue_limit=1) as api:
            slow.held.clear()
            slow.busy.clear()
            at_work, waiting = requests = [threading.Thread(target=api.segment, args=("cat",)) for _ in range(2)]
            at_work.start()
            assert slow.busy.wait(10)  # else the second might find it in the queue, and be refused
            waiting.start()
            while value(api, "exemplar_queue_depth", backbone="tiny") < 1:
                time.sleep(0.01)
            answer = api.http.get("/readyz")
            slow.held.set()
            for request in requests:
                request.join()
            assert answer.status_code == 503
            assert answer.json()["detail"] == "The queue of tiny is full."
            assert api.http.get("/readyz").status_code == 200
            (model,) = api.http.app_state["service"].models
            model.warm = False
            assert api.http.get("/readyz").json()["detail"] == "The model tiny is not warm yet."


class TestMetrics:
    def test_requests_are_counted_by_route_never_by_category(self, api) -> None:
        api.taught("cat")
        api.category("cat")
        api.category("nobody")
        api.http.get("/nowhere")
        api.http.get("/nowhere/else")
        api.http.delete("/healthz")
        api.http.request("BREW", "/healthz")
        route = "/categories/{name}"
        assert value(api, "exemplar_requests_total", route=route, method="GET", status="200") == 1
        assert value(api, "exemplar_requests_total", route=route, method="GET", status="404") == 1
        teach = {"route": "/categories/{name}/example", "method": "POST"}
        assert value(api, "exemplar_requests_total", status="202", **teach) == 1
        assert value(api, "exemplar_request_duration_seconds_count", **teach) == 1
        assert value(api, "exemplar_requests_total", route="none", method="GET", status="404") == 2
        text = api.http.get("/metrics").text
        assert 'cat"' not in text
        assert "nobody" not in text
        assert "BREW" not in text

    def test_content_type(self, api) -> None:
        assert api.http.get("/metrics").headers["content-type"].startswith("text/plain; version=1.0.0")

    def test_jobs_are_counted_by_outcome(self, start) -> None:
        with start(tune_steps=100_000, job_concurrency=1) as api:
            first, second, third = (api.teach("cat", photo=api.photo_number(n)).json()["job"]["id"] for n in range(3))
            api.wait_running(third)
            assert value(api, "exemplar_jobs_running", kind="tune") == 1
            fourth = api.teach("dog").json()["job"]["id"]
            for job in (third, fourth):
                api.http.delete(f"/jobs/{job}")
            deadline = time.monotonic() + 10
            while value(api, "exemplar_jobs_running", kind="tune"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert {api.job(job)["status"] for job in (first, second)} == {"superseded"}
            assert value(api, "exemplar_jobs_total", kind="tune", outcome="superseded") == 2
            assert value(api, "exemplar_jobs_total", kind="tune", outcome="cancelled") == 2
            assert value(api, "exemplar_jobs_total", kind="tune", outcome="succeeded") == 0

    def test_a_segmentation_is_timed_by_stage(self, api) -> None:
        timings = api.segment("cat").json()["timings_ms"]
        for stage in timings:
            labels = {"backbone": "tiny", "stage": stage}
            assert value(api, "exemplar_inference_duration_seconds_count", **labels) == 1
        assert value(api, "exemplar_queue_wait_seconds_count", backbone="tiny", kind="segment") == 1

    def test_what_is_loaded(self, api, tiny) -> None:
        assert value(api, "exemplar_backbone_warm", backbone="tiny", revision=tiny.revision) == 1
        assert value(api, "exemplar_backbone_memory_bytes", backbone="tiny", device="cpu") == tiny.memory_bytes
        assert any(name == "exemplar_build_info" and number == 1 for (name, _), number in samples(api).items())

    def test_what_teaching_brought_is_told_without_the_category(self, api) -> None:
        api.taught("cat")
        api.segment("cat", "sofa")
        assert value(api, "exemplar_category_requests_total") == 1
        assert value(api, "exemplar_example_gain_count") == 1

    def test_categories_are_told_apart_up_to_a_cap_if_that_is_wanted(self, start) -> None:
        with start(metrics_categories=2) as api:
            for name in ("cat", "dog", "cow"):
                api.taught(name)
            api.segment("cat", "cow", "sofa")
            api.segment("cow", "dog")
            asked = {
                name: value(api, "exemplar_category_requests_total", category=name)
                for name in ("cat", "dog", "cow", "sofa", "other")
            }
            assert asked == {"cat": 1, "dog": 1, "cow": 0, "sofa": 0, "other": 2}
            for name in ("cat", "dog", "other"):
                assert value(api, "exemplar_example_gain_count", category=name) == 1
