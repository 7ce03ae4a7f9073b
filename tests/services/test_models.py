"""Several models in one service: which are in memory, and requests for one that is not."""

from __future__ import annotations

import asyncio

import pytest

from app.backbones.blip import Blip
from app.errors import InvalidInputError, UnavailableError
from app.method.backbone import Backbone
from tests.models import INPUT_PX, random_blip

NAMES = ("first", "second", "third")


@pytest.fixture(scope="module")
def models() -> list[Blip]:
    return [Blip(*random_blip(seed=seed), name=name, input_size=INPUT_PX) for seed, name in enumerate(NAMES)]


def awake(api) -> dict[str, bool]:
    return {model["name"]: model["warm"] for model in api.http.get("/backbones").json()}


def test_without_a_limit_all_are_warm(start, models: list[Blip]) -> None:
    with start(loaded=models) as api:
        assert awake(api) == dict.fromkeys(NAMES, True)


def test_the_one_not_used_for_longest_sleeps_until_it_is_asked_for(start, models: list[Blip]) -> None:
    with start(loaded=models, backbone_memory_bytes=2 * models[0].memory_bytes) as api:
        registry = api.http.app_state["service"].metrics.registry
        assert awake(api) == {"first": True, "second": False, "third": True}
        assert api.http.get("/readyz").status_code == 200
        answer = api.segment("cat", backbone="second").json()
        assert answer["backbone"]["name"] == "second"
        assert awake(api) == {"first": True, "second": True, "third": False}
        memory = {
            name: registry.get_sample_value("exemplar_backbone_memory_bytes", {"backbone": name, "device": "cpu"})
            for name in NAMES
        }
        assert memory == {"first": models[0].memory_bytes, "second": models[1].memory_bytes, "third": 0}
        assert registry.get_sample_value("exemplar_backbone_evictions_total") == 2
        assert registry.get_sample_value("exemplar_backbone_load_seconds_count", {"backbone": "second"}) == 1


def test_the_default_never_sleeps(start, models: list[Blip]) -> None:
    with start(loaded=models, backbone_memory_bytes=1) as api:
        assert awake(api) == {"first": True, "second": False, "third": True}
        for name in ("second", "third", "second"):
            assert api.segment("cat", backbone=name).json()["backbone"]["name"] == name
            assert awake(api)["first"]
        assert len(api.http.get("/layers").json()) == 3 * models[0].layer_count


async def test_one_that_must_make_room_while_it_warms_up_answers_all_the_same(wire, models: list[Blip]) -> None:
    async with wire(loaded=models, backbone_memory_bytes=2 * models[0].memory_bytes) as live:
        by_name = {model.info.name: model for model in live.models}
        asked = [asyncio.create_task(live.models.loaded(by_name[name])) for name in ("second", "third")]
        assert [(await backbone).name for backbone in asked] == ["second", "third"]
        assert not [model.info.name for model in live.models if model.warm and model.unloaded]


async def test_room_is_made_before_one_is_loaded(wire, models: list[Blip]) -> None:
    async with wire(loaded=models, backbone_memory_bytes=2 * models[0].memory_bytes) as live:
        second = next(model for model in live.models if model.info.name == "second")
        beside: list[list[str]] = []

        def load() -> Blip:
            beside.append([model.info.name for model in live.models if not model.unloaded])
            return models[1]

        second.load = load
        await live.models.loaded(second)
        assert beside == [["first"]]


def test_one_that_cannot_be_loaded_again_is_no_fault_of_the_caller(start, models: list[Blip]) -> None:
    def out_of_memory() -> Backbone:
        raise InvalidInputError("EXEMPLAR_DEVICE=auto can't be used: CUDA out of memory.")

    with start(loaded=models, backbone_memory_bytes=1) as api:
        second = next(model for model in api.http.app_state["service"].models if model.info.name == "second")
        second.load = out_of_memory
        answer = api.segment("cat", backbone="second")
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith("The model second can't be loaded again: EXEMPLAR_DEVICE=auto can't")
        assert int(answer.headers["retry-after"]) >= 1
        assert api.segment("cat").status_code == 200


def test_two_of_one_name_are_refused(start, models: list[Blip]) -> None:
    with (
        pytest.raises(InvalidInputError, match="two models that are both called 'first'"),
        start(loaded=[models[0]] * 2),
    ):
        pass


async def test_weights_changed_while_it_was_unloaded_are_not_taken_for_the_old_ones(wire, models: list[Blip]) -> None:
    async with wire(loaded=models, backbone_memory_bytes=2 * models[0].memory_bytes) as live:
        second = next(model for model in live.models if model.info.name == "second")
        second.load = lambda: models[2]
        with pytest.raises(UnavailableError, match="changed while it was unloaded"):
            await live.models.loaded(second)
