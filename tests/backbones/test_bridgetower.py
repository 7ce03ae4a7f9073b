"""BridgeTower: the whole network against the class of transformers, and prompts split into several passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import BridgeTowerForImageAndTextRetrieval

from app.backbones import bridgetower as module
from app.backbones.bridgetower import BridgeTower
from app.method.backbone import Backbone, EncodedImage, TextToImage, TextTokens
from app.method.parameters import Parameters
from tests.backbones.bridgetower_model import random_bridgetower
from tests.backbones.oracle import assert_gradients
from tests.models import random_adapter

INPUT_PX = 112
LAYERS = (0, 3)
PROMPTS = ("dog", "a very long word for a wall", "railway track")
TABLE = "bridgetower.text_model.embeddings.word_embeddings.weight"
# What the configuration may say of the layers around the cross-modal ones; the published models have the first.
OPTIONS = (
    {},
    {"link_tower_type": "scaled_add", "share_cross_modal_transformer_layers": False},
    {"link_tower_type": "interpolate"},
)


@pytest.fixture(scope="module")
def bridgetower() -> BridgeTower:
    return BridgeTower(*random_bridgetower(), input_size=INPUT_PX)


@pytest.fixture(scope="module")
def rgb() -> Tensor:
    return torch.rand(1, 3, INPUT_PX, INPUT_PX, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def image(bridgetower: BridgeTower, rgb: Tensor) -> EncodedImage:
    return bridgetower.encode_image(rgb)[0]


def by_transformers(model: BridgeTowerForImageAndTextRetrieval, rgb: Tensor, text: TextTokens) -> TextToImage:
    """The class's own forward; logits are products of what its query and key layers gave, seen by hooks."""
    seen: dict[tuple[int, str], Tensor] = {}
    hooks = [
        getattr(model.bridgetower.cross_modal_text_layers[layer].crossattention.self, part).register_forward_hook(
            lambda _, __, out, key=(layer, part): seen.update({key: out})
        )
        for layer in LAYERS
        for part in ("query", "key")
    ]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (rgb - mean[:, None, None]) / std[:, None, None]
    # Its cross-modal layers are marked causal, which they must not be: only attention spelled out ignores the mark.
    assert model.config._attn_implementation == "eager"
    score = model(
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        pixel_values=pixels.expand(len(text.input_ids), -1, -1, -1),
        interpolate_pos_encoding=True,
    ).logits
    for hook in hooks:
        hook.remove()
    logits = {}
    for layer in LAYERS:
        q, k = (seen[layer, part].unflatten(-1, (3, 7)).transpose(1, 2) for part in ("query", "key"))
        logits[layer] = (q @ k.mT / math.sqrt(7))[..., 1:]
    return TextToImage(logits, score.softmax(dim=-1)[:, 1])


def of_words(logits: Tensor, text: TextTokens) -> Tensor:
    """Without padding."""
    return logits.transpose(1, 2)[text.attention_mask.bool()]


def assert_as_exact(got: TextToImage, expected: TextToImage, text: TextTokens) -> None:
    """Within 1e-5 of the largest number."""
    for layer in LAYERS:
        wanted = of_words(expected.logits[layer], text)
        assert (of_words(got.logits[layer], text) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (got.match_score - expected.match_score).abs().max() <= 1e-5


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_match_score_and_gradients_are_those_of_transformers(options: dict[str, object], rgb: Tensor) -> None:
    bridgetower = BridgeTower(*random_bridgetower(**options), input_size=INPUT_PX)
    model = random_bridgetower(**options)[0]
    text = bridgetower.tokenize(PROMPTS)
    image = bridgetower.encode_image(rgb)[0]
    free = bridgetower.trainable(LAYERS, text).map(lambda tensor: tensor.requires_grad_(True))
    seen = bridgetower.attend(image, text, layers=LAYERS, adapters=free.stacked)
    expected = by_transformers(model, rgb, text)
    assert_as_exact(seen, expected, text)
    assert_as_exact(bridgetower.attend(image, text, layers=LAYERS), expected, text)

    for result in (seen, expected):
        loss = sum(of_words(logits, text).square().mean() for logits in result.logits.values())
        (loss + result.match_score.sum()).backward()
    assert_gradients(free, model.get_parameter, model.get_parameter(TABLE))


@pytest.mark.parametrize(("adapters", "share"), [(0, 7), (1, 7), (5, 1), (3, 2), (2, 5)])
def test_prompts_in_passes_are_as_all_at_once(
    bridgetower: BridgeTower, image: EncodedImage, monkeypatch: pytest.MonkeyPatch, adapters: int, share: int
) -> None:
    words = ["dog", "cat", "sky", "sea", "railway", "track", "railway dog", "a dog", "a cat", "a sea"]
    text = bridgetower.tokenize(words[: max(1, adapters) * share])
    parts = [random_adapter(bridgetower, "dog", seed=seed).parameters for seed in range(adapters)]
    own = Parameters.stack([part for part in parts if part]) if parts else None
    with torch.no_grad():
        together = bridgetower.attend(image, text, layers=LAYERS, adapters=own)
        monkeypatch.setattr(module, "_PROMPTS_AT_ONCE", 3)
        by_three = bridgetower.attend(image, text, layers=LAYERS, adapters=own)
    for layer in LAYERS:
        torch.testing.assert_close(by_three.logits[layer], together.logits[layer], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_three.match_score, together.match_score, rtol=0, atol=1e-6)


def test_image_tokens_hold_their_input_to_each_cross_modal_layer(bridgetower: BridgeTower, image: EncodedImage) -> None:
    assert image.tokens.shape == (1 + 7 * 7, 5 * 21)
    assert torch.equal(bridgetower.patch_features(image), image.tokens[1:, -21:])


def test_one_example_may_change_the_text_s_cross_attention(bridgetower: BridgeTower) -> None:
    parts = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    assert set(bridgetower.trainable((1, 2), bridgetower.tokenize(["dog"])).delta) == {
        f"bridgetower.cross_modal_text_layers.{layer}.crossattention.{part}.{kind}"
        for layer in (1, 2)
        for part in parts
        for kind in ("weight", "bias")
    }


def test_a_folder_becomes_a_model_of_24_by_24_patches(loaded: dict[str, Backbone]) -> None:
    model = loaded["bridgetower"]
    assert (model.input_size, model.patch_grid_hw) == (384, (24, 24))
    assert (model.layer_count, model.default_layers) == (5, (0, 1))


def test_the_input_size_and_how_bridges_join_are_part_of_the_revision(bridgetower: BridgeTower) -> None:
    model, tokenizer = random_bridgetower()
    assert BridgeTower(model, tokenizer, input_size=INPUT_PX).revision == bridgetower.revision
    assert BridgeTower(model, tokenizer, input_size=80).revision != bridgetower.revision
    model.config.link_tower_type = "interpolate"
    assert BridgeTower(model, tokenizer, input_size=INPUT_PX).revision != bridgetower.revision
