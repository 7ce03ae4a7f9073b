"""BLIP-2: the Q-Former against that of transformers, and the logits of a text that attends to its queries."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Blip2ForImageTextRetrieval

from app.backbones import load
from app.backbones.blip2 import Blip2, attention_through_queries
from app.errors import InvalidInputError
from app.method.backbone import Backbone, TextTokens
from tests.backbones.blip2_model import INPUT_PX, random_blip2
from tests.backbones.families import copied
from tests.backbones.oracle import assert_gradients

LAYERS = (0, 2, 3)
WORDS = ("dog", "railway track", "a very long word for a wall")
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


@pytest.fixture(scope="module")
def blip2() -> Blip2:
    return Blip2(*random_blip2(), input_size=INPUT_PX)


def pixels(side: int = INPUT_PX) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def real(model: Blip2ForImageTextRetrieval, text: TextTokens, rgb: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Logits by hooks on the projections, a token and a head at a time, and the match probability."""
    projected: dict[tuple[int, str, str], Tensor] = {}
    hooks = [
        getattr(getattr(layer, kind).attention, part).register_forward_hook(
            lambda _, __, out, key=(index, kind, part): projected.update({key: out})
        )
        for index, layer in enumerate(model.qformer.encoder.layer)
        for kind in ("attention", "crossattention")
        for part in ("query", "key")
        if hasattr(layer, kind)
    ]
    prompts, tokens = text.input_ids.shape
    out = model(
        pixel_values=((rgb - MEAN) / DEVIATION).expand(prompts, -1, -1, -1),
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        use_image_text_matching_head=True,
    )
    for hook in hooks:
        hook.remove()
    heads, queries = model.config.qformer_config.num_attention_heads, model.config.num_query_tokens

    def by_head(layer: int, kind: str, part: str) -> Tensor:
        return projected[layer, kind, part].unflatten(2, (heads, -1)).transpose(1, 2)

    logits = {}
    for place, layer in enumerate((0, 2, 4, 6)):
        q = by_head(layer, "crossattention", "query")
        k = by_head(layer, "crossattention", "key")[:, :, 1:]
        word = by_head(layer + 1, "attention", "query")[:, :, queries:]
        read = by_head(layer + 1, "attention", "key")[:, :, :queries]
        root = math.sqrt(q.shape[3])
        rows = []
        for token in range(tokens):
            p = torch.stack(
                [((read[:, h] * word[:, h, token, None]).sum(dim=2) / root).softmax(dim=1) for h in range(heads)]
            )
            own = (p.mean(dim=0)[:, None, :, None] * q).sum(dim=2)  # the query that this token puts together
            rows.append((own[:, :, None] * k).sum(dim=3) / root)
        logits[place] = torch.stack(rows, dim=2)
    return logits, out.logits_per_image.softmax(dim=1)[:, 1]


def test_attention_and_match_are_those_of_transformers(blip2: Blip2) -> None:
    text = blip2.tokenize(WORDS)
    with torch.no_grad():
        seen = blip2.attend(blip2.encode_image(pixels())[0], text, layers=range(4))
        expected, match = real(random_blip2()[0], text, pixels())
    for layer in range(4):
        assert seen.logits[layer].shape == (3, 3, text.input_ids.shape[1], 25)
        rows = text.attention_mask.bool()[:, None].expand(-1, 3, -1)  # what padding sees is nobody's
        torch.testing.assert_close(seen.logits[layer][rows], expected[layer][rows], rtol=1e-5, atol=1e-5)
        assert expected[layer].std() > 0.1
    torch.testing.assert_close(seen.match_score, match, rtol=0, atol=1e-5)
    assert match.std() > 0.01


def test_gradients_are_those_of_transformers(blip2: Blip2) -> None:
    model, text = random_blip2()[0], blip2.tokenize(["dog", "cat"])
    free = blip2.trainable(LAYERS, text).map(lambda tensor: tensor.requires_grad_(True))
    seen = blip2.attend(blip2.encode_image(pixels())[0], text, layers=LAYERS, adapters=free.stacked)
    (sum(seen.logits[layer].square().mean() for layer in LAYERS) + seen.match_score.sum()).backward()
    logits, match = real(model, text, pixels())
    (sum(logits[layer].square().mean() for layer in LAYERS) + match.sum()).backward()
    assert_gradients(free, lambda name: model.get_parameter(name), model.get_input_embeddings().weight)


