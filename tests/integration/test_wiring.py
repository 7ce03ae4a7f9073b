"""Settings become live objects, or an error of one sentence that names the setting."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prometheus_client import generate_latest
from pydantic import ValidationError

from app import wiring
from app.errors import AppError, InvalidInputError, UnavailableError
from app.method.tuning import PAPER, TUNED
from app.metrics import Metrics
from app.services import health
from app.services.job_engine import JobEngine
from app.settings import Settings
from app.storage.breaker import StoreAwayError
from app.storage.jobs import MAX_STREAMS, Job
from app.wiring import backbone_loaders, compute_threads, fastest_dtype, recipe_of, service, uses_mask_decoder
from tests.services.examples import all_jobs


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestSettings:
    def test_the_environment(self, monkeypatch) -> None:
        for name, value in {
            "BACKBONE": "embedded, blip:x ,",
            "LAYERS": "0,3",
            "BACKGROUND": "sky, ,sea",
            "PORT": "",
        }.items():
            monkeypatch.setenv(f"EXEMPLAR_{name}", value)
        settings = Settings()
        assert settings.backbone_specs == ("embedded", "blip:x")
        assert settings.layer_numbers == (0, 3)
        assert settings.background_words == ("sky", "sea")
        assert settings.port == 8000

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("layers", "0,a"),
            ("layers", "-1"),
            ("layers", "²"),
            ("layers", "3,3"),
            ("job_ttl_s", "nan"),
            ("job_redelivery_s", "0.5"),
            ("job_redelivery_s", "inf"),
            ("method", "guess"),
            ("queue_limit", "0"),
            ("tune_steps", "-1"),
            ("max_categories", "1000000"),
            ("max_batch_images", "1001"),
        ],
    )
    def test_a_value_out_of_range(self, name: str, value: str) -> None:
        with pytest.raises(ValidationError, match=name):
            Settings(**{name: value})


class TestRecipe:
    def test_it_follows_the_method(self) -> None:
        assert recipe_of(Settings()) == TUNED
        assert recipe_of(Settings(method="paper")) == PAPER
        assert recipe_of(Settings(tune_steps=7)).steps == 7
        assert recipe_of(Settings(tune_steps=7, method="paper")).balanced is False


def test_the_paper_has_no_mask_decoder() -> None:
    assert (uses_mask_decoder(Settings(method="paper")), uses_mask_decoder(Settings())) == (False, True)


class TestBackbones:
    def test_several_the_first_is_the_default(self, tiny_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "other").symlink_to(tiny_folder)
        settings = Settings(backbone=f"blip:{tiny_folder},blip:{tmp_path / 'other'}", threads=1)
        loaded = [load() for load in backbone_loaders(settings)]
        assert [backbone.name for backbone in loaded] == ["blip:tiny", "blip:other"]

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"backbone": "resnet"}, "embedded"),
            ({"backbone": ","}, "EXEMPLAR_BACKBONE"),
            ({"backbone": "blip"}, "EXEMPLAR_BACKBONE"),
            ({"backbone": "blip:/nowhere"}, "/nowhere"),
            ({"backbone": "embedded", "device": "warp"}, "EXEMPLAR_DEVICE"),
            ({"backbone": "embedded", "layers": "0,6"}, "EXEMPLAR_LAYERS"),
        ],
    )
    def test_what_cannot_be_loaded(self, settings: dict[str, str], named: str) -> None:
        with pytest.raises(InvalidInputError) as refused:
            _ = [load() for load in backbone_loaders(Settings(threads=1, **settings))]
        assert named in refused.value.detail

    @pytest.mark.parametrize("compiled", [True, False])
    def test_the_log_says_so_if_the_refinement_is_not_compiled(
        self, compiled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("app.wiring.IS_COMPILED", compiled)
        backbone_loaders(Settings(threads=1, device="cpu"))
        assert ("install g++" in caplog.text) is not compiled

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
    def test_the_number_format_is_the_same_every_time_and_what_the_cpu_has(self) -> None:
        has = {"amx_bf16", "avx512_bf16"} & {*Path("/proc/cpuinfo").read_text().split()}
        assert {fastest_dtype("cpu") for _ in range(3)} == {"bfloat16" if has else "float32"}

    @pytest.mark.parametrize("dtype", ["auto", "float32"])
    def test_a_gpu_where_there_is_none(self, dtype: str) -> None:
        with pytest.raises(InvalidInputError, match="EXEMPLAR_DEVICE=cuda can't be used"):
            backbone_loaders(Settings(threads=1, device="cuda", dtype=dtype))


class TestService:
    async def test_streams_starve_nobody(self, database: str, tmp_path: Path, tiny) -> None:
        """As many as may be open follow one job: requests beside them are answered, and all see the job's end."""
        settings = Settings(redis_url=database, data_dir=tmp_path, worker=False, threads=1)
        async with service(settings, loaded=[tiny]) as live, asyncio.timeout(30):
            job = await live.jobs.create("rank", category=None, steps=1)
            shown = asyncio.Semaphore(0)

            async def follow() -> Job:
                async with live.jobs.events(job.id) as states:
                    async for state in states:
                        last = state
                        shown.release()
                return last

            following = [asyncio.create_task(follow()) for _ in range(MAX_STREAMS)]
            for _ in following:
                await shown.acquire()
            assert "The store does not take writes." not in await live.health.reasons()
            assert await live.jobs.get(job.id) == job
            await live.jobs.end(job.id, "cancelled")
            assert {state.status for state in await asyncio.gather(*following)} == {"cancelled"}

    async def test_a_part_that_fails_stops_those_before_it(self, tmp_path: Path, database: str) -> None:
        with pytest.raises(AppError):
            async with service(Settings(redis_url=database, data_dir=tmp_path, backbone="resnet", threads=1)):
                pass
        assert len(asyncio.all_tasks()) == 1

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("http://nowhere", "EXEMPLAR_REDIS_URL can't be used"),
            ("redis://127.0.0.1:9", "No Redis answers at EXEMPLAR_REDIS_URL"),
        ],
    )
    async def test_a_store_that_cannot_be_reached(self, tmp_path: Path, tiny, url: str, told: str) -> None:
        with pytest.raises(AppError, match=told):
            async with service(Settings(redis_url=url, data_dir=tmp_path), loaded=[tiny]):
                pass

    async def test_nothing_is_left_of_it(self, tmp_path: Path, database: str, tiny) -> None:
        async with service(Settings(redis_url=database, data_dir=tmp_path), loaded=[tiny]) as live:
            lane = live.models.default.lane
            assert len(asyncio.all_tasks()) > 1
        assert len(asyncio.all_tasks()) == 1
        with pytest.raises(UnavailableError):
            await lane.run(lambda: 1, kind="segment")

    async def test_a_store_that_goes_away_right_after_the_start_does_not_end_it(
        self, tmp_path, database, tiny, caplog, monkeypatch
    ) -> None:
        async def away(_: object) -> None:
            raise StoreAwayError("Connection closed by server.")

        monkeypatch.setattr(JobEngine, "recover", away)
        async with service(Settings(redis_url=database, data_dir=tmp_path), loaded=[tiny]) as live:
            assert await all_jobs(live.jobs) == []
        assert "jobs that were not queued are looked for later: Connection closed by server." in caplog.text

    async def test_a_warm_up_that_fails_is_told_and_the_service_never_ready(
        self, tmp_path, database, tiny, caplog
    ) -> None:
        class Broken:
            def __getattr__(self, name: str) -> object:
                return getattr(tiny, name)

            def preprocess(self, photo: object) -> None:
                raise RuntimeError("out of memory")

        async with service(Settings(redis_url=database, data_dir=tmp_path), loaded=[Broken()]) as live:
            while "out of memory" not in caplog.text:
                await asyncio.sleep(0.01)
            assert await live.health.reasons() == ["The model tiny is not warm yet."]

    async def test_its_metrics_tell_whether_it_is_ready_though_nobody_asks(
        self, tmp_path, database, tiny, monkeypatch
    ) -> None:
        monkeypatch.setattr(health, "_LOOK_AGAIN_S", 0.02)
        async with service(Settings(redis_url=database, data_dir=tmp_path), loaded=[tiny]) as live:

            async def becomes(expected: float) -> None:
                async with asyncio.timeout(10):
                    while {
                        live.metrics.registry.get_sample_value(name) for name in ("exemplar_ready", "exemplar_redis_up")
                    } != {expected}:
                        await asyncio.sleep(0.01)

            await becomes(1)
            await live.redis.config_set("maxmemory", "1")
            try:
                await becomes(0)
            finally:
                await live.redis.config_set("maxmemory", "0")
            await becomes(1)


