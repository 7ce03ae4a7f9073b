"""The contract of `Backbone`, checked on a small model of every family."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from app.backbones import about, families, load
from app.backbones.embedded import WEIGHTS
from app.errors import InvalidInputError
from app.method.adapter import Adapter
from app.method.backbone import Backbone, EncodedImage, ImageTextScore, MaskDecoder, TextToImage
from app.method.low_rank import unchanged
from app.method.parameters import Change, LowRank, Parameters, TokenRows
from app.method.pieces import finished
from app.method.pipeline import Pipeline
from app.method.prompts import Prompts, Query
from app.method.selection import select
from app.method.shot import Shot
from app.method.tuning import TUNED, CategoryTuning
from tests.backbones.families import FAMILIES, FOLDERS, copied, read_weights, stored_name, weights_file, with_weights
from tests.models import random_adapter

LAYERS = (0, 3)
WORDS = ("dog", "cat", "railway track", "sky", "sea", "a very long word for a wall", "bed")
BACKGROUND = Prompts.of((), ("sky", "wall"))
EMBEDDINGS = ("word_embeddings.weight", "embed_tokens.weight")


def every_tensor(part: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors that a backbone holds, wherever it holds them."""
    if isinstance(part, Tensor):
        # A copy of weights in oneDNN's own layout has no bits that can be read.
        yield from () if part.is_mkldnn else ((path, part),)
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
    elif isinstance(part, Backbone | MaskDecoder):
        yield from every_tensor(vars(part), path)


def fingerprint(backbone: Backbone) -> str:
    """Hash of every bit of the model."""
    digest = hashlib.sha256()
    for name, tensor in every_tensor(backbone):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def assert_same(got: TextToImage, expected: TextToImage) -> None:
    """Equal but for rounding."""
    assert got.logits.keys() == expected.logits.keys()
    for layer, logits in expected.logits.items():
        torch.testing.assert_close(got.logits[layer], logits, rtol=1e-4, atol=1e-4 * float(logits.std()))
    torch.testing.assert_close(got.match_score, expected.match_score, rtol=0, atol=1e-4)


def part_of(seen: TextToImage, prompts: slice) -> TextToImage:
    """Some of the prompts."""
    return TextToImage({layer: logits[prompts] for layer, logits in seen.logits.items()}, seen.match_score[prompts])


def parameters_of(*adapters: Adapter) -> Parameters:
    """The adapters' parameters, stacked."""
    return Parameters.stack([adapter.parameters for adapter in adapters if adapter.parameters])


def names_and_tensors(parameters: Parameters) -> list[tuple[str, Tensor]]:
    """Everything in them that a gradient may change."""
    changes = [
        (name, tensor)
        for name, change in parameters.delta.items()
        for tensor in (change if isinstance(change, LowRank) else (change,))
    ]
    return [*changes, ("token rows", parameters.tokens.rows)]


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
    torch.testing.assert_close(batch[1].tokens, alone[0].tokens, rtol=1e-4, atol=1e-4)
    assert (batch[0].tokens - batch[1].tokens).abs().max() > 0.01


