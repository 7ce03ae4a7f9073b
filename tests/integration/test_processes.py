"""Real processes: stopped, killed, restarted, and several at once."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from app.storage.server import EmbeddedServer
from tests.backbones import albef_model

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0

pytestmark = pytest.mark.timeout(300)  # each starts processes, which import torch
LONG = "100000"
ENDED = {"succeeded", "failed", "cancelled", "superseded"}


class Process:
    """A running command of ours with its log."""

    def __init__(self, child: subprocess.Popen[bytes], log: Path) -> None:
        self.child = child
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, pattern: str) -> str:
        """The pattern's group when the log has it."""
        deadline = time.monotonic() + DEADLINE_S
        while not (match := re.search(pattern, self.log)):
            assert self.child.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)
        return match.group(1)

    def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit code."""
        self.child.send_signal(number)
        return self.child.wait(DEADLINE_S)


class Service:
    """A running service and its client."""

    def __init__(self, process: Process) -> None:
        self.process = process
        url = process.wait_for_log(r"running on (http://\S+)")
        self.http = httpx2.Client(base_url=url, timeout=DEADLINE_S)

    def teach(self, name: str, photo: bytes, mask: bytes) -> str:
        answer = self.http.post(f"/categories/{name}/example", files={"image": photo, "mask": mask})
        assert answer.status_code == 202, answer.text
        return answer.json()["job"]["id"]

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def wait(self, job_id: str, until: Callable[[dict], bool] = lambda job: job["status"] in ENDED) -> dict:
        deadline = time.monotonic() + DEADLINE_S
        while not until(job := self.http.get(f"/jobs/{job_id}").json()):
            assert time.monotonic() < deadline, (job, self.process.log)
            time.sleep(0.05)
        return job


Run = Callable[..., Process]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts `python -m app …` with settings; whatever still runs at the end is killed, the embedded server too."""
    started: list[Process] = []
    data_dir = tmp_path / "var"

    def command(*words: str, **settings: str) -> Process:
        defaults = {
            "data_dir": str(data_dir), "threads": "1", "port": "0", "tune_steps": "3",
        }  # fmt: skip
        log = tmp_path / f"{len(started)}.log"
        with log.open("wb") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "app", *words], cwd=REPOSITORY, env=environment(defaults | settings),
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        started.append(Process(child, log))
        return started[-1]

    yield command
    for process in started:
        process.child.kill()
        process.child.wait()
    if (data_dir / "server.lock").exists():
        EmbeddedServer.start(data_dir).stop()


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random model, whose steps take milliseconds. It takes longer to start than the embedded one."""
    return albef_model.write(tmp_path_factory.mktemp("model") / "tiny", patch_px=48)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("EXEMPLAR_")}
    return outer | {f"EXEMPLAR_{name.upper()}": value for name, value in settings.items()}


@contextmanager
def serving(run: Run, **settings: str) -> Iterator[Service]:
    service = Service(run("serve", **settings))
    with service.http:
        yield service


@pytest.fixture(scope="module")
def photo() -> bytes:
    return (REPOSITORY / "examples" / "teacup.jpg").read_bytes()


@pytest.fixture(scope="module")
def mask() -> bytes:
    return (REPOSITORY / "examples" / "teacup_mask.png").read_bytes()


def test_a_job_outlives_sigterm_and_kill_9_and_nothing_acknowledged_is_lost(run, fast, photo, mask) -> None:
    with serving(run, tune_steps=LONG, backbone=fast) as service:
        job_id = service.teach("cup", photo, mask)
        service.wait(job_id, lambda job: job["step"] > 0)
        assert service.process.end(signal.SIGTERM) == 0
        assert "given back" in service.process.log
        assert "Traceback" not in service.process.log

    with serving(run, tune_steps=LONG, job_redelivery_s="1", backbone=fast) as service:
        service.wait(job_id, lambda job: job["status"] == "running" and job["step"] > 0)
        assert service.metric("exemplar_job_redeliveries_total") == 0
        others = [service.teach(f"other {n}", photo, mask) for n in range(3)]
        service.process.end(signal.SIGKILL)

    with serving(run, job_redelivery_s="1", backbone=fast) as service:
        names = [category["name"] for category in service.http.get("/categories").json()]
        assert names == ["cup", "other 0", "other 1", "other 2"]
        for one in (job_id, *others):
            assert service.wait(one)["status"] == "succeeded"
        for name in names:
            (example,) = service.http.get(f"/categories/{name}/examples").json()
            assert service.http.get(f"/categories/{name}/examples/{example['id']}/image").content == photo
            assert service.http.get(f"/categories/{name}").json()["adapter"]["version"] == 1
        assert service.metric("exemplar_job_redeliveries_total") >= 1
        assert service.process.end(signal.SIGINT) == 0
        assert "Traceback" not in service.process.log


def test_a_worker_beside_a_service_without_one(run, database, photo, mask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    worker = run("worker", redis_url=database, metrics_port=str(port))
    with serving(run, redis_url=database, worker="false") as service:
        assert service.wait(service.teach("cup", photo, mask))["status"] == "succeeded"
        assert service.metric("exemplar_job_duration_seconds_count", kind="tune") == 0
        found = service.http.post("/segment", files={"image": photo}, data={"categories": "cup"}).json()
        assert found["categories"][0]["adapted"] is True
        told = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'exemplar_jobs_total{kind="tune",outcome="succeeded"} 1.0' in told
        # Nobody asks a worker for `/readyz`, and an alert is critical while one of these is 0.
        deadline = time.monotonic() + DEADLINE_S
        while not {"exemplar_ready 1.0", "exemplar_redis_up 1.0"} <= {*told.splitlines()}:
            assert time.monotonic() < deadline, told
            time.sleep(0.5)
            told = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert worker.end(signal.SIGTERM) == 0
        assert "Traceback" not in worker.log
        job_id = service.teach("another cup", photo, mask)
        time.sleep(0.5)
        assert service.http.get(f"/jobs/{job_id}").json()["status"] == "queued"


def test_a_team_with_keys_on_the_command_line(run) -> None:
    made = subprocess.run([sys.executable, "-m", "app", "key", "teach"], cwd=REPOSITORY, capture_output=True, text=True)
    key, setting = (line.split()[1] for line in made.stdout.splitlines())
    examples = REPOSITORY / "examples"
    with serving(run, api_keys=setting) as service:
        url = str(service.http.base_url)
        files = (str(examples / "teacup.jpg"), str(examples / "teacup_mask.png"))
        stranger = run("register", "cup", *files, "--url", url)
        assert stranger.child.wait(DEADLINE_S) == 1
        assert "--key" in stranger.log
        assert "Traceback" not in stranger.log
        member = run("register", "cup", *files, "--url", url, api_key=key)
        assert member.child.wait(DEADLINE_S) == 0, member.log
        assert "version 1" in member.log
        found = run("segment", files[0], "--url", url, "--key", key)
        assert found.child.wait(DEADLINE_S) == 0, found.log
        assert "cup" in found.log
        nowhere = run("segment", files[0], "--url", url, "--overlay", "/no/such/folder/x.png", api_key=key)
        assert nowhere.child.wait(DEADLINE_S) == 1
        assert "there is no folder /no/such/folder" in nowhere.log.replace("\n", " ")
        assert "Traceback" not in nowhere.log
        photos = [str(photo) for photo in sorted(examples.glob("*.jpg"))]
        several = [photos[0], str(examples / "README.md"), *photos[1:]]
        lines = run("segment", *several, "--category", "cup", "--json", "--url", url, api_key=key)
        assert lines.child.wait(DEADLINE_S) == 1
        told = [json.loads(line) for line in lines.log.splitlines() if line.startswith("{")]
        assert sorted(line["index"] for line in told) == list(range(10))
        assert [line["filename"] for line in told if "problem" in line] == [several[1]]
        assert "Traceback" not in lines.log


def test_ten_clients_at_once(run, fast, photo, mask) -> None:
    def session(service: Service, number: int) -> list[int]:
        name = f"client {number}"
        job_id = service.teach(name, photo, mask)
        answers = [
            service.http.post("/segment", files={"image": photo}, data={"categories": [name, "sky"], "refine": "none"})
            for _ in range(3)
        ]
        assert service.wait(job_id)["status"] == "succeeded"
        found = service.http.post("/segment", files={"image": photo}, data={"categories": name}).json()["categories"]
        assert found[0]["adapter_version"] == 1
        return [answer.status_code for answer in answers]

    with serving(run, backbone=fast) as service, ThreadPoolExecutor(10) as pool:
        second = run("serve")
        answers = [status for statuses in pool.map(partial(session, service), range(10)) for status in statuses]
        assert answers == [200] * 30
        assert len(service.http.get("/categories").json()) == 10
        assert service.http.get("/readyz").status_code == 200
        refuses_a_body_without_length(service, photo)
        streams_events(service, photo, mask)
        assert second.child.wait(DEADLINE_S) == 1
        assert re.search(r"Error:.*is in use by process \d+.*EXEMPLAR_DATA_DIR", second.log, re.DOTALL)
        assert "Traceback" not in second.log


def refuses_a_body_without_length(service: Service, photo: bytes) -> None:
    """Over a real socket: sent in pieces, with the last one over the limit of 41 MiB."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    pieces = (piece for piece in [head, photo, *[bytes(1 << 20)] * 42])
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = service.http.post("/segment", content=pieces, headers=kind)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


