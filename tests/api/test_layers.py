"""Rank layers, list the layers in use and the loaded models."""

from __future__ import annotations

LAYER = {"backbone", "layer", "infoscore", "entropy_ratio", "cov", "images", "chosen", "chosen_by"}


def rank(api, *photos: bytes, **fields):
    return api.http.post("/layers/rank", files=[("images", photo) for photo in photos], data=fields)


def layers(api) -> list[dict]:
    return api.http.get("/layers").json()


class TestRanking:
    def test_a_job_ranks_and_the_ranking_is_in_use(self, api) -> None:
        answer = rank(api, api.photo, api.other_photo, categories=["cat", "dog"])
        job = answer.json()["job"]
        assert answer.status_code == 202
        assert answer.json().keys() == {"job"}
        assert answer.headers["location"] == f"/jobs/{job['id']}"
        assert (job["kind"], job["category"], job["steps"]) == ("rank", None, 2)
        ended = api.wait(job["id"])
        assert (ended["status"], ended["progress"], ended["step"]) == ("succeeded", 1, 2)
        ranked = layers(api)
        scores = [layer["infoscore"] for layer in ranked]
        assert all(layer["images"] == 2 and layer["chosen_by"] == "InfoScore" for layer in ranked)
        chosen = [layer["layer"] for layer in ranked if layer["chosen"]]
        assert len(chosen) == 2
        assert min(scores[n] for n in chosen) >= max(scores[n] for n in range(4) if n not in chosen)
        assert api.segment("cat", adapters="none").json()["layers"] == chosen
        assert not [key for key in api.stored() if key.startswith(b"exemplar:ranking")]

    def test_one_photo_says_nothing_and_changes_nothing(self, api) -> None:
        before = api.segment("cat").json()["layers"]
        assert api.wait(rank(api, api.photo, categories=["cat", "dog"]).json()["job"]["id"])["status"] == "succeeded"
        assert {(layer["images"], layer["infoscore"], layer["chosen_by"]) for layer in layers(api)} == {
            (1, 0, "default")
        }
        assert api.segment("cat").json()["layers"] == before
        api.wait(rank(api, api.other_photo, categories=["cat", "dog"]).json()["job"]["id"])
        assert {layer["chosen_by"] for layer in layers(api)} == {"InfoScore"}

    def test_photos_add_up_as_long_as_the_names_are_the_same(self, api) -> None:
        for photos, names, images in ((1, ["cat"], 1), (2, ["cat"], 3), (1, ["dog"], 1)):
            api.wait(rank(api, *[api.photo] * photos, categories=names).json()["job"]["id"])
            assert layers(api)[0]["images"] == images

    def test_without_names_the_categories_taught_are_asked_for(self, start) -> None:
        with start() as api:
            api.taught("cat")
            by_default = api.wait(rank(api, api.photo).json()["job"]["id"])
            api.wait(rank(api, api.photo, categories=["cat"]).json()["job"]["id"])
            assert by_default["status"] == "succeeded"
            assert layers(api)[0]["images"] == 2

    def test_a_queued_ranking_can_be_cancelled(self, start) -> None:
        with start(worker=False) as api:
            job = rank(api, api.photo).json()["job"]
            assert api.http.delete(f"/jobs/{job['id']}").json()["status"] == "cancelled"
        with start() as api:
            api.taught("cat")
            assert layers(api)[0]["images"] == 0

    def test_too_many_photos(self, start) -> None:
        with start(max_batch_images=2) as api:
            before = api.stored()
            answer = rank(api, *[api.photo] * 3)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] == "images"
            assert "EXEMPLAR_MAX_BATCH_IMAGES" in answer.json()["detail"]
            assert api.stored() == before

    def test_more_categories_taught_than_one_job_may_have(self, start) -> None:
        with start(worker=False, max_categories=2) as api:
            for name in ("a", "b", "c"):
                api.teach(name)
            before = api.stored()
            answer = rank(api, api.photo)
            assert answer.status_code == 422
            assert "EXEMPLAR_MAX_CATEGORIES" in answer.json()["detail"]
            assert api.stored() == before
            assert rank(api, api.photo, categories=["a", "b"]).status_code == 202

    def test_one_bad_photo_refuses_all(self, api) -> None:
        before = api.stored()
        answer = rank(api, api.photo, b"no photo")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "images"
        assert api.stored() == before


class TestLooking:
    def test_every_layer_is_told(self, api) -> None:
        assert layers(api) == [
            {
                "backbone": "tiny", "layer": layer, "infoscore": None, "entropy_ratio": None, "cov": None,
                "images": 0, "chosen": layer in (0, 3), "chosen_by": "default",
            }
            for layer in range(4)
        ]  # fmt: skip

    def test_layers_set_by_hand_win_over_a_ranking(self, start) -> None:
        with start(layers="1,2") as api:
            api.wait(rank(api, api.photo, categories=["cat"]).json()["job"]["id"])
            ranked = layers(api)
            assert [layer["chosen"] for layer in ranked] == [False, True, True, False]
            assert {layer["chosen_by"] for layer in ranked} == {"setting"}
            assert all(layer["infoscore"] is not None for layer in ranked)
            assert api.segment("cat").json()["layers"] == [1, 2]
            assert api.taught("cat")
            assert api.category("cat")["adapter"]["layers"] == [1, 2]

    def test_backbones(self, api, tiny) -> None:
        assert api.http.get("/backbones").json() == [
            {
                "name": "tiny", "family": "blip", "revision": tiny.revision, "device": "cpu", "dtype": "float32",
                "memory_bytes": tiny.memory_bytes, "layers": 4, "patch_grid": [5, 5],
                "image_text_score": "match head", "warm": True,
            }
        ]  # fmt: skip
