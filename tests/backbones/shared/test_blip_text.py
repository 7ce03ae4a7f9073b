"""BLIP's text tower: as a whole against that of transformers, and its parts with hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from app.backbones.shared.blip_text import (
    adapted_cross_attention,
    cross_attention,
    low_rank_cross_attention,
)
from app.method.backbone import Backbone, EncodedImage
from app.method.parameters import LowRank
from tests.backbones.test_contract import WORDS


@pytest.fixture(params=["embedded", "blip"])
def backbone(request: pytest.FixtureRequest, loaded: dict[str, Backbone]) -> Backbone:
    return loaded[request.param]


# 5 and 7 divide the 35 image tokens: transformers 4.57.6 to 5.5.0 took such prompts for a batch of images (METHOD, 7a).
@pytest.mark.parametrize("prompts", [1, 5, 7])
def test_prompts_are_never_taken_for_a_batch_of_images(backbone: Backbone, image: EncodedImage, prompts: int) -> None:
    text = backbone.tokenize(WORDS[:prompts])
    seen = backbone.attend(EncodedImage(image.tokens[:35]), text, layers=(3, 1))
    heads = {"embedded": 12, "blip": 3}[backbone.family]
    for logits in seen.logits.values():
        assert logits.shape == (prompts, heads, text.input_ids.shape[1], 34)


def test_attention_is_that_of_transformers(backbone: Backbone, image: EncodedImage) -> None:
    """The text tower against `BlipTextModel` with the same weights: hidden states, attention, and its q·k/√d."""
    tower = backbone._text
    width = image.tokens.shape[1]
    words = "embeddings.word_embeddings.weight"
    read = {words: tower._words[torch.arange(30522)], **tower.weights}
    hidden = read[words].shape[1]
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
    own = {name: read[name] for name in reference.state_dict()}
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
            encoder_hidden_states=image.tokens[None].expand(len(WORDS), -1, -1),
            output_attentions=True,
        )
        logits, last = tower.attend(image.tokens, text, layers=range(tower.layer_count), adapters=None)
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


@pytest.mark.parametrize("adapted", [False, True], ids=["words", "adapter"])
@pytest.mark.parametrize("read", ["none", "first", "last"])
def test_the_first_token_alone_is_as_among_all(
    backbone: Backbone, image: EncodedImage, adapted: bool, read: str
) -> None:
    tower, text = backbone._text, backbone.tokenize(WORDS)
    last_layer = tower.layer_count - 1
    layers = {"none": (), "first": (0, 2), "last": (0, last_layer)}[read]
    adapters = tower.trainable((0, last_layer), text).stacked if adapted else None
    with torch.no_grad():
        all_logits, all_tokens = tower.attend(image.tokens, text, layers=layers, adapters=adapters)
        logits, last = tower.attend(image.tokens, text, layers=layers, adapters=adapters, first_only=True)
    assert last.shape[1] == (all_tokens.shape[1] if read == "last" else 1)
    torch.testing.assert_close(last[:, 0], all_tokens[:, 0], rtol=1e-4, atol=1e-4)
    assert logits.keys() == all_logits.keys() == set(layers)
    assert all(torch.equal(logits[layer], all_logits[layer]) for layer in layers)


def test_one_example_may_change_cross_attention(backbone: Backbone) -> None:
    parts = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    assert set(backbone.trainable((1, 2), backbone.tokenize(["dog"])).delta) == {
        f"encoder.layer.{layer}.crossattention.{part}.{kind}"
        for layer in (1, 2)
        for part in parts
        for kind in ("weight", "bias")
    }


def weights(hidden: int, width: int, *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    made = {f"self.{part}.weight": random(hidden, width) for part in ("key", "value")}
    made |= {f"{part}.weight": random(hidden, hidden) for part in ("self.query", "output.dense")}
    made |= {f"self.{part}.bias": random(hidden) for part in ("query", "key", "value")}
    made |= {f"output.{part}": random(hidden) for part in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")}
    return made


def by_hand(x: Tensor, image: Tensor, w: dict[str, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """One prompt, one head after the other."""
    size = x.shape[1] // heads
    q = x @ w["self.query.weight"].T + w["self.query.bias"]
    k = image @ w["self.key.weight"].T + w["self.key.bias"]
    v = image @ w["self.value.weight"].T + w["self.value.bias"]
    logits, contexts = [], []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        logits.append(q[:, own] @ k[:, own].T / math.sqrt(size))
        contexts.append(logits[-1].softmax(dim=1) @ v[:, own])
    y = x + torch.cat(contexts, dim=1) @ w["output.dense.weight"].T + w["output.dense.bias"]
    y = (y - y.mean(dim=1, keepdim=True)) / (y.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    return y * w["output.LayerNorm.weight"] + w["output.LayerNorm.bias"], torch.stack(logits)


def test_cross_attention_by_hand() -> None:
    torch.manual_seed(0)
    x, image = torch.randn(5, 7, 6), torch.randn(13, 11)
    w = weights(6, 11, seed=1)
    out, logits = cross_attention(x, image, w, heads=3, eps=1e-5)
    assert logits.shape == (5, 3, 7, 13)
    without, none = cross_attention(x, image, w, heads=3, eps=1e-5, wanted=False)
    assert none is None
    torch.testing.assert_close(without, out, rtol=1e-4, atol=1e-5)
    for prompt in range(5):
        expected_out, expected_logits = by_hand(x[prompt], image, w, heads=3)
        torch.testing.assert_close(logits[prompt], expected_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out[prompt], expected_out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("adapters", "prompts"), [(1, 1), (1, 5), (5, 1), (3, 2)])
def test_folding_keys_and_values_into_the_text_changes_no_number(adapters: int, prompts: int) -> None:
    torch.manual_seed(0)
    x, image = torch.randn(adapters * prompts, 7, 6), torch.randn(13, 11)
    own = [weights(6, 11, seed=seed) for seed in range(adapters)]
    stacked = {name: torch.stack([w[name] for w in own]) for name in own[0]}
    out, logits = adapted_cross_attention(x, image, stacked, heads=3, eps=1e-5)
    assert logits.shape == (adapters * prompts, 3, 7, 13)
    for prompt in range(adapters * prompts):
        expected_out, expected_logits = by_hand(x[prompt], image, own[prompt // prompts], heads=3)
        torch.testing.assert_close(logits[prompt], expected_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out[prompt], expected_out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("adapters", "prompts"), [(1, 1), (1, 5), (5, 1), (3, 2)])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_low_rank_change_is_the_base_plus_the_product_of_its_factors(adapters: int, prompts: int, rank: int) -> None:
    torch.manual_seed(0)
    x, image = torch.randn(adapters * prompts, 7, 6), torch.randn(13, 11)
    base = weights(6, 11, seed=99)
    parts, whole = [], []
    for seed in range(adapters):
        own = weights(6, 11, seed=seed)
        factors = {
            name: LowRank(torch.randn(tensor.shape[0], rank), torch.randn(rank, tensor.shape[1]))
            for name, tensor in own.items()
            if tensor.ndim == 2
        }
        parts.append({**own, **factors})
        whole.append({**own, **{name: base[name] + left @ right for name, (left, right) in factors.items()}})
    stacked = {
        name: LowRank(*(torch.stack(column) for column in zip(*(part[name] for part in parts), strict=True)))
        if isinstance(change, LowRank)
        else torch.stack([part[name] for part in parts])
        for name, change in parts[0].items()
    }
    out, logits = low_rank_cross_attention(x, image, base, stacked, heads=3, eps=1e-5)
    assert logits.shape == (adapters * prompts, 3, 7, 13)
    for prompt in range(adapters * prompts):
        expected_out, expected_logits = by_hand(x[prompt], image, whole[prompt // prompts], heads=3)
        torch.testing.assert_close(logits[prompt], expected_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out[prompt], expected_out, rtol=1e-4, atol=1e-4)


def test_padding_is_masked_from_real_tokens_in_any_number_format() -> None:
    """−10,000 before the softmax is nothing after it, in bfloat16 too."""
    weight = F.softmax(torch.tensor([0.5, -1e4], dtype=torch.bfloat16), dim=0)
    assert weight.tolist() == [1, 0]
