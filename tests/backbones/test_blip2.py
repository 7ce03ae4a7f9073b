"""What is BLIP-2's own: the Q-Former against that of transformers, and how a text gets logits through its queries."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Blip2ForImageTextRetrieval

from app.backbones.blip2 import Blip2, attention_through_queries, load
from app.errors import InvalidInputError
from app.method.adapter import TOKEN_IDS, TOKEN_ROWS, Adapter
from app.method.backbone import TextTokens
from app.method.evidence import stack
from tests.backbones.blip2_model import INPUT_PX, random_blip2, write
from tests.models import random_adapter

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


def substituted(adapter: Adapter) -> Blip2ForImageTextRetrieval:
    """The model of transformers with the adapter's parameters in place of its own."""
    model = random_blip2()[0]
    own = dict(model.named_parameters())
    with torch.no_grad():
        model.get_input_embeddings().weight[adapter.tensors[TOKEN_IDS]] = adapter.tensors[TOKEN_ROWS]
        for name in own.keys() & adapter.tensors.keys():
            own[name].copy_(adapter.tensors[name])
    return model


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
    free = blip2.trainable(LAYERS, text)
    for name, tensor in free.items():
        tensor.requires_grad_(name != TOKEN_IDS)
    adapters = {name: tensor[None] for name, tensor in free.items()}
    seen = blip2.attend(blip2.encode_image(pixels())[0], text, layers=LAYERS, adapters=adapters)
    (sum(seen.logits[layer].square().mean() for layer in LAYERS) + seen.match_score.sum()).backward()
    logits, match = real(model, text, pixels())
    (sum(logits[layer].square().mean() for layer in LAYERS) + match.sum()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected[TOKEN_ROWS] = model.get_input_embeddings().weight.grad[free[TOKEN_IDS]]
    for name in free.keys() - {TOKEN_IDS}:
        error = (free[name].grad - expected[name]).norm() / expected[name].norm()
        assert error < 1e-5, name


def test_adapters_are_as_substituted_into_the_model(blip2: Blip2) -> None:
    words = [("dog", "hound"), ("cat", "kitten"), ("railway track", "rail")]
    adapters = [
        random_adapter(blip2, *group, layers=LAYERS, ensemble=(1 / 3,) * 3, seed=n) for n, group in enumerate(words)
    ]
    text = blip2.tokenize([word for group in words for word in group])
    with torch.no_grad():
        tokens = blip2.encode_image(pixels())[0]
        seen = blip2.attend(tokens, text, layers=LAYERS, adapters=stack(adapters))
        plain = blip2.attend(tokens, text, layers=LAYERS)
    for index, adapter in enumerate(adapters):
        own = slice(2 * index, 2 * index + 2)
        with torch.no_grad():
            expected, match = real(substituted(adapter), text[own], pixels())
        rows = text[own].attention_mask.bool()[:, None].expand(-1, 3, -1)
        for layer in LAYERS:
            torch.testing.assert_close(seen.logits[layer][own][rows], expected[layer][rows], rtol=1e-5, atol=2e-5)
            assert (seen.logits[layer][own] - plain.logits[layer][own]).abs().max() > 0.1
        torch.testing.assert_close(seen.match_score[own], match, rtol=0, atol=1e-5)


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
    torch.testing.assert_close(Blip2(*random_blip2(), input_size=196).encode_image(rgb), expected, rtol=1e-4, atol=1e-4)


def test_one_example_may_change_cross_attention_and_the_rows_of_its_tokens(blip2: Blip2) -> None:
    text = blip2.tokenize(["dog", "dog sky"])
    free = blip2.trainable((1, 2), text)
    parts = {"attention.query", "attention.key", "attention.value", "output.dense", "output.LayerNorm"}
    assert set(free) == {TOKEN_IDS, TOKEN_ROWS} | {
        f"qformer.encoder.layer.{layer}.crossattention.{part}.{kind}"
        for layer in (2, 4)
        for part in parts
        for kind in ("weight", "bias")
    }
    assert sorted(free[TOKEN_IDS].tolist()) == sorted(set(text.input_ids.flatten().tolist()))
    assert {tensor.dtype for tensor in free.values()} == {torch.float32, torch.int64}


def test_input_size_and_heads_are_part_of_the_revision(blip2: Blip2) -> None:
    assert Blip2(*random_blip2(), input_size=196).revision != blip2.revision
    model, tokenizer = random_blip2()
    model.config.qformer_config.num_attention_heads = 7
    assert Blip2(model, tokenizer, input_size=INPUT_PX).revision != blip2.revision


def test_an_input_of_broken_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="whole patches of 28"):
        Blip2(*random_blip2(), input_size=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random-blip2"
    write(folder, changed=False)
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The folder, to be broken."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_folder_becomes_a_model_on_364_pixels(folder: Path) -> None:
    loaded = load(str(folder), device="cpu", dtype="float32")
    assert loaded.name == "blip2:random-blip2"
    assert (loaded.input_size, loaded.patch_grid_hw) == (364, (13, 13))


def test_without_a_source_it_says_what_to_set() -> None:
    with pytest.raises(InvalidInputError, match="EXEMPLAR_BACKBONE=blip2:"):
        load("", device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("file", "content"), [("model.safetensors", b"garbage" * 9), ("config.json", b"{"), ("model.safetensors", None)]
)
def test_a_broken_folder_is_refused(copied: Path, file: str, content: bytes | None) -> None:
    (copied / file).unlink()
    if content is not None:
        (copied / file).write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"No BLIP-2 model could be read .* holds config\.json"):
        load(str(copied), device="cpu", dtype="float32")


def test_weights_of_another_size_than_the_config_says_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["qformer_config"]["intermediate_size"] = 17
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match="No BLIP-2 model could be read"):
        load(str(copied), device="cpu", dtype="float32")


def test_a_model_without_its_text_is_refused(copied: Path) -> None:
    """transformers only warns, and fills the Q-Former's half for text with random numbers."""
    random_blip2(reads_text=False)[0].save_pretrained(copied)
    with pytest.raises(InvalidInputError, match="its Q-Former reads no text: give one"):
        load(str(copied), device="cpu", dtype="float32")
    config = json.loads((copied / "config.json").read_text())
    config["qformer_config"]["use_qformer_text_input"] = True
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match=r"missing, such as qformer\.encoder\.layer\.0\.intermediate\.dense"):
        load(str(copied), device="cpu", dtype="float32")


def test_a_folder_without_vocabulary_is_refused(copied: Path) -> None:
    """transformers makes a tokenizer of it that knows no word."""
    (copied / "tokenizer.json").unlink()
    with pytest.raises(InvalidInputError, match=r"its tokenizer knows no words: put tokenizer\.json"):
        load(str(copied), device="cpu", dtype="float32")