class TestGpu:
    """On a machine without one, where NVIDIA's library has nothing to tell."""

    @pytest.fixture(autouse=True)
    def _library(self, monkeypatch) -> None:
        monkeypatch.setattr(wiring, "find_spec", lambda _: True)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
    def test_a_utilisation_that_cannot_be_read_is_left_out_and_costs_no_other_metric(self) -> None:
        metrics = Metrics()
        wiring._watch_gpu("cuda:0", metrics)
        told = generate_latest(metrics.registry).decode()
        assert 'exemplar_gpu_memory_bytes{device="cuda:0"} 0.0' in told
        assert "exemplar_gpu_utilization_ratio{" not in told

    def test_a_driver_that_fails_later_costs_no_other_metric(self, monkeypatch) -> None:
        metrics = Metrics()
        monkeypatch.setattr(torch.cuda, "utilization", lambda _: 25)
        wiring._watch_gpu("cuda:0", metrics)
        assert 'exemplar_gpu_utilization_ratio{device="cuda:0"} 0.25' in generate_latest(metrics.registry).decode()

        def lost(_: object) -> int:
            raise RuntimeError("GPU is lost")

        monkeypatch.setattr(torch.cuda, "utilization", lost)
        assert 'exemplar_gpu_utilization_ratio{device="cuda:0"} NaN' in generate_latest(metrics.registry).decode()


class TestThreads:
    @pytest.mark.parametrize(
        ("quota", "cores"),
        [("max 100000", 5), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 5), ("", 5)],
    )
    def test_no_more_than_the_container_may_use(self, tmp_path: Path, monkeypatch, quota: str, cores: int) -> None:
        monkeypatch.setattr(wiring.os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7})
        (tmp_path / "cpu.max").write_text(quota)
        monkeypatch.setattr(wiring, "_CPU_QUOTA", tmp_path / "cpu.max")
        assert compute_threads(Settings()) == cores
        assert compute_threads(Settings(threads=3)) == 3

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
    def test_no_more_than_the_cores_that_the_process_is_bound_to(self, tmp_path: Path) -> None:
        count = "from app.settings import Settings; from app.wiring import compute_threads as of; print(of(Settings()))"
        core = min(os.sched_getaffinity(0))
        bound = subprocess.run(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}]); {count}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert bound.stdout == "1\n"


async def test_a_store_that_is_away_at_the_start_is_read_for_the_next_outage_when_it_is_back(monkeypatch) -> None:
    monkeypatch.setattr(wiring, "_FILL_PAUSE_S", 0.0)
    answers = [StoreAwayError("no answer"), None]

    class Lookup:
        async def taught(self) -> None:
            if error := answers.pop(0):
                raise error

    await wiring._fill_memory(Lookup(), [])
    assert answers == []
