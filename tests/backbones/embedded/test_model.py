"""The embedded model: its weights file, int8 matrices and image tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.backbones.embedded import WEIGHTS, Embedded, load
from app.backbones.embedded.model import dequantised, image_tokens
from app.errors import InvalidInputError
from app.method.pipeline import Pipeline
from app.method.prompts import Query

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def model() -> Embedded:
    return load("", device="cpu", dtype="float32")


def test_the_weights_ship_with_the_service(model: Embedded) -> None:
    assert model.name == "embedded"
    assert (model.layer_count, model.patch_grid_hw, model.input_size) == (4, (24, 24), 384)


def test_a_row_of_a_quantised_matrix_is_int8_times_its_scale() -> None:
    stored = {
        "table.weight": torch.tensor([[2, -3], [127, 0]], dtype=torch.int8),
        "table.weight.scale": torch.tensor([0.5, 0.25]),
        "other": torch.ones(1),
    }
    read = dequantised(stored)
    assert set(read) == {"table.weight", "other"}
    assert read["table.weight"].tolist() == [[1, -1.5], [31.75, 0]]


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInputError, match="not a whole embedded model"):
        load(str(tmp_path / "model.safetensors"), device="cpu", dtype="float32")


def test_the_mask_decoder_may_be_missing(model: Embedded, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in load_file(WEIGHTS).items() if not name.startswith("mask_decoder.")}
    save_file(weights, tmp_path / "model.safetensors")
    without = load(str(tmp_path / "model.safetensors"), device="cpu", dtype="float32")
    assert model.mask_decoder is not None
    assert without.mask_decoder is None
    assert without.memory_bytes == model.memory_bytes - model.mask_decoder.memory_bytes


def test_the_mask_decoder_keeps_every_digit_where_the_rest_is_bfloat16(model: Embedded) -> None:
    half = load("", device="cpu", dtype="bfloat16")
    assert half.mask_decoder is not None
    assert model.mask_decoder is not None
    assert all(torch.equal(half.mask_decoder.weights[name], each) for name, each in model.mask_decoder.weights.items())


def test_photos_are_stretched_to_the_square(model: Embedded) -> None:
    rgb, frame = model.preprocess(np.full((37, 101, 3), 255, np.uint8))
    assert frame.content_hw == (384, 384)
    assert torch.equal(rgb, torch.ones(3, 384, 384))


def test_the_global_token_comes_first(model: Embedded) -> None:
    """It sees a change of the bottom right corner; the first patch, at the top left, hardly does."""
    rgb = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    rgb[1, :, -48:, -48:] = 0
    first, second = model.encode_image(rgb)
    change = (first.tokens - second.tokens).norm(dim=1)
    assert change[0] > 50 * change[1]
    assert change[-1] > change[0]


@pytest.mark.parametrize(("photo", "word"), [("dog", "dog"), ("kitten", "cat")])
def test_a_named_animal_is_found_without_an_example(model: Embedded, photo: str, word: str) -> None:
    rgb = np.asarray(Image.open(EXAMPLES / f"{photo}.jpg").convert("RGB"))
    marked = np.asarray(Image.open(EXAMPLES / f"{photo}_mask.png").convert("L")) > 0
    words = ["cat", "dog", "giraffe", "cup"]
    asked = Pipeline(model).run(rgb, [Query((one,)) for one in words])
    assert words[int(np.argmax(asked.match_score))] == word
    labels, _ = Pipeline(model).run(rgb, [Query((word,))]).labels()
    found = labels == 1
    assert (found & marked).sum() / (found | marked).sum() > 0.5


def test_fine_features_are_the_tower_s_map_at_an_eighth(model: Embedded) -> None:
    rgb = torch.rand(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        edges, fine, deep = model._tower(rgb)
        tokens, _ = image_tokens(model._weights, fine, deep)
    for index, image in enumerate(model.encode_image(rgb)):
        assert torch.equal(image.tokens, tokens[index])
        assert torch.equal(model.patch_features(image), tokens[index, 1:])
        assert image.fine_features is not None
        assert torch.equal(image.fine_features, edges[index])


def test_fine_features_are_not_attended_to(model: Embedded) -> None:
    (image,) = model.encode_image(torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0)))
    text = model.tokenize(["dog"])
    seen, same = (model.attend(each, text, layers=(0, 1)) for each in (image, replace(image, fine_features=None)))
    assert torch.equal(seen.match_score, same.match_score)
    assert all(torch.equal(seen.logits[layer], same.logits[layer]) for layer in (0, 1))


def test_word_embeddings_stay_int8_and_read_as_their_values(model: Embedded) -> None:
    name = "embeddings.word_embeddings.weight"
    whole = dequantised({key: tensor for key, tensor in load_file(WEIGHTS).items() if key.startswith(name)})[name]
    text = model.tokenize(["cat", "traffic light"])
    words = model._text.words
    assert words is not None
    assert torch.equal(words[text.input_ids], whole[text.input_ids])
    assert words.nbytes < whole.nbytes / 3.8
    ids, rows = (model.trainable((0,), text).tokens.ids, model.trainable((0,), text).tokens.rows)
    assert torch.equal(rows, whole[ids])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells which files are mapped")
def test_a_loaded_model_does_not_keep_its_file_mapped(tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(WEIGHTS.read_bytes())
    loaded = load(str(copy), device="cpu", dtype="float32")
    assert loaded.memory_bytes < 90 * 2**20
    assert copy.name not in Path("/proc/self/maps").read_text()
