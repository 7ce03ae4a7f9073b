"""Open Inference Protocol: health, and categories as models."""

from __future__ import annotations

from app.backbones.blip import Blip
from tests.models import INPUT_PX, random_blip


class TestServer:
    def test_metadata_and_health(self, api) -> None:
        about = api.http.get("/v2").json()
        assert about["name"] == "exemplar"
        assert about["version"]
        assert about["extensions"] == []
        assert api.http.get("/v2/health/live").json() == {"live": True}
        assert api.http.get("/v2/health/ready").json() == {"ready": True}

    def test_health_is_open_to_probes_of_other_machines(self, start) -> None:
        with start(client=("10.0.0.7", 50007)) as api:
            assert api.http.get("/v2/health/ready").status_code == 200
            assert api.http.get("/v2/models/cat").status_code == 403


class TestModels:
    def test_a_category_is_a_model_and_its_adapters_are_its_versions(self, api) -> None:
        for _ in range(2):
            api.taught("Cat", photo=api.photo_number(_))
        about = api.http.get("/v2/models/cat").json()
        assert about == {
            "name": "Cat",
            "versions": ["2", "1"],
            "platform": "exemplar_blip",
            "inputs": [],
            "outputs": [],
        }
        assert api.http.get("/v2/models/cat/versions/1").json() == about
        assert api.http.get("/v2/models/cat/versions/3").status_code == 404
        assert api.http.get("/v2/models/cat/ready").json() == {"name": "cat", "ready": True}
        assert api.http.get("/v2/models/cat/versions/2/ready").status_code == 200
        answer = api.http.get("/v2/models/cat/versions/1/ready")
        assert answer.status_code == 409
        assert "Version 2" in answer.json()["detail"]

    def test_a_category_without_an_adapter_is_not_ready(self, start) -> None:
        with start(worker=False) as api:
            api.teach("cat")
            assert api.http.get("/v2/models/cat").json()["versions"] == []
            assert api.http.get("/v2/models/cat/ready").status_code == 409

    def test_a_backbone_is_one_too(self, api) -> None:
        about = api.http.get("/v2/models/tiny").json()
        assert about["name"] == "tiny"
        (revision,) = about["versions"]
        assert api.http.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
        assert api.http.get(f"/v2/models/tiny/versions/{revision}/ready").status_code == 200

    def test_every_backbone_tells_its_own_family(self, start, tiny, embedded) -> None:
        with start(loaded=[embedded, tiny]) as api:
            platforms = {
                name: api.http.get(f"/v2/models/{name}").json()["platform"] for name in (embedded.name, tiny.name)
            }
            assert platforms == {embedded.name: f"exemplar_{embedded.family}", tiny.name: "exemplar_blip"}

    def test_an_unloaded_one_is_ready_for_the_request_that_loads_it(self, start) -> None:
        names = ("first", "second", "third")
        models = [Blip(*random_blip(seed=seed), name=name, input_size=INPUT_PX) for seed, name in enumerate(names)]
        with start(loaded=models, backbone_memory_bytes=1) as api:
            warm = {model["name"]: model["warm"] for model in api.http.get("/backbones").json()}
            assert warm == {"first": True, "second": False, "third": True}
            assert api.http.get("/v2/models/second/ready").status_code == 200

    def test_of_a_name_that_neither_has(self, api) -> None:
        for path in (
            "/v2/models/no",
            "/v2/models/no/ready",
            "/v2/models/no/versions/1",
            "/v2/models/no/versions/1/ready",
        ):
            assert api.http.get(path).status_code == 404
