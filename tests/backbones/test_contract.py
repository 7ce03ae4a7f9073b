"""What every backbone must do, one suite over all of them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from app.backbones import families, load
from app.backbones.embedded import WEIGHTS
from app.errors import InvalidInputError
from app.method.adapter import TOKEN_IDS, TOKEN_ROWS, Adapter
from app.method.backbone import Backbone, CrossAttention
from app.method.evidence import stack
from app.method.low_rank import unchanged
from app.method.segment import Query, segment
from app.method.tuning import CategoryTuning, Recipe, shot
from tests.models import random_adapter, random_blip

LAYERS = (0, 3)
WORDS = ("dog", "cat", "railway track", "sky", "sea", "a very long word for a wall", "bed")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `EXEMPLAR_BACKBONE` says for a model of each family."""
    folder = tmp_path_factory.mktemp("models") / "random-blip"
    for part in random_blip():
        part.save_pretrained(folder)
    return {"embedded": "embedded", "blip": f"blip:{folder}"}


@pytest.fixture(scope="module")
def loaded(specs: dict[str, str]) -> dict[str, Backbone]:
    return {family: load(spec, device="cpu", dtype="float32") for family, spec in specs.items()}


@pytest.fixture(params=["embedded", "blip"])
def backbone(request: pytest.FixtureRequest, loaded: dict[str, Backbone]) -> Backbone:
    return loaded[request.param]


@pytest.fixture(scope="module")
def _encoded(loaded: dict[str, Backbone]) -> dict[str, Tensor]:
    photo = np.random.default_rng(3).integers(0, 256, (37, 101, 3), dtype=np.uint8)
    return {name: one.encode_image(one.preprocess(photo)[0][None])[0] for name, one in loaded.items()}


@pytest.fixture
def image_tokens(backbone: Backbone, _encoded: dict[str, Tensor]) -> Tensor:
    return _encoded[backbone.family]