def streams_events(service: Service, photo: bytes, mask: bytes) -> None:
    """Events come one by one, not all at the end."""
    service.http.delete("/categories/client 0")
    job_id = service.teach("client 0", photo, mask)
    with service.http.stream("GET", f"/jobs/{job_id}/events") as stream:
        events = (line for line in stream.iter_lines() if line.startswith("data:"))
        next(events)
        assert service.http.get(f"/jobs/{job_id}").json()["status"] in ("queued", "running")
        *between, last = events
    assert '"status":"succeeded"' in last
    assert between


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that takes spans over OTLP."""
    with Collector() as running:
        yield running


class Collector(ThreadingHTTPServer):
    """Takes spans over OTLP/HTTP and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Takes)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.spans: list[tuple[str, Span]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def one(self, name: str) -> Span:
        (found,) = (span for _, span in self.spans if span.name == name)
        return found


class _Takes(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        sent = ExportTraceServiceRequest.FromString(
            gzip.decompress(body) if self.headers.get("content-encoding") else body
        )
        for resource in sent.resource_spans:
            (service,) = (a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.server.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not in the test's output."""


def test_a_trace_goes_from_the_request_to_the_stages_and_to_the_job(
    run, fast, collector, monkeypatch, photo, mask
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with serving(run, backbone=fast) as service:
        assert service.wait(service.teach("cup", photo, mask))["status"] == "succeeded"
        answer = service.http.post("/segment", files={"image": photo}, data={"categories": "cup"})
        assert answer.status_code == 200, answer.text
        service.http.get("/metrics")
        assert service.process.end(signal.SIGTERM) == 0
    assert {name for name, _ in collector.spans} == {"exemplar"}
    request, on_lane = collector.one("POST /segment"), collector.one("segment on the lane")
    for name in ("load", "resize", "masks", on_lane.name):
        assert collector.one(name).parent_span_id == request.span_id
    for name in ("preprocess", "encode_image", "attend", "refine"):
        assert collector.one(name).parent_span_id == on_lane.span_id
    ids = {a.key: a.value.string_value for a in request.attributes}
    assert ids["exemplar.request_id"] == answer.headers["x-request-id"]
    taught = collector.one("POST /categories/{name}/example")
    steps = [span for _, span in collector.spans if span.name == "tune on the lane"]
    assert len(steps) >= 3
    (job,) = (span for _, span in collector.spans if taught.trace_id in {link.trace_id for link in span.links})
    assert {step.trace_id for step in steps} == {job.trace_id}
    assert not any("metrics" in span.name for _, span in collector.spans)


def test_behind_a_proxy_and_without_a_collector_that_answers(run, monkeypatch, photo, mask) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving(run, root_path="/team/x") as service:
        names_what_callers_reach(service, photo, mask)
        ends_a_batch_that_its_caller_leaves(service, photo)
        assert service.http.post("/segment", files={"image": photo}, data={"categories": "cup"}).status_code == 200
        began = time.monotonic()
        assert service.process.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 20
        assert "Traceback" not in service.process.log


def names_what_callers_reach(service: Service, photo: bytes, mask: bytes) -> None:
    """The proxy takes a prefix off, which answers have."""
    answer = service.http.post("/categories/cup/example", files={"image": photo, "mask": mask})
    job_id = answer.json()["job"]["id"]
    assert answer.headers["location"] == f"/team/x/jobs/{job_id}"
    assert service.wait(job_id)["status"] == "succeeded"
    assert "/team/x/openapi.json" in service.http.get("/docs").text


def ends_a_batch_that_its_caller_leaves(service: Service, photo: bytes) -> None:
    """Of sixty photos a few are segmented, until nothing is in flight but the request that asks."""
    many = [("images", (f"{number}.jpg", photo)) for number in range(60)]
    with service.http.stream("POST", "/segment/batch", files=many, data={"categories": "cup"}) as answer:
        assert "image" in json.loads(next(answer.iter_lines()))
    deadline = time.monotonic() + DEADLINE_S
    while service.metric("exemplar_inflight_requests") > 1 or service.metric("exemplar_queue_depth") > 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begun = service.metric("exemplar_queue_wait_seconds_count", kind="segment")
    time.sleep(0.5)
    assert service.metric("exemplar_queue_wait_seconds_count", kind="segment") == begun < 60
