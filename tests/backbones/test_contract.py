"""What every backbone must do, one suite over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from app.method.segment import segment
from torch import Tensor

from app.backbones import about, families, load
from app.errors import InvalidInputError
from app.method.adapter import TOKEN_IDS, TOKEN_ROWS
from app.method.backbone import Backbone, ImageTextScore, TextToImage
from app.method.evidence import Query, stack
from app.method.low_rank import unchanged
from app.method.tuning import CategoryTuning, Recipe, shot
from app.method.visual_prompt import BIAS, DIRECTION
from tests.backbones.families import FAMILIES
from tests.models import random_adapter

LAYERS = (0, 3)
WORDS = ("dog", "cat", "railway track", "sky", "sea", "a very long word for a wall", "bed")


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
    assert backbone.image_text_score in get_args(ImageTextScore)
    described = about(backbone.family)
    assert (described.name, described.image_text_score) == (backbone.family, backbone.image_text_score)
    assert set(backbone.default_layers) <= set(range(backbone.layer_count))
    assert backbone.memory_bytes > 100_000
    assert len(backbone.revision) == 16
    held = {tensor.data_ptr(): tensor.nbytes for _, tensor in every_tensor(backbone)}
    assert sum(held.values()) >= backbone.memory_bytes  # so that nothing escapes the fingerprint below


def test_an_image_becomes_tokens_that_say_something_of_each_patch(backbone: Backbone) -> None:
    side = backbone.input_size
    rows, columns = backbone.patch_grid_hw
    rgb = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch, alone = backbone.encode_image(rgb), backbone.encode_image(rgb[1:])
    assert backbone.patch_features(batch[0]).shape == (rows * columns, backbone.feature_width)
    torch.testing.assert_close(batch[1], alone[0], rtol=1e-4, atol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 0.01


def test_patches_lie_where_they_are_in_the_photo(backbone: Backbone) -> None:
    """A change of the bottom left corner of the input changes the patches there most."""
    side = backbone.input_size
    rows, columns = backbone.patch_grid_hw
    rgb = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    rgb[1, :, -side // 8 :, : side // 8] = 1 - rgb[1, :, -side // 8 :, : side // 8]
    first, second = (backbone.patch_features(tokens) for tokens in backbone.encode_image(rgb))
    change = (first - second).norm(dim=1).view(rows, columns)
    assert change[-rows // 8 :, : columns // 8].mean() > 5 * change[: rows // 2].mean()
    assert change[-rows // 8 :, : columns // 8].mean() > 5 * change[:, columns // 2 :].mean()


@pytest.mark.parametrize("prompts", [1, 2, 5, 7])
def test_the_axes_are_prompt_head_token_and_patch(backbone: Backbone, image_tokens: Tensor, prompts: int) -> None:
    text = backbone.tokenize(WORDS[:prompts])
    rows, columns = backbone.patch_grid_hw
    seen = backbone.attend(image_tokens, text, layers=(3, 1))
    assert sorted(seen.logits) == [1, 3]
    for logits in seen.logits.values():
        heads = logits.shape[1]
        assert logits.shape == (prompts, heads, text.input_ids.shape[1], rows * columns)
    assert seen.match_score.shape == (prompts,)
    assert bool((seen.match_score >= 0).all())
    assert bool((seen.match_score <= 1).all())


@pytest.mark.parametrize("prompts", [5, 7])
def test_together_each_prompt_is_as_alone(backbone: Backbone, image_tokens: Tensor, prompts: int) -> None:
    together = backbone.attend(image_tokens, backbone.tokenize(WORDS[:prompts]), layers=LAYERS)
    for index, word in enumerate(WORDS[:prompts]):
        text = backbone.tokenize([word])
        alone = backbone.attend(image_tokens, text, layers=LAYERS)
        for layer in LAYERS:
            own = together.logits[layer][index, :, : text.input_ids.shape[1]]
            torch.testing.assert_close(own, alone.logits[layer][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.match_score[[index]], alone.match_score, rtol=0, atol=1e-5)


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
    # A little off the base: where factors of a change begin at nothing, one of them has no gradient there.
    free = dict(random_adapter(backbone, "dog").tensors)
    del free[DIRECTION], free[BIAS]
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
    count = min(map(len, pairs))
    whole, factors = [], []
    for seed, tokens in enumerate(pair[:count] for pair in pairs):
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
        whole.append({n: t for n, t in parts.items() if n in base or not n.endswith((".left", ".right"))} | changed)
    seen, expected = (
        backbone.attend(
            image_tokens, text, layers=LAYERS, adapters={n: torch.stack([a[n] for a in each]) for n in each[0]}
        )
        for each in (factors, whole)
    )
    assert_same(seen, expected)


@pytest.mark.parametrize("shares", [("dog",), ("dog", "hound", "a small white puppy")])
def test_stacked_adapters_are_each_as_alone(backbone: Backbone, image_tokens: Tensor, shares: tuple[str, ...]) -> None:
    words = [shares, tuple(f"{word} cat" for word in shares), tuple(f"railway {word}" for word in shares)]
    adapters = [random_adapter(backbone, *group, layers=LAYERS, seed=seed) for seed, group in enumerate(words)]
    text = backbone.tokenize([word for group in words for word in group])
    with torch.no_grad():
        stacked = backbone.attend(image_tokens, text, layers=LAYERS, adapters=stack(adapters))
        plain = backbone.attend(image_tokens, text, layers=LAYERS)
    for index, adapter in enumerate(adapters):
        own = slice(index * len(shares), (index + 1) * len(shares))
        with torch.no_grad():
            alone = backbone.attend(image_tokens, text[own], layers=LAYERS, adapters=stack([adapter]))
        got = TextToImage({layer: stacked.logits[layer][own] for layer in LAYERS}, stacked.match_score[own])
        assert_same(got, alone)
        assert (got.logits[0] - plain.logits[0][own]).abs().max() > 0.01


def test_prompts_that_can_not_be_shared_out_are_refused(backbone: Backbone, image_tokens: Tensor) -> None:
    adapters = stack([random_adapter(backbone, word) for word in ("dog", "cat")])
    with pytest.raises(ValueError, match="multiple of 2 prompts"):
        backbone.attend(image_tokens, backbone.tokenize(["dog", "cat", "bed"]), layers=LAYERS, adapters=adapters)


def test_tuning_on_one_photo_finds_more_of_it(backbone: Backbone) -> None:
    """A square of red on noise of blue: the loss goes down, and the mask on the example itself gets better."""
    side = backbone.input_size
    rgb = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    rgb[:2] *= 0.2
    labels = torch.zeros(side, side, dtype=torch.long)
    box = slice(side // 4, side // 4 + side // 2)
    rgb[0, box, box], rgb[2, box, box], labels[box, box] = 1.0, 0.0, 1
    with torch.no_grad():
        tokens = backbone.encode_image(rgb[None])[0]
    tuning = CategoryTuning(
        backbone,
        [shot(backbone, tokens, labels, label_scale=1)],
        ["dog"],
        background=("sky", "wall", "sea"),
        layers=backbone.default_layers,
        recipe=Recipe(learning_rate=5e-3, interpolation=1.0),
    )
    losses = [tuning.step() for _ in range(20)]
    assert min(losses[-3:]) < losses[0] - 0.01
    assert tuning.example_iou(adapted=True) > tuning.example_iou(adapted=False)


def assert_same(got: TextToImage, expected: TextToImage) -> None:
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
        seen = backbone.attend(image_tokens, backbone.tokenize([word]), layers=LAYERS)
        assert bool(torch.isfinite(seen.logits[3]).all())


def test_the_revision_is_of_the_weights(backbone: Backbone, specs: dict[str, str], tmp_path: Path) -> None:
    family = backbone.family
    assert load(specs[family], device="cpu", dtype="float32").revision == backbone.revision
    (tmp_path / "other").mkdir()
    other = load(FAMILIES[family](tmp_path / "other", changed=True), device="cpu", dtype="float32")
    assert other.revision != backbone.revision
    assert other.name != backbone.name


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


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_weights_are_named(family: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nowhere"):
        load(f"{family}:{tmp_path / 'nowhere'}", device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "spec", ["", "clip", "clip:openai/clip", "adapted", "blip_text", "efficientnet", "../embedded"]
)
def test_an_unknown_family_names_the_known_ones(spec: str) -> None:
    with pytest.raises(InvalidInputError, match=f"one of {', '.join(families())}"):
        load(spec, device="cpu", dtype="float32")
