"""Decoder models against transformers' own forward pass of image and text: attention logits, score, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from app.backbones import load
from app.backbones.shared.decoder import Decoder, _Pass, _running, text_to_image_attention
from app.method.backbone import Backbone, EncodedImage
from app.method.parameters import LowRank, Parameters
from tests.backbones.decoder_models import llava
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


def encoded(backbone: Decoder, photo: np.ndarray) -> EncodedImage:
    return backbone.encode_image(backbone.preprocess(photo)[0][None])[0]


def test_logits_are_those_of_the_whole_sequence(backbone: Decoder, real: nn.Module, photo: np.ndarray) -> None:
    text = backbone.tokenize([WORD, "a much longer name of it"])
    with torch.no_grad():
        seen = backbone.attend(encoded(backbone, photo), text, layers=range(5))
        run_real(real, backbone, photo, backbone.tokenize([WORD]).input_ids[0])
    tokens = int(text.attention_mask[0].sum())
    for layer in range(5):
        expected = patches_of(backbone, layer, tokens)
        torch.testing.assert_close(seen.logits[layer][0, :, :tokens], expected, rtol=1e-4, atol=1e-4)


def test_the_score_is_the_share_of_yes_among_the_answers(backbone: Decoder, real: nn.Module, photo: np.ndarray) -> None:
    text = backbone.tokenize([WORD, "x"])
    with torch.no_grad():
        seen = backbone.attend(encoded(backbone, photo), text, layers=())
        question = backbone.tokenize([WORD]).questions
        assert question is not None
        said = run_real(real, backbone, photo, question.input_ids[0]).softmax(dim=0)
    # Of the byte tokenizer: an answer begins with y or Y, or with n or N; a space may begin either.
    yes, no = (sum(float(said[backbone._tokenizer(a)["input_ids"][0]]) for a in answer) for answer in ("yY", "nN"))
    assert float(seen.match_score[0]) == pytest.approx(yes / (yes + no), rel=1e-4)


@contextmanager
def changed(model: nn.Module, backbone: Decoder, own: Parameters) -> Iterator[None]:
    """The real class with an adapter put into it: the projections of what comes after the image, and its words."""
    before = len(backbone._parts.layout.token_ids)
    text = model.model.text_model if backbone.family == "smolvlm" else model.model.language_model

    def add(change: LowRank, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        added = inputs[0][:, before:] @ change.right.T @ change.left.T
        return torch.cat([output[:, :before], output[:, before:] + added], dim=1)

    def rows(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        ids = inputs[0][0, before:]
        words = torch.stack([
            own.tokens.rows[int((own.tokens.ids == token).nonzero())]
            if token in own.tokens.ids else output[0, before + place]
            for place, token in enumerate(ids)
        ])  # fmt: skip
        return torch.cat([output[:, :before], words[None]], dim=1)

    hooks = [
        text.get_submodule(name.removesuffix(".weight")).register_forward_hook(partial(add, change))
        for name, change in own.delta.items()
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
    tuned = random_adapter(backbone, WORD).parameters
    assert tuned is not None

    def gradients(loss: Callable[[Parameters], Tensor]) -> tuple[Tensor, list[Tensor]]:
        own = tuned.map(lambda tensor: tensor.clone().requires_grad_(True))
        value = loss(own)
        value.backward()
        return value.detach(), [tensor.grad for tensor in own.trained]

    def ours(own: Parameters) -> Tensor:
        seen = backbone.attend(encoded(backbone, photo), text, layers=(0, 3), adapters=own.stacked)
        return sum(seen.logits[layer].square().mean() for layer in (0, 3)) + seen.match_score.sum()

    def theirs(own: Parameters) -> Tensor:
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
    for gradient, wanted in zip(own, plain, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max() + 1))


def test_patch_features_are_the_language_model_s_inputs(backbone: Decoder, real: nn.Module, photo: np.ndarray) -> None:
    features = backbone.patch_features(encoded(backbone, photo))
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


def test_frequencies_of_positions_stay_float32(backbone: Decoder, specs: dict[str, str]) -> None:
    half = load(specs[backbone.family], device="cpu", dtype="bfloat16")
    buffers = {name: buffer for name, buffer in half._model.named_buffers() if buffer.is_floating_point()}
    assert any(name.endswith("rotary_emb.inv_freq") for name in buffers)
    exact = dict(backbone._model.named_buffers())
    assert all(torch.equal(buffer, exact[name]) for name, buffer in buffers.items())
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.bfloat16}


def test_words_far_from_the_image_see_it_in_half_the_width_too(tmp_path: Path) -> None:
    """A head of 64 numbers turns by frequencies that bfloat16 has not, which shows at large distances only."""
    spec = llava(tmp_path, changed=False, head_dim=64)
    seen = []
    for dtype in ("float32", "bfloat16"):
        model = load(spec, device="cpu", dtype=dtype)
        layout = model._parts.layout
        model._parts = replace(model._parts, layout=replace(layout, following=layout.following + 600))
        photo = np.random.default_rng(4).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        with torch.no_grad():
            seen.append(model.attend(encoded(model, photo), model.tokenize([WORD]), layers=(0,)).logits[0].float())
    exact, half = seen
    assert (half - exact).norm() < 0.02 * exact.norm()


def test_a_model_of_one_layer_reads_it(tmp_path: Path) -> None:
    model = load(llava(tmp_path, changed=False, num_hidden_layers=1), device="cpu", dtype="float32")
    assert model.default_layers == (0,)


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Callable[..., object], types: object, args: tuple = (), kwargs: object = None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:  # no view
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("shared_heads", [2, 6])
def test_no_prompt_copies_the_image(shared_heads: int) -> None:
    prompts, heads, tokens, size, image = 5, 6, 2, 64, 31
    query = torch.randn(prompts, heads, tokens, size)
    key, value = torch.randn(2, prompts, shared_heads, tokens, size)
    prefix = torch.randn(2, 1, shared_heads, image, size)
    module = nn.Module()
    module.layer_idx = 0
    with _running(_Pass(prefix=[(prefix[0], prefix[1])])), _Largest() as largest:
        text_to_image_attention(module, query, key, value, None, scaling=1.0)
    assert largest.numbers == max(query.numel(), prompts * heads * tokens * (image + tokens))
