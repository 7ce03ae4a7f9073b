"""Decoder models against transformers' own forward, image and text in one go: attention logits, score, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from app.backbones.decoder import Decoder
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from app.backbones import load
from app.errors import InvalidInputError
from app.method.adapter import TOKEN_IDS, TOKEN_ROWS
from app.method.backbone import Backbone
from tests.models import random_adapter

FAMILIES = ("llava", "llava_next", "smolvlm", "qwen_vl")
REAL = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "smolvlm": SmolVLMForConditionalGeneration,
    "qwen_vl": Qwen2_5_VLForConditionalGeneration,
}
WORD = "red dog"

_seen: dict[int, Tensor] = {}


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: object, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention over the whole sequence, straight from the formula, that leaves its logits behind."""
    shared = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(shared, dim=1).mT * scaling
    _seen[module.layer_idx] = logits
    later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    weights = logits.masked_fill(later, float("-inf")).softmax(dim=-1)
    return (weights @ value.repeat_interleave(shared, dim=1)).transpose(1, 2), None


AttentionInterface.register("plain_for_tests", plain_attention)


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, loaded: dict[str, Backbone]) -> Backbone:
    return loaded[request.param]


@pytest.fixture
def real(backbone: Decoder, specs: dict[str, str]) -> nn.Module:
    """Another instance of the same weights, as transformers runs it."""
    folder = specs[backbone.family].partition(":")[2]
    model = REAL[backbone.family].from_pretrained(folder).eval().requires_grad_(False)
    text = model.model.text_model if backbone.family == "smolvlm" else model.model.language_model
    text.config._attn_implementation = "plain_for_tests"
    return model


@pytest.fixture
def photo(backbone: Decoder) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (backbone.input_size, backbone.input_size, 3), dtype=np.uint8)


def tiles(pixels: Tensor) -> Tensor:
    """Four quarters, then the whole at half the size."""
    half = pixels.shape[-1] // 2
    quarters = [pixels[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    return torch.stack([*quarters, F.avg_pool2d(pixels, 2)])[None]


def run_real(model: nn.Module, backbone: Decoder, photo: np.ndarray, text: Tensor) -> Tensor:
    """Vocabulary logits after the last token of the image and a text; the attention's logits are in `_seen`."""
    ids = torch.cat([backbone._parts.layout.token_ids, text])[None]
    rgb = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (backbone._parts.mean, backbone._parts.deviation))
    pixels = (rgb - mean) / deviation
    given: dict[str, Tensor] = {"pixel_values": pixels[None]}
    if backbone.family == "smolvlm":
        given = {"pixel_values": tiles(pixels)}
    if backbone.family == "llava_next":  # the whole comes first
        given = {"pixel_values": tiles(pixels).roll(1, dims=1), "image_sizes": torch.tensor([[112, 112]])}
    if backbone.family == "qwen_vl":
        processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, do_resize=False)
        found = processor(images=[Image.fromarray(photo)], return_tensors="pt")
        given = {
            "pixel_values": found["pixel_values"],
            "image_grid_thw": found["image_grid_thw"],
            "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        }
    _seen.clear()
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **given).logits[0, -1]


def patches_of(backbone: Decoder, layer: int, prompt_tokens: int) -> Tensor:
    """The text→image block, patches in the order of the grid."""
    image = (backbone._parts.layout.token_ids == image_token(backbone)).nonzero().flatten()
    if backbone.family == "smolvlm":  # quarters of 4 × 4, one after the other; the whole comes last
        image = torch.cat([torch.cat([image[16 * q + 4 * y : 16 * q + 4 * y + 4] for q in pair])
                           for pair in ((0, 1), (2, 3)) for y in range(4)])  # fmt: skip
    if backbone.family == "llava_next":  # the whole of 4 × 4, then eight rows of eight with an end each
        image = torch.cat([image[16 + 9 * row : 16 + 9 * row + 8] for row in range(8)])
    return _seen[layer][0, :, -prompt_tokens:, image]


def image_token(backbone: Decoder) -> int:
    return int(backbone._model.config.image_token_id)


def real_tokens(backbone: Decoder, photo: np.ndarray) -> Tensor:
    return backbone.encode_image(backbone.preprocess(photo)[0][None])[0]


def test_logits_are_those_of_the_whole_sequence(backbone: Decoder, real: nn.Module, photo: np.ndarray) -> None:
    text = backbone.tokenize([WORD, "a much longer name of it"])
    with torch.no_grad():
        seen = backbone.attend(real_tokens(backbone, photo), text, layers=range(5))
        run_real(real, backbone, photo, backbone.tokenize([WORD]).input_ids[0])
    tokens = int(text.attention_mask[0].sum())
    for layer in range(5):
        expected = patches_of(backbone, layer, tokens)
        torch.testing.assert_close(seen.logits[layer][0, :, :tokens], expected, rtol=1e-4, atol=1e-4)


