"""ViLT: the joint transformer against that of transformers, and its order of patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import ViltForImageAndTextRetrieval

from app.backbones.vilt import Vilt
from app.method.backbone import Backbone, TextTokens
from tests.backbones.oracle import assert_gradients
from tests.backbones.vilt_model import INPUT_PX, random_vilt

LAYERS = (0, 2, 4)
WORDS = ("dog", "railway track", "a very long word for a wall")


@pytest.fixture(scope="module")
def vilt() -> Vilt:
    return Vilt(*random_vilt(), input_size=INPUT_PX)


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class of transformers draws the order of the patches: let it draw that of the grid."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, count: torch.arange(int(count)))


def pixels() -> Tensor:
    return torch.rand(1, 3, INPUT_PX, INPUT_PX, generator=torch.Generator().manual_seed(0))


def real(
    model: ViltForImageAndTextRetrieval, text: TextTokens, rgb: Tensor
) -> tuple[dict[int, Tensor], Tensor, dict[int, Tensor]]:
    """Text→patch q·k/√d by hooks on the projections, the match probability, and the states before each layer."""
    projected: dict[tuple[int, str], Tensor] = {}
    hooks = [
        getattr(layer.attention.attention, part).register_forward_hook(
            lambda _, __, out, key=(index, part): projected.update({key: out})
        )
        for index, layer in enumerate(model.vilt.encoder.layer)
        for part in ("query", "key")
    ]
    prompts, tokens = text.input_ids.shape
    out = model(
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        pixel_values=((rgb - 0.5) / 0.5).expand(prompts, -1, -1, -1),
        pixel_mask=torch.ones(prompts, INPUT_PX, INPUT_PX),
        output_hidden_states=True,
    )
    for hook in hooks:
        hook.remove()
    heads = model.config.num_attention_heads
    logits = {}
    for layer in range(model.config.num_hidden_layers):
        q, k = (projected[layer, part].unflatten(2, (heads, -1)).transpose(1, 2) for part in ("query", "key"))
        logits[layer] = q[:, :, :tokens] @ k[:, :, tokens + 1 :].mT / math.sqrt(q.shape[3])
    return logits, out.logits[:, 0].sigmoid(), dict(enumerate(out.hidden_states))


@pytest.mark.usefixtures("in_order")
def test_attention_and_match_are_those_of_transformers(vilt: Vilt) -> None:
    text = vilt.tokenize(WORDS)
    with torch.no_grad():
        seen = vilt.attend(vilt.encode_image(pixels())[0], text, layers=LAYERS)
        expected, match, _ = real(random_vilt()[0], text, pixels())
    for layer in LAYERS:
        assert seen.logits[layer].shape == (3, 3, text.input_ids.shape[1], 49)
        rows = text.attention_mask.bool()[:, None].expand(-1, 3, -1)  # what padding sees is nobody's
        torch.testing.assert_close(seen.logits[layer][rows], expected[layer][rows], rtol=1e-5, atol=1e-5)
        assert expected[layer].std() > 0.1
    torch.testing.assert_close(seen.match_score, match, rtol=0, atol=1e-5)
    assert match.std() > 0.01


def test_the_order_that_transformers_draws_changes_nothing(vilt: Vilt) -> None:
    model, text = random_vilt()[0], vilt.tokenize(["dog"])
    mask = torch.ones(1, INPUT_PX, INPUT_PX)
    torch.manual_seed(3)
    order = model.vilt.embeddings.visual_embed(pixels(), mask, max_image_length=-1)[2][0][0]
    torch.manual_seed(3)
    with torch.no_grad():
        expected, match, _ = real(model, text, pixels())
        seen = vilt.attend(vilt.encode_image(pixels())[0], text, layers=LAYERS)
    place = order[:, 0] * 7 + order[:, 1]
    assert place.tolist() != sorted(place.tolist())
    for layer in LAYERS:
        torch.testing.assert_close(seen.logits[layer][..., place], expected[layer], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.match_score, match, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("in_order")
def test_gradients_are_those_of_transformers(vilt: Vilt) -> None:
    model, text = random_vilt()[0], vilt.tokenize(["dog", "cat"])
    free = vilt.trainable(LAYERS, text).map(lambda tensor: tensor.requires_grad_(True))
    seen = vilt.attend(vilt.encode_image(pixels())[0], text, layers=LAYERS, adapters=free.stacked)
    (sum(seen.logits[layer].square().mean() for layer in LAYERS) + seen.match_score.sum()).backward()
    logits, match, _ = real(model, text, pixels())
    (sum(logits[layer].square().mean() for layer in LAYERS) + match.sum()).backward()
    assert_gradients(free, lambda name: model.get_parameter(name), model.get_input_embeddings().weight)


@pytest.mark.usefixtures("in_order")
def test_patch_features_are_the_states_halfway_beside_an_empty_sentence(vilt: Vilt) -> None:
    model = random_vilt()[0]
    empty = TextTokens(torch.tensor([[101, 102]]), torch.tensor([[1, 1]]))
    with torch.no_grad():
        before_layer = real(model, empty, pixels())[2][2]  # the third of 5 layers
        expected = model.vilt.encoder.layer[2].layernorm_before(before_layer)[0, 3:]
        image = vilt.encode_image(pixels())[0]
    assert image.tokens.shape == (50, 2 * 21)
    torch.testing.assert_close(vilt.patch_features(image), expected, rtol=1e-5, atol=1e-5)


def test_prompts_end_where_the_positions_do(vilt: Vilt) -> None:
    text = vilt.tokenize(["狗" * 64, "dog"])
    assert text.input_ids.shape == (2, 40)
    assert text.input_ids[0, -1] == 102  # [SEP] is there all the same
    assert text.attention_mask.sum(dim=1).tolist() == [40, 6]


def test_one_example_may_change_joint_attention(vilt: Vilt) -> None:
    assert set(vilt.trainable((1, 2), vilt.tokenize(["dog"])).delta) == {
        f"vilt.encoder.layer.{layer}.attention.{part}.{kind}"
        for layer in (1, 2)
        for part in ("attention.query", "attention.key", "attention.value", "output.dense")
        for kind in ("weight", "bias")
    }


def test_input_size_and_heads_are_part_of_the_revision(vilt: Vilt) -> None:
    assert Vilt(*random_vilt(), input_size=160).revision != vilt.revision
    model, tokenizer = random_vilt()
    model.config.num_attention_heads = 7
    assert Vilt(model, tokenizer, input_size=INPUT_PX).revision != vilt.revision


def test_an_input_of_broken_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="whole patches of 32"):
        Vilt(*random_vilt(), input_size=100)


def test_a_folder_becomes_a_model_on_512_pixels(loaded: dict[str, Backbone]) -> None:
    model = loaded["vilt"]
    assert (model.input_size, model.patch_grid_hw) == (512, (16, 16))
    assert (model.layer_count, model.default_layers) == (5, (2, 3))