def test_fine_features_are_there_for_the_mask_decoder(backbone: Backbone, image: EncodedImage) -> None:
    fine = image.fine_features
    assert (fine is None) == (backbone.mask_decoder is None)
    parts = [part for part in (image.tokens, fine, image.kinds) if part is not None]
    assert image.nbytes == sum(part.nbytes for part in parts)
    if fine is not None:
        rgb = torch.rand(2, 3, backbone.input_size, backbone.input_size, generator=torch.Generator().manual_seed(0))
        together, alone = backbone.encode_image(rgb)[1].fine_features, backbone.encode_image(rgb[1:])[0].fine_features
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_patches_lie_where_they_are_in_the_photo(backbone: Backbone) -> None:
    """A change of the bottom left corner of the input changes the patches there most."""
    side = backbone.input_size
    rows, columns = backbone.patch_grid_hw
    rgb = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    rgb[1, :, -side // 8 :, : side // 8] = 1 - rgb[1, :, -side // 8 :, : side // 8]
    first, second = (backbone.patch_features(each) for each in backbone.encode_image(rgb))
    change = (first - second).norm(dim=1).view(rows, columns)
    assert change[-rows // 8 :, : columns // 8].mean() > 5 * change[: rows // 2].mean()
    assert change[-rows // 8 :, : columns // 8].mean() > 5 * change[:, columns // 2 :].mean()


@pytest.mark.parametrize("prompts", [1, 2, 5, 7])
def test_the_axes_are_prompt_head_token_and_patch(backbone: Backbone, image: EncodedImage, prompts: int) -> None:
    text = backbone.tokenize(WORDS[:prompts])
    rows, columns = backbone.patch_grid_hw
    seen = backbone.attend(image, text, layers=(3, 1))
    assert sorted(seen.logits) == [1, 3]
    for logits in seen.logits.values():
        heads = logits.shape[1]
        assert logits.shape == (prompts, heads, text.input_ids.shape[1], rows * columns)
    assert seen.match_score.shape == (prompts,)
    assert bool((seen.match_score >= 0).all())
    assert bool((seen.match_score <= 1).all())


@pytest.mark.parametrize("prompts", [5, 7])
def test_together_each_prompt_is_as_alone(backbone: Backbone, image: EncodedImage, prompts: int) -> None:
    together = backbone.attend(image, backbone.tokenize(WORDS[:prompts]), layers=LAYERS)
    for index, word in enumerate(WORDS[:prompts]):
        text = backbone.tokenize([word])
        alone = backbone.attend(image, text, layers=LAYERS)
        for layer in LAYERS:
            own = together.logits[layer][index, :, : text.input_ids.shape[1]]
            torch.testing.assert_close(own, alone.logits[layer][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.match_score[[index]], alone.match_score, rtol=0, atol=1e-5)


def test_the_trainable_parameters_are_float32_copies(backbone: Backbone, image: EncodedImage) -> None:
    before = fingerprint(backbone)
    text = backbone.tokenize(["dog", "railway dog"])
    free = backbone.trainable(LAYERS, text)
    assert sorted(free.tokens.ids.tolist()) == sorted(set(text.input_ids.flatten().tolist()))
    assert len(free.tokens.rows) == len(free.tokens.ids)
    assert {tensor.dtype for tensor in free.trained} == {torch.float32}
    assert_same(
        backbone.attend(image, text, layers=LAYERS, adapters=free.stacked),
        backbone.attend(image, text, layers=LAYERS),
    )
    for tensor in free.trained:
        tensor.fill_(0)
    assert fingerprint(backbone) == before


def test_gradients_reach_exactly_the_trainable_parameters(backbone: Backbone, image: EncodedImage) -> None:
    # A little off the base: where factors of a change begin at nothing, one of them has no gradient there.
    free = random_adapter(backbone, "dog").parameters
    assert free is not None
    for tensor in free.trained:
        tensor.requires_grad_(True)
    seen = backbone.attend(image, backbone.tokenize(["dog"]), layers=LAYERS, adapters=free.stacked)
    (sum(logits.square().mean() for logits in seen.logits.values()) + seen.match_score.sum()).backward()
    for name, tensor in names_and_tensors(free):
        assert tensor.grad is not None, name
        assert bool((tensor.grad != 0).any()), name
    assert bool((free.tokens.rows.grad != 0).any(dim=1).all())
    for name, tensor in every_tensor(backbone):
        assert not tensor.requires_grad, name
        assert tensor.grad is None, name


def test_a_low_rank_change_equals_the_changed_matrix(backbone: Backbone, image: EncodedImage) -> None:
    text = backbone.tokenize(["dog", "railway dog", "cat", "railway cat"])
    base = backbone.trainable(LAYERS, text)
    whole, factors = [], []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        ids = text.input_ids[2 * seed : 2 * seed + 2].unique()
        rows = TokenRows(ids, torch.randn(len(ids), base.tokens.rows.shape[1], generator=generator))
        noisy = unchanged(base, 3).map(lambda t, g=generator: t + 0.1 * torch.randn(t.shape, generator=g))
        factors.append(Parameters(noisy.delta, rows))
        changed: dict[str, Change] = {
            name: own + change.left @ change.right
            if isinstance(change, LowRank) and isinstance(own := base.delta[name], Tensor)
            else change
            for name, change in noisy.delta.items()
        }
        whole.append(Parameters(changed, rows))
    seen, expected = (
        backbone.attend(image, text, layers=LAYERS, adapters=Parameters.stack(each)) for each in (factors, whole)
    )
    assert_same(seen, expected)


@pytest.mark.parametrize("shares", [("dog",), ("dog", "hound", "a small white puppy")])
def test_an_adapter_as_an_argument_equals_its_parameters_written_into_the_model(
    backbone: Backbone, image: EncodedImage, specs: dict[str, str], tmp_path: Path, shares: tuple[str, ...]
) -> None:
    """Against a checkpoint with these parameters, which runs the prompts without an adapter."""
    words = [shares, tuple(f"{word} cat" for word in shares), tuple(f"railway {word}" for word in shares)]
    adapters = [random_adapter(backbone, *group, layers=LAYERS, seed=seed) for seed, group in enumerate(words)]
    text = backbone.tokenize([word for group in words for word in group])
    with torch.no_grad():
        stacked = backbone.attend(image, text, layers=LAYERS, adapters=parameters_of(*adapters))
        plain = backbone.attend(image, text, layers=LAYERS)
    for index, adapter in enumerate(adapters):
        own = slice(index * len(shares), (index + 1) * len(shares))
        with torch.no_grad():
            alone = backbone.attend(image, text[own], layers=LAYERS, adapters=parameters_of(adapter))
        got = part_of(stacked, own)
        assert_same(got, alone)
        assert (got.logits[0] - plain.logits[0][own]).abs().max() > 0.01
    # The last one, whose token rows the stack pads: one checkpoint is enough, and the shipped model's is large.
    assert adapter.parameters is not None
    spec = written(specs[backbone.family], adapter.parameters, tmp_path / "changed")
    with torch.no_grad():
        expected = load(spec, device="cpu", dtype="float32").attend(image, text[own], layers=LAYERS)
    assert_same(got, expected)


def written(spec: str, parameters: Parameters, folder: Path) -> str:
    """A checkpoint with these parameters in place of its own; returns its spec."""
    weights = read_weights(spec)
    for name, change in parameters.delta.items():
        own = stored_name(weights, name)
        weights[own] = weights[own] + change.left @ change.right if isinstance(change, LowRank) else change
    table = stored_name(weights, EMBEDDINGS)
    weights[table] = weights[table].clone()
    weights[table][parameters.tokens.ids] = parameters.tokens.rows
    return with_weights(spec, weights, folder)


def test_prompts_that_can_not_be_shared_out_are_refused(backbone: Backbone, image: EncodedImage) -> None:
    adapters = parameters_of(*(random_adapter(backbone, word) for word in ("dog", "cat")))
    with pytest.raises(ValueError, match="multiple of 2 prompts"):
        backbone.attend(image, backbone.tokenize(["dog", "cat", "bed"]), layers=LAYERS, adapters=adapters)


def test_tuning_on_one_photo_finds_more_of_it(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A square of red on noise of blue: the loss goes down, and the mask on the example itself gets better."""
    monkeypatch.setattr("app.method.tuning.LEARNING_RATE", 5e-3)
    side = backbone.input_size
    rgb = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    rgb[:2] *= 0.2
    labels = torch.zeros(side, side)
    box = slice(side // 4, side // 4 + side // 2)
    rgb[0, box, box], rgb[2, box, box], labels[box, box] = 1.0, 0.0, 1
    tuning = CategoryTuning(
        backbone,
        [Shot.of(backbone, backbone.encode_image(rgb[None])[0], labels)],
        ["dog"],
        others=Prompts.of((), ("sky", "wall", "sea")),
        layers=backbone.default_layers,
        recipe=replace(TUNED, interpolation=1.0),
    )
    losses = [tuning.step() for _ in range(20)]
    assert min(losses[-3:]) < losses[0] - 0.01
    outcome = finished(select(tuning))
    assert outcome.example_iou > outcome.zero_shot_example_iou


def test_the_model_is_bit_equal_after_every_call(backbone: Backbone, image: EncodedImage) -> None:
    photo = np.random.default_rng(5).integers(0, 256, (53, 41, 3), dtype=np.uint8)
    rgb, _ = backbone.preprocess(photo)
    text = backbone.tokenize(WORDS[:2])
    adapter = random_adapter(backbone, "dog")
    labels = torch.zeros(backbone.input_size, backbone.input_size)
    labels[: backbone.input_size // 3] = 1
    shot = Shot.of(backbone, image, labels)

    def tune() -> None:
        tuning = CategoryTuning(backbone, [shot], ["dog"], others=BACKGROUND, layers=LAYERS)
        tuning.step()
        tuning.step()
        finished(select(tuning))

    calls: dict[str, Callable[[], object]] = {
        "encode_image": lambda: backbone.encode_image(rgb[None]),
        "patch_features": lambda: backbone.patch_features(image),
        "attend": lambda: backbone.attend(image, text, layers=LAYERS),
        "attend with an adapter": lambda: backbone.attend(image, text, layers=LAYERS, adapters=parameters_of(adapter)),
        "segment": lambda: Pipeline(backbone).run(photo, [Query(("dog",), adapter), Query(("cat",))]),
        "tune": tune,
    }
    before = fingerprint(backbone)
    for call in calls.values():
        call()
    if fingerprint(backbone) != before:  # once, for a hash reads every weight: after each call only to name one
        for name, call in calls.items():
            before = fingerprint(backbone)
            call()
            assert fingerprint(backbone) == before, name
        pytest.fail("a call changed the model, though not when it was made again")


@pytest.mark.parametrize("photo_hw", [(1, 1000), (1000, 1), (61, 61), (1, 1)])
def test_a_photo_of_any_shape_gets_maps_of_its_own_size(backbone: Backbone, photo_hw: tuple[int, int]) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (*photo_hw, 3), dtype=np.uint8)
    pipeline = Pipeline(backbone, background=("sky", "wall"), min_relative_score=0.0)
    found = pipeline.run(photo, [Query(("dog",)), Query(("cat", "kitten"))])
    maps = torch.stack([torch.from_numpy(found.probability(number)) for number in range(3)])
    assert maps.shape == (3, *photo_hw)
    assert maps.min() >= 0
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(photo_hw), rtol=0, atol=1e-5)


def test_the_longest_name_and_any_script_can_be_asked(backbone: Backbone, image: EncodedImage) -> None:
    for word in ("q" * 64, "狗" * 64, "🐕", "Straßenbahn"):
        seen = backbone.attend(image, backbone.tokenize([word]), layers=LAYERS)
        assert bool(torch.isfinite(seen.logits[3]).all())


def test_the_revision_is_of_the_weights(backbone: Backbone, specs: dict[str, str], tmp_path: Path) -> None:
    family = backbone.family
    assert load(specs[family], device="cpu", dtype="float32").revision == backbone.revision
    (tmp_path / "other").mkdir()
    other = load(FAMILIES[family](tmp_path / "other", changed=True), device="cpu", dtype="float32")
    assert other.revision != backbone.revision
    assert other.name != backbone.name


def test_a_backbone_works_in_half_the_width(backbone: Backbone, specs: dict[str, str], image: EncodedImage) -> None:
    half = load(specs[backbone.family], device="cpu", dtype="bfloat16")
    assert half.dtype == "bfloat16"
    assert half.memory_bytes < 0.6 * backbone.memory_bytes
    assert half.revision == backbone.revision
    adapters = parameters_of(random_adapter(half, "dog"))
    seen = half.attend(EncodedImage(image.tokens.bfloat16()), half.tokenize(["dog"]), layers=LAYERS, adapters=adapters)
    exact = backbone.attend(image, half.tokenize(["dog"]), layers=LAYERS, adapters=adapters)
    assert (seen.logits[0] - exact.logits[0]).abs().max() < 0.1 * exact.logits[0].abs().max()
    assert seen.match_score.dtype == torch.float32


def test_a_folder_gives_its_name_to_the_model(backbone: Backbone, specs: dict[str, str]) -> None:
    family, _, source = specs[backbone.family].partition(":")
    assert backbone.name == (f"{family}:{Path(source).name}" if source else family)


def test_a_file_gives_its_name_to_the_embedded_model(tmp_path: Path) -> None:
    spec = copied("embedded", tmp_path / "folder")
    assert load(spec, device="cpu", dtype="float32").name == f"embedded:{WEIGHTS.name}"


class TestRefusedSources:
    """A source that is no whole model is refused in one sentence, which says what is wrong."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_nothing_there(self, family: str, tmp_path: Path) -> None:
        assert re.search("nowhere", refusal(f"{family}:{tmp_path / 'nowhere'}"))

    @pytest.mark.parametrize("family", [family for family in FAMILIES if family != "embedded"])
    def test_no_source(self, family: str) -> None:
        assert f"EXEMPLAR_BACKBONE={family}:" in refusal(family)

    @pytest.mark.parametrize("content", [b"garbage" * 9, b"", None])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_broken_weights(self, broken: str, content: bytes | None) -> None:
        weights_file(broken).unlink()
        if content is not None:
            weights_file(broken).write_bytes(content)
        assert "could be read from" in refusal(broken)

    @pytest.mark.parametrize("family", FOLDERS)
    def test_broken_configuration(self, family: str, broken: str) -> None:
        (weights_file(broken).parent / "config.json").write_text("{")
        assert re.match(rf"No {about(family).models} model could be read .* holds config\.json", refusal(broken))

    @pytest.mark.parametrize("family", FOLDERS)
    def test_weights_of_another_size_than_the_configuration_says(
        self, family: str, specs: dict[str, str], tmp_path: Path
    ) -> None:
        weights = read_weights(specs[family])
        name = stored_name(weights, EMBEDDINGS)
        spec = with_weights(specs[family], weights | {name: weights[name][:, 1:].contiguous()}, tmp_path / "broken")
        assert f"No {about(family).models} model could be read" in refusal(spec)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_one_weight_missing(self, family: str, specs: dict[str, str], tmp_path: Path) -> None:
        """transformers only warns, and fills it with random numbers."""
        weights = read_weights(specs[family])
        del weights[name := stored_name(weights, EMBEDDINGS)]
        said = refusal(with_weights(specs[family], weights, tmp_path / "broken"))
        assert re.search(
            rf"not a whole .* 1 of its weights are missing, such as .*{name.split('.')[-2]}\.weight:", said
        )

    @pytest.mark.parametrize("family", FOLDERS)
    def test_weights_of_another_family(self, family: str, specs: dict[str, str]) -> None:
        other = "vilt" if family == "blip" else "blip"
        said = refusal(f"{family}:{specs[other].partition(':')[2]}")
        if family == "smolvlm":  # whose class is found by the configuration
            assert re.search(r"not a whole SmolVLM.* of its weights are missing", said)
        else:
            assert f"is a model of type '{other}', not {about(family).models}: name the family" in said

    @pytest.mark.parametrize("family", FOLDERS)
    def test_no_vocabulary(self, broken: str) -> None:
        """transformers makes a tokenizer of it that knows no word."""
        (weights_file(broken).parent / "tokenizer.json").unlink()
        assert re.search(r"put tokenizer\.json|that holds .* tokenizer\.json .* tokenizer", refusal(broken))

    @pytest.fixture
    def broken(self, family: str, specs: dict[str, str], tmp_path: Path) -> str:
        """A copy of the model, to be broken."""
        return copied(specs[family], tmp_path / "broken")


def test_positions_that_are_no_square_are_no_fault_of_the_device(specs: dict[str, str], tmp_path: Path) -> None:
    weights, name = read_weights(specs["albef"]), "visual_encoder.pos_embed"
    weights[name] = weights[name][:, 2:].clone()
    spec = with_weights(specs["albef"], weights, tmp_path / "broken")
    said = refusal(spec)
    assert said.startswith(f"No ALBEF model could be made of {spec.partition(':')[2]!r}")
    assert "is invalid for input of size" in said


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_fault_of_the_device_is_told_as_it_is(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def load_none(*_: object, **__: object) -> Backbone:
        raise error("CUDA has gone")

    monkeypatch.setattr("app.backbones.blip.load", load_none)
    with pytest.raises(error, match="CUDA has gone"):
        load("blip:somewhere", device="cpu", dtype="float32")


def test_a_tower_with_a_global_token_is_refused(specs: dict[str, str], tmp_path: Path) -> None:
    spec = copied(specs["llava"], tmp_path / "broken")
    settings = tmp_path / "broken" / "config.json"
    told = json.loads(settings.read_text()) | {"vision_feature_select_strategy": "full"}
    settings.write_text(json.dumps(told))
    assert refusal(spec).startswith(f"{str(tmp_path / 'broken')!r} keeps the image tower's global token")


def refusal(spec: str) -> str:
    """The sentence that refuses a model."""
    with pytest.raises(InvalidInputError) as refused:
        load(spec, device="cpu", dtype="float32")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "spec", ["", "clip", "clip:openai/clip", "shared", "adapted", "blip_text", "efficientnet", "../embedded"]
)
def test_an_unknown_family_names_the_known_ones(spec: str) -> None:
    assert f"one of {', '.join(families())}" in refusal(spec)