def test_a_token_sees_what_the_queries_it_reads_see() -> None:
    """By hand: 2 queries, one token that reads them 3 : 1 with one head and 1 : 1 with the other, so 5 : 3."""
    choice = torch.tensor([[[[math.log(3), 0.0]], [[7.0, 7.0]]]])
    looks = torch.tensor([[[[8.0, -16.0, 0.0], [16.0, 8.0, 0.0]]]])
    seen = attention_through_queries(choice, looks)
    torch.testing.assert_close(seen, torch.tensor([[[[8 * 5 / 8 + 16 * 3 / 8, -16 * 5 / 8 + 8 * 3 / 8, 0.0]]]]))


def test_a_constant_of_what_a_token_reads_changes_nothing() -> None:
    """Prompts compete patch by patch: no prompt may get louder because its tokens read more of everything."""
    generator = torch.Generator().manual_seed(0)
    choice, looks = torch.randn(2, 3, 5, 7, generator=generator), torch.randn(2, 3, 7, 11, generator=generator)
    louder = choice + torch.randn(2, 3, 5, 1, generator=generator)
    torch.testing.assert_close(attention_through_queries(louder, looks), attention_through_queries(choice, looks))


def test_a_cross_attention_that_no_text_reads_behind_is_no_layer(blip2: Blip2) -> None:
    assert blip2._text.read_layers == (0, 2, 4, 6)  # layer 8 is the last
    assert (blip2.layer_count, blip2.default_layers) == (4, (2, 3))
    model, tokenizer = random_blip2()
    model.config.qformer_config.cross_attention_frequency = 3
    assert Blip2(model, tokenizer, input_size=INPUT_PX)._text.read_layers == (0, 3, 6)


def test_the_image_tower_sees_its_own_statistics_and_interpolated_positions() -> None:
    """Positions of 5 × 5 patches brought to 7 × 7."""
    model = random_blip2()[0]
    tower, rgb = model.vision_model, pixels(196)
    with torch.no_grad():
        patches = tower.embeddings.patch_embedding((rgb - MEAN) / DEVIATION).flatten(2).mT
        position = tower.embeddings.position_embedding
        grid = position[:, 1:].mT.unflatten(2, (5, 5))
        grid = F.interpolate(grid, size=(7, 7), mode="bicubic", align_corners=False).flatten(2).mT
        x = torch.cat([tower.embeddings.class_embedding + position[:, :1], patches + grid], dim=1)
        expected = tower.post_layernorm(tower.encoder(inputs_embeds=x).last_hidden_state)
    (image,) = Blip2(*random_blip2(), input_size=196).encode_image(rgb)
    torch.testing.assert_close(image.tokens, expected[0], rtol=1e-4, atol=1e-4)


def test_one_example_may_change_cross_attention(blip2: Blip2) -> None:
    parts = ("attention.query", "attention.key", "attention.value", "output.dense", "output.LayerNorm")
    assert set(blip2.trainable((1, 2), blip2.tokenize(["dog"])).delta) == {
        f"qformer.encoder.layer.{layer}.crossattention.{part}.{kind}"
        for layer in (2, 4)
        for part in parts
        for kind in ("weight", "bias")
    }


def test_input_size_and_heads_are_part_of_the_revision(blip2: Blip2) -> None:
    assert Blip2(*random_blip2(), input_size=196).revision != blip2.revision
    model, tokenizer = random_blip2()
    model.config.qformer_config.num_attention_heads = 7
    assert Blip2(model, tokenizer, input_size=INPUT_PX).revision != blip2.revision


def test_an_input_of_broken_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="whole patches of 28"):
        Blip2(*random_blip2(), input_size=100)


def test_a_folder_becomes_a_model_on_364_pixels(loaded: dict[str, Backbone]) -> None:
    assert (loaded["blip2"].input_size, loaded["blip2"].patch_grid_hw) == (364, (13, 13))


def test_a_model_without_its_text_is_refused(specs: dict[str, str], tmp_path: Path) -> None:
    """transformers only warns, and fills the Q-Former's half for text with random numbers."""
    folder = tmp_path / "copy"
    spec = copied(specs["blip2"], folder)
    random_blip2(reads_text=False)[0].save_pretrained(folder)
    with pytest.raises(InvalidInputError, match="its Q-Former reads no text: give one"):
        load(spec, device="cpu", dtype="float32")
    config = json.loads((folder / "config.json").read_text())
    config["qformer_config"]["use_qformer_text_input"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match=r"missing, such as qformer\.encoder\.layer\.0\.intermediate\.dense"):
        load(spec, device="cpu", dtype="float32")
