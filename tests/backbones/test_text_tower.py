"""BLIP's text tower, which several families have, as a whole: against that of transformers, and with other weights."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from app.method.adapter import TOKEN_IDS, TOKEN_ROWS, Adapter
from app.method.backbone import Backbone, TextToImage
from app.method.evidence import stack
from tests.backbones.test_contract import LAYERS, WORDS, assert_same
from tests.models import random_adapter


@pytest.fixture(params=["embedded", "blip"])
def backbone(request: pytest.FixtureRequest, loaded: dict[str, Backbone]) -> Backbone:
    return loaded[request.param]


# 5 and 7 divide the 35 image tokens: transformers 4.57.6 to 5.5.0 took such prompts for a batch of images (METHOD, 7a).
@pytest.mark.parametrize("prompts", [1, 5, 7])
def test_prompts_are_never_taken_for_a_batch_of_images(backbone: Backbone, image_tokens: Tensor, prompts: int) -> None:
    text = backbone.tokenize(WORDS[:prompts])
    seen = backbone.attend(image_tokens[:35], text, layers=(3, 1))
    heads = {"embedded": 12, "blip": 3}[backbone.family]
    for logits in seen.logits.values():
        assert logits.shape == (prompts, heads, text.input_ids.shape[1], 34)


def test_attention_is_that_of_transformers(backbone: Backbone, image_tokens: Tensor) -> None:
    """The text tower against `BlipTextModel` with the same weights: hidden states, attention, and its q·k/√d."""
    tower = backbone._text
    width = image_tokens.shape[1]
    hidden = tower.weights["embeddings.word_embeddings.weight"].shape[1]
    config = BlipTextConfig(
        vocab_size=30522,
        hidden_size=hidden,
        encoder_hidden_size=width,
        intermediate_size=len(tower.weights["encoder.layer.0.intermediate.dense.bias"]),
        num_hidden_layers=tower.layer_count,
        num_attention_heads=tower.heads,
        max_position_embeddings=len(tower.weights["embeddings.position_embeddings.weight"]),
        layer_norm_eps=tower.eps,
        bos_token_id=101,
    )
    reference = BlipTextModel(config, add_pooling_layer=False).eval()
    own = {name: tower.weights[name] for name in reference.state_dict()}
    reference.load_state_dict(own)
    projected: dict[str, Tensor] = {}
    attention = reference.encoder.layer[3].crossattention.self
    for part in ("query", "key"):
        getattr(attention, part).register_forward_hook(lambda _, __, out, part=part: projected.update({part: out}))
    text = backbone.tokenize(WORDS)
    with torch.no_grad():
        expected = reference(
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=image_tokens[None].expand(len(WORDS), -1, -1),
            output_attentions=True,
        )
        logits, last = tower.attend(image_tokens, text, layers=range(tower.layer_count), adapters=None)
    real = text.attention_mask.bool()
    # Float32 products summed in another order; some image tokens are large.
    torch.testing.assert_close(last[real], expected.last_hidden_state[real], rtol=1e-5, atol=1e-4)
    for layer, probabilities in enumerate(expected.cross_attentions):
        torch.testing.assert_close(logits[layer].softmax(dim=-1), probabilities, rtol=1e-4, atol=1e-5)
    q, k = (
        projected[part].view(len(WORDS), -1, tower.heads, hidden // tower.heads).transpose(1, 2)
        for part in ("query", "key")
    )
    by_hand = q @ k.mT / math.sqrt(hidden // tower.heads)
    torch.testing.assert_close(logits[3], by_hand, rtol=1e-4, atol=1e-3)


def test_one_example_may_change_cross_attention_and_the_rows_of_its_tokens(backbone: Backbone) -> None:
    text = backbone.tokenize(["dog", "dog sky"])
    free = backbone.trainable((1, 2), text)
    parts = {"self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"}
    assert set(free) == {TOKEN_IDS, TOKEN_ROWS} | {
        f"encoder.layer.{layer}.crossattention.{part}.{kind}"
        for layer in (1, 2)
        for part in parts
        for kind in ("weight", "bias")
    }
    assert sorted(free[TOKEN_IDS].tolist()) == sorted(set(text.input_ids.flatten().tolist()))
    assert len(free[TOKEN_ROWS]) == len(free[TOKEN_IDS])
    assert {tensor.dtype for tensor in free.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("shares", [("dog",), ("dog", "hound", "a small white puppy")])
def test_stacked_adapters_are_each_as_substituted_into_the_model(
    backbone: Backbone, image_tokens: Tensor, shares: tuple[str, ...]
) -> None:
    """The fast path, which folds keys and values into the text tokens, against the plain one."""
    words = [shares, tuple(f"{word} cat" for word in shares), tuple(f"railway {word}" for word in shares)]
    adapters = [random_adapter(backbone, *group, layers=LAYERS, seed=seed) for seed, group in enumerate(words)]
    text = backbone.tokenize([word for group in words for word in group])
    with torch.no_grad():
        stacked = backbone.attend(image_tokens, text, layers=LAYERS, adapters=stack(adapters))
        plain = backbone.attend(image_tokens, text, layers=LAYERS)
    for index, adapter in enumerate(adapters):
        own = slice(index * len(shares), (index + 1) * len(shares))
        with torch.no_grad():
            alone = with_substituted(backbone, adapter).attend(image_tokens, text[own], layers=LAYERS)
        got = TextToImage({layer: stacked.logits[layer][own] for layer in LAYERS}, stacked.match_score[own])
        assert_same(got, alone)
        assert (got.logits[0] - plain.logits[0][own]).abs().max() > 0.1


def with_substituted(backbone: Backbone, adapter: Adapter) -> Backbone:
    """A copy of the model whose own parameters are the adapter's."""
    weights = dict(backbone._text.weights)
    table = weights["embeddings.word_embeddings.weight"].clone()
    table[adapter.tensors[TOKEN_IDS]] = adapter.tensors[TOKEN_ROWS]
    weights.update({name: t for name, t in adapter.tensors.items() if name not in (TOKEN_IDS, TOKEN_ROWS)})
    changed = copy.copy(backbone)
    changed._text = replace(backbone._text, weights={**weights, "embeddings.word_embeddings.weight": table})
    return changed