def every_tensor(part: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors that a backbone holds, wherever it holds them."""
    if isinstance(part, Tensor):
        yield path, part
    elif isinstance(part, torch.nn.Module):
        yield from ((f"{path}.{name}", tensor) for name, tensor in part.state_dict().items())
    elif isinstance(part, dict):
        for name, inner in part.items():
            yield from every_tensor(inner, f"{path}.{name}")
    elif isinstance(part, (list, tuple)):
        for index, inner in enumerate(part):
            yield from every_tensor(inner, f"{path}.{index}")
    elif is_dataclass(part):
        for field in fields(part):
            yield from every_tensor(getattr(part, field.name), f"{path}.{field.name}")
    elif isinstance(part, Backbone):
        yield from every_tensor(vars(part))


def fingerprint(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for name, tensor in every_tensor(backbone):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_every_family_is_tested_here(loaded: dict[str, Backbone]) -> None:
    assert sorted(loaded) == families()
    assert {one.family for one in loaded.values()} == set(families())


def test_it_says_what_it_is(backbone: Backbone) -> None:
    assert (backbone.device, backbone.dtype) == ("cpu", "float32")
    assert (
        backbone.encode_image(torch.zeros(1, 3, backbone.input_size, backbone.input_size)).shape[-1]
        == backbone.token_width
    )
    assert set(backbone.default_layers) <= set(range(backbone.layer_count))
    assert backbone.memory_bytes > 1_000_000
    assert len(backbone.revision) == 16
    held = {tensor.data_ptr(): tensor.nbytes for _, tensor in every_tensor(backbone)}
    assert sum(held.values()) >= backbone.memory_bytes  # so that nothing escapes the fingerprint below


def test_an_image_becomes_one_global_token_and_the_patches(backbone: Backbone) -> None:
    side = backbone.input_size
    rows, columns = backbone.patch_grid_hw
    rgb = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch, alone = backbone.encode_image(rgb), backbone.encode_image(rgb[1:])
    assert batch.shape[:2] == (2, 1 + rows * columns)
    torch.testing.assert_close(batch[1], alone[0], rtol=1e-4, atol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 0.01


def test_patches_lie_where_they_are_in_the_photo(backbone: Backbone) -> None:
    """A change of the bottom left corner of the input changes the patches there most."""
    side = backbone.input_size
    rows, columns = backbone.patch_grid_hw
    rgb = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    rgb[1, :, -side // 8 :, : side // 8] = 1 - rgb[1, :, -side // 8 :, : side // 8]
    tokens = backbone.encode_image(rgb)[:, 1:]
    change = (tokens[0] - tokens[1]).norm(dim=1).view(rows, columns)
    assert change[-rows // 8 :, : columns // 8].mean() > 5 * change[: rows // 2].mean()
    assert change[-rows // 8 :, : columns // 8].mean() > 5 * change[:, columns // 2 :].mean()


# 5 and 7 divide the 35 image tokens: transformers 4.57.6 to 5.5.0 took such prompts for a batch of images (METHOD, 7a).
@pytest.mark.parametrize("prompts", [1, 2, 5, 7])
def test_the_axes_are_prompt_head_token_and_image_token(backbone: Backbone, image_tokens: Tensor, prompts: int) -> None:
    text = backbone.tokenize(WORDS[:prompts])
    seen = backbone.attend(image_tokens[:35], text, layers=(3, 1))
    assert sorted(seen.logits) == [1, 3]
    heads = {"embedded": 12, "blip": 3}[backbone.family]
    for logits in seen.logits.values():
        assert logits.shape == (prompts, heads, text.input_ids.shape[1], 35)
    assert seen.match_score.shape == (prompts,)
    assert bool((seen.match_score >= 0).all())
    assert bool((seen.match_score <= 1).all())


@pytest.mark.parametrize("prompts", [5, 7])
def test_together_each_prompt_is_as_alone(backbone: Backbone, image_tokens: Tensor, prompts: int) -> None:
    together = backbone.attend(image_tokens[:35], backbone.tokenize(WORDS[:prompts]), layers=LAYERS)
    for index, word in enumerate(WORDS[:prompts]):
        text = backbone.tokenize([word])
        alone = backbone.attend(image_tokens[:35], text, layers=LAYERS)
        for layer in LAYERS:
            own = together.logits[layer][index, :, : text.input_ids.shape[1]]
            torch.testing.assert_close(own, alone.logits[layer][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.match_score[[index]], alone.match_score, rtol=0, atol=1e-5)


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
    torch.testing.assert_close(last[real], expected.last_hidden_state[real], rtol=1e-5, atol=1e-5)
    for layer, probabilities in enumerate(expected.cross_attentions):
        torch.testing.assert_close(logits[layer].softmax(dim=-1), probabilities, rtol=1e-4, atol=1e-5)
    q, k = (
        projected[part].view(len(WORDS), -1, tower.heads, hidden // tower.heads).transpose(1, 2)
        for part in ("query", "key")
    )
    by_hand = q @ k.mT / math.sqrt(hidden // tower.heads)
    torch.testing.assert_close(logits[3], by_hand, rtol=1e-4, atol=1e-4)


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


def test_the_trainable_parameters_are_copies(backbone: Backbone, image_tokens: Tensor) -> None:
    before = fingerprint(backbone)
    text = backbone.tokenize(["dog"])
    free = backbone.trainable(LAYERS, text)
    as_adapter = backbone.attend(
        image_tokens, text, layers=LAYERS, adapters={name: tensor[None] for name, tensor in free.items()}
    )
    plain = backbone.attend(image_tokens, text, layers=LAYERS)
    assert_same(as_adapter, plain)
    for name, tensor in free.items():
        if name != TOKEN_IDS:
            tensor.fill_(0)
    assert fingerprint(backbone) == before


def test_gradients_reach_exactly_the_trainable_parameters(backbone: Backbone, image_tokens: Tensor) -> None:
    text = backbone.tokenize(["dog"])
    free = backbone.trainable(LAYERS, text)
    for name, tensor in free.items():
        tensor.requires_grad_(name != TOKEN_IDS)
    seen = backbone.attend(
        image_tokens, text, layers=LAYERS, adapters={name: tensor[None] for name, tensor in free.items()}
    )
    (sum(logits.square().mean() for logits in seen.logits.values()) + seen.match_score.sum()).backward()
    for name, tensor in free.items():
        if name != TOKEN_IDS:
            assert tensor.grad is not None, name
            assert bool((tensor.grad != 0).any()), name
    rows = free[TOKEN_ROWS].grad
    assert rows is not None
    assert bool((rows != 0).any(dim=1).all())
    for name, tensor in every_tensor(backbone):
        assert not tensor.requires_grad, name
        assert tensor.grad is None, name


def test_factors_of_a_change_are_as_the_changed_matrices(backbone: Backbone, image_tokens: Tensor) -> None:
    text = backbone.tokenize(["dog", "railway dog", "cat", "railway cat"])
    base = backbone.trainable(LAYERS, text)
    pairs = [text.input_ids[:2].unique(), text.input_ids[2:].unique()]
    whole, factors = [], []
    for seed, tokens in enumerate(pairs):
        generator = torch.Generator().manual_seed(seed)
        parts = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in unchanged(base, 3).items()
            if name not in (TOKEN_IDS, TOKEN_ROWS)
        }
        parts |= {
            TOKEN_IDS: tokens,
            TOKEN_ROWS: torch.randn(len(tokens), base[TOKEN_ROWS].shape[1], generator=generator),
        }
        changed = {n: base[n] + parts[n + ".left"] @ parts[n + ".right"] for n in base if n + ".left" in parts}
        factors.append(parts)
        whole.append({n: t for n, t in parts.items() if not n.endswith((".left", ".right"))} | changed)
    seen, expected = (
        backbone.attend(
            image_tokens, text, layers=LAYERS, adapters={n: torch.stack([a[n] for a in each]) for n in each[0]}
        )
        for each in (factors, whole)
    )
    assert_same(seen, expected)


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
        one = replace(text, input_ids=text.input_ids[own], attention_mask=text.attention_mask[own])
        with torch.no_grad():
            alone = with_substituted(backbone, adapter).attend(image_tokens, one, layers=LAYERS)
        got = CrossAttention({layer: stacked.logits[layer][own] for layer in LAYERS}, stacked.match_score[own])
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


def assert_same(got: CrossAttention, expected: CrossAttention) -> None:
    assert got.logits.keys() == expected.logits.keys()
    for layer, logits in expected.logits.items():
        torch.testing.assert_close(got.logits[layer], logits, rtol=1e-4, atol=1e-4 * float(logits.std()))
    torch.testing.assert_close(got.match_score, expected.match_score, rtol=0, atol=1e-4)


def test_prompts_that_can_t_be_shared_among_the_adapters_are_refused(backbone: Backbone, image_tokens: Tensor) -> None:
    adapters = stack([random_adapter(backbone, "dog"), random_adapter(backbone, "cat")])
    with pytest.raises(ValueError, match="multiple of 2 prompts"):
        backbone.attend(image_tokens, backbone.tokenize(["dog", "cat", "sky"]), layers=LAYERS, adapters=adapters)


def test_the_model_is_bit_equal_after_segmenting_and_tuning(backbone: Backbone, image_tokens: Tensor) -> None:
    before = fingerprint(backbone)
    photo = np.random.default_rng(5).integers(0, 256, (53, 41, 3), dtype=np.uint8)
    segment(backbone, photo, [Query(("dog",), random_adapter(backbone, "dog"))], background=("sky", "wall"))
    labels = torch.zeros(backbone.input_size, backbone.input_size, dtype=torch.long)
    labels[: backbone.input_size // 3] = 1
    tuning = CategoryTuning(
        backbone,
        [shot(backbone, image_tokens, labels, label_scale=1)],
        ["dog"],
        background=("sky", "wall"),
        layers=LAYERS,
        recipe=Recipe(learning_rate=1e-2),
    )
    tuning.step()
    tuning.step()
    tuning.example_iou(adapted=True)
    assert fingerprint(backbone) == before


@pytest.mark.parametrize("photo_hw", [(1, 1000), (1000, 1), (61, 61), (1, 1)])
def test_a_photo_of_any_shape_gets_maps_of_its_own_size(backbone: Backbone, photo_hw: tuple[int, int]) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (*photo_hw, 3), dtype=np.uint8)
    maps = segment(backbone, photo, [Query(("dog",)), Query(("cat", "kitten"))], background=("sky", "wall"))
    assert maps.shape == (3, *photo_hw)
    assert maps.min() >= 0
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(photo_hw), rtol=0, atol=1e-5)


def test_the_longest_name_and_any_script_can_be_asked(backbone: Backbone, image_tokens: Tensor) -> None:
    for word in ("q" * 64, "狗" * 64, "🐕", "Straßenbahn"):
        seen = backbone.attend(image_tokens[:35], backbone.tokenize([word]), layers=LAYERS)
        assert bool(torch.isfinite(seen.logits[3]).all())


def test_the_revision_is_of_the_weights(backbone: Backbone, specs: dict[str, str], tmp_path: Path) -> None:
    family = backbone.family
    assert load(specs[family], device="cpu", dtype="float32").revision == backbone.revision
    changed = {"embedded": another_embedded, "blip": another_blip}[family](tmp_path)
    other = load(f"{family}:{changed}", device="cpu", dtype="float32")
    assert other.revision != backbone.revision
    assert other.name != backbone.name


def another_embedded(folder: Path) -> Path:
    tensors = load_file(WEIGHTS)
    tensors["itm_head.bias"] = tensors["itm_head.bias"] + 1
    save_file(tensors, folder / "other.safetensors")
    return folder / "other.safetensors"


def another_blip(folder: Path) -> Path:
    model, tokenizer = random_blip()
    with torch.no_grad():
        model.itm_head.bias[0] += 1
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


def test_a_backbone_works_in_half_the_width(backbone: Backbone, specs: dict[str, str], image_tokens: Tensor) -> None:
    half = load(specs[backbone.family], device="cpu", dtype="bfloat16")
    assert half.dtype == "bfloat16"
    assert half.memory_bytes < 0.6 * backbone.memory_bytes
    assert half.revision == backbone.revision
    adapters = stack([random_adapter(half, "dog")])
    seen = half.attend(image_tokens.bfloat16(), half.tokenize(["dog"]), layers=LAYERS, adapters=adapters)
    exact = backbone.attend(image_tokens, half.tokenize(["dog"]), layers=LAYERS, adapters=adapters)
    assert (seen.logits[0] - exact.logits[0]).abs().max() < 0.1 * exact.logits[0].abs().max()
    assert seen.match_score.dtype == torch.float32


@pytest.mark.parametrize("family", ["embedded", "blip"])
def test_missing_weights_are_named(family: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nowhere"):
        load(f"{family}:{tmp_path / 'nowhere'}", device="cpu", dtype="float32")


@pytest.mark.parametrize("spec", ["", "clip", "clip:openai/clip", "blip_text", "efficientnet", "../embedded"])
def test_an_unknown_family_names_the_known_ones(spec: str) -> None:
    with pytest.raises(InvalidInputError, match="one of blip, embedded"):
        load(spec, device="cpu", dtype="float32")