def test_the_score_is_the_share_of_yes_among_the_answers(backbone: Decoder, real: nn.Module, photo: np.ndarray) -> None:
    text = backbone.tokenize([WORD, "x"])
    with torch.no_grad():
        seen = backbone.attend(real_tokens(backbone, photo), text, layers=())
        question = backbone.tokenize([WORD]).questions
        assert question is not None
        said = run_real(real, backbone, photo, question.input_ids[0]).softmax(dim=0)
    # Of the byte tokenizer: an answer begins with y or Y, or with n or N; a space may begin either.
    yes, no = (sum(float(said[backbone._tokenizer(a)["input_ids"][0]]) for a in answer) for answer in ("yY", "nN"))
    assert float(seen.match_score[0]) == pytest.approx(yes / (yes + no), rel=1e-4)


@contextmanager
def changed(model: nn.Module, backbone: Decoder, adapter: Mapping[str, Tensor]) -> Iterator[None]:
    """The real class with an adapter put into it: the projections of what comes after the image, and its words."""
    before = len(backbone._parts.layout.token_ids)
    text = model.model.text_model if backbone.family == "smolvlm" else model.model.language_model

    def add(left: Tensor, right: Tensor, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return torch.cat([output[:, :before], output[:, before:] + inputs[0][:, before:] @ right.T @ left.T], dim=1)

    def rows(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        ids = inputs[0][0, before:]
        own = torch.stack([
            adapter[TOKEN_ROWS][int((adapter[TOKEN_IDS] == token).nonzero())]
            if token in adapter[TOKEN_IDS] else output[0, before + place]
            for place, token in enumerate(ids)
        ])  # fmt: skip
        return torch.cat([output[:, :before], own[None]], dim=1)

    names = {name.removesuffix(".weight.left") for name in adapter if name.endswith(".left")}
    hooks = [
        text.get_submodule(name).register_forward_hook(
            partial(add, adapter[f"{name}.weight.left"], adapter[f"{name}.weight.right"])
        )
        for name in names
    ]
    hooks.append(text.embed_tokens.register_forward_hook(rows))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def test_an_adapter_and_its_gradients_are_as_put_into_the_model(
    backbone: Decoder, real: nn.Module, photo: np.ndarray
) -> None:
    text = backbone.tokenize([WORD])
    tensors = {n: t for n, t in random_adapter(backbone, WORD).tensors.items() if not n.startswith("visual.")}

    def gradients(loss: Callable[[dict[str, Tensor]], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        own = {n: t.clone().requires_grad_(n != TOKEN_IDS) for n, t in tensors.items()}
        value = loss(own)
        value.backward()
        return value.detach(), {n: t.grad for n, t in own.items() if t.grad is not None}

    def ours(own: dict[str, Tensor]) -> Tensor:
        stacked = {name: tensor[None] for name, tensor in own.items()}
        seen = backbone.attend(real_tokens(backbone, photo), text, layers=(0, 3), adapters=stacked)
        return sum(seen.logits[layer].square().mean() for layer in (0, 3)) + seen.match_score.sum()

    def theirs(own: dict[str, Tensor]) -> Tensor:
        question = text.questions
        assert question is not None
        with changed(real, backbone, own):
            run_real(real, backbone, photo, text.input_ids[0])
            maps = [patches_of(backbone, layer, text.input_ids.shape[1]) for layer in (0, 3)]
            said = run_real(real, backbone, photo, question.input_ids[0]).softmax(dim=0)
        yes, no = (sum(said[backbone._tokenizer(a)["input_ids"][0]] for a in answer) for answer in ("yY", "nN"))
        return sum(logits.square().mean() for logits in maps) + yes / (yes + no)

    (got, own), (expected, plain) = gradients(ours), gradients(theirs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert own.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))


def test_patches_are_what_the_language_model_takes_in(backbone: Decoder, real: nn.Module, photo: np.ndarray) -> None:
    features = backbone.patch_features(real_tokens(backbone, photo))
    taken: list[Tensor] = []
    text = real.model.text_model if backbone.family == "smolvlm" else real.model.language_model
    text.layers[0].register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        run_real(real, backbone, photo, backbone.tokenize([WORD]).input_ids[0])
    layout = backbone._parts.layout
    image = taken[0][0, : len(layout.token_ids)][layout.token_ids == image_token(backbone)]
    if backbone.family == "llava_next":
        image = image[16:].view(8, 9, -1)[:, :8].flatten(0, 1)
    assert len(image) == len(features) + 16 * (backbone.family == "smolvlm")
    torch.testing.assert_close(features.sum(dim=0), image[: len(features)].sum(dim=0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(features[0], image[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_source_it_says_what_to_set(family: str) -> None:
    with pytest.raises(InvalidInputError, match=f"EXEMPLAR_BACKBONE={family}:"):
        load(family, device="cpu", dtype="float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_another_familys_folder_is_refused_in_one_sentence(family: str, specs: dict[str, str]) -> None:
    folder = specs["blip"].partition(":")[2]
    with pytest.raises(InvalidInputError) as refused:
        load(f"{family}:{folder}", device="cpu", dtype="float32")
    assert "\n" not in str(refused.value)


def test_missing_weights_are_counted_and_named(specs: dict[str, str], tmp_path: Path) -> None:
    folder = Path(specs["llava"].partition(":")[2])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "layers.3.self_attn.q_proj" in name)
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"1 of its weights are missing, such as .*q_proj"):
        load(f"llava:{tmp_path}", device="cpu", dtype="float32")
