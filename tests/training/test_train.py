"""A stage of the training: the photos it uses, the weights it changes, and those it leaves unchanged."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import UnidentifiedImageError
from safetensors.torch import load_file

from app.backbones import embedded
from app.backbones.embedded.model import dequantised
from training.batches import Collections, Material, batches
from training.losses import Vocabulary, ask, background_beside
from training.network import Network
from training.photos import Photo, Region, Sample
from training.stages import STAGES, Stage
from training.together import drawn_layers
from training.train import train

TOGETHER = next(stage for stage in STAGES if stage.name == "together")
assert isinstance(TOGETHER, Stage)
ONCE = replace(TOGETHER, steps=1, batch=2, patches=61, mosaics=0.0)


def shipped() -> Network:
    return Network({name: t.float() for name, t in dequantised(load_file(embedded.WEIGHTS)).items()})


@pytest.fixture(scope="module")
def material(photos: list[Photo]) -> Material:
    # Both cats are of both collections; the vocabulary needs more names than those that are there.
    others = [f"thing {number}" for number in range(60)]
    spoken = replace(photos[0], regions={1: Region(("cat", "tabby"), frozenset({"cat", "tabby"}))})
    words = [replace(photos[0], regions={1: Region((name,), frozenset({name}))}) for name in others]
    vocabulary = Vocabulary(shipped(), [*photos, spoken, *words], [], ["goldfish"], without={"thing 3"})
    return Material(Collections(coco=photos, voc=photos[:2], named=[]), {}, vocabulary)


def test_a_vocabulary_has_every_name_but_those_left_out(material: Material) -> None:
    words = material.vocabulary
    assert words.prompts[words.index["goldfish"]] == "goldfish"
    assert {"cat", "tabby", "dog", "thing 4"} < set(words.index)
    assert "thing 3" not in words.index
    assert "tabby" not in words.common
    assert "goldfish" not in words.common


def test_where_masks_are_learned_photos_come_in_pairs(material: Material) -> None:
    stage = replace(TOGETHER, steps=5, batch=4, mosaics=0.0)
    for batch in batches(material, stage, seed=0):
        assert len(batch) == 4
        for one, other in zip(batch[::2], batch[1::2], strict=True):
            assert {r.names[0] for r in one.regions} & {r.names[0] for r in other.regions}


def test_photos_of_a_kind_that_has_no_share_are_not_shown(material: Material) -> None:
    stage = Stage("maps", steps=3, learning_rates=(), batch=5, shares=(0.0, 1.0, 0.0, 0.0))
    unpasted = replace(material, collections=replace(material.collections, coco=material.collections.voc))
    shown = [region.names[0] for batch in batches(unpasted, stage, seed=0) for s in batch for region in s.regions]
    assert set(shown) == {"cat"}


def test_a_photo_that_cannot_be_read_ends_the_stage(material: Material, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"no photo")
    broken = [replace(photo, image=tmp_path / "cut.jpg") for photo in material.collections.coco]
    stage = Stage("maps", steps=3, learning_rates=(), batch=2, shares=(1.0, 0.0, 0.0, 0.0))
    with pytest.raises(UnidentifiedImageError):
        list(batches(replace(material, collections=Collections(broken, broken, [])), stage, seed=0))


def test_nothing_that_may_be_there_is_called_wrong(material: Material) -> None:
    region = Region(("cat",), frozenset({"cat", "thing 5"}))
    rgb, labels = torch.zeros(384, 384, 3, dtype=torch.uint8), torch.zeros(384, 384, dtype=torch.uint8)
    labels[:192] = 1
    sample = Sample(rgb.numpy(), labels.numpy(), [region], {"thing 6"})
    for seed in range(20):
        (question,) = ask(material.vocabulary, [sample], random.Random(seed))
        assert question.names == ["cat"]
        assert not {"cat", "thing 5", "thing 6"} & set(question.wrong)
        assert question.target[1].sum() == pytest.approx(288)
        assert question.full_target.shape == (2 + len(question.wrong), 576)


def test_a_background_word_gives_way_to_what_it_is_a_part_of() -> None:
    assert "lamp" not in background_beside(["table lamp"])
    assert "wall" in background_beside(["table lamp"])


def test_learning_together_moves_tower_words_and_decoder_and_nothing_else(material: Material) -> None:
    network, kept = shipped(), []
    before = {name: tensor.clone() for name, tensor in network.weights.items()}
    train(network, material, ONCE, seed=0, keep=lambda weights, step: kept.append(step))
    assert kept == [1]
    changed = {name for name, tensor in network.weights.items() if not torch.equal(tensor, before[name])}
    last = len(network.tower.before) + len(network.tower.after) - 1
    assert {
        "encoder.layer.0.crossattention.self.query.weight",
        "vis.proj.weight",
        f"image_tower.blocks.{last}.project.weight",
        "image_tower.blocks.9.expand.weight",
        "mask_decoder.class.weight",
        "mask_decoder.projection.weight",
    } <= changed
    still = ("embeddings.", "fc_", "itm_head.", "stem", "mask_decoder.edges.mean", "image_tower.blocks.6.")
    assert not [name for name in changed if name.startswith(still) or name.endswith("depthwise.weight")]
    assert all(torch.isfinite(tensor).all() for tensor in network.weights.values())
    assert not any(tensor.requires_grad for tensor in network.weights.values())


def test_a_stage_of_the_maps_leaves_the_decoder_alone(material: Material) -> None:
    network = shipped()
    before = {name: tensor.clone() for name, tensor in network.weights.items()}
    first = STAGES[0]
    assert isinstance(first, Stage)
    stage = replace(first, steps=1, batch=2, patches=61, tower_waits=0.0, deep_every=1, shares=(0.5, 0.5, 0.0, 0.0))
    train(network, material, stage, seed=0, keep=lambda weights, step: None)
    changed = {name for name, tensor in network.weights.items() if not torch.equal(tensor, before[name])}
    assert "vis.proj.weight" in changed
    assert "itm_head.weight" in changed
    assert not [name for name in changed if name.startswith(("mask_decoder.", "image_tower.blocks.9."))]


def test_half_of_the_pairs_are_read_by_the_layers_in_use_and_the_others_by_any_two() -> None:
    rng = random.Random(0)
    drawn = [tuple(drawn_layers(rng)) for _ in range(400)]
    assert 150 < drawn.count((0, 1)) < 260
    assert {frozenset(pair) for pair in drawn} == {frozenset(pair) for pair in itertools.combinations(range(4), 2)}


def test_every_stage_has_a_name_of_its_own() -> None:
    assert len({stage.name for stage in STAGES}) == len(STAGES)
