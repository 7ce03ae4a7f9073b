"""Benchmarks of the method on a random BLIP-large against the baseline: results and times of one run."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

from app.backbones.blip import Blip
from app.backbones.embedded import VOCABULARY, WEIGHTS, Embedded
from app.demo import EXAMPLES
from app.method.crf import conv_crf
from app.method.frame import imagenet_normalise
from app.method.pipeline import Pipeline, encode_one
from app.method.prompts import Prompts, Query
from app.method.refinement import crf
from app.method.shot import Shot
from app.method.tuning import COMPETING_CATEGORIES, CategoryTuning
from app.research.joint_tuning import JointTuning

from . import plain
from .measure import Row, by_turns, matmul_flops, seconds, text_ms

# PASCAL VOC's categories: 21 classes with the background, 49 prompts with its words.
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("table", "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "tv"),
)
_SIZE = 512
# The baseline's warm-up is the same code on a smaller photo, since its calls take up to a minute.
_WARM_UP_SIZE = 128
BERT = BertTokenizer(vocab=str(VOCABULARY))
LAYERS = (0, 3)


def photo(name: str = "dog") -> np.ndarray:
    """An example photo, RGB uint8."""
    with Image.open(EXAMPLES / f"{name}.jpg") as image:
        return np.array(image.convert("RGB"))


def blip_large(**vision: int) -> BlipForImageTextRetrieval:
    """BLIP-large with 446 million random parameters and sharpened cross-attention, so that the maps differ.

    Args:
        vision: Sizes of another image tower.
    """
    config = BlipConfig(
        text_config={
            "hidden_size": 768,
            "encoder_hidden_size": vision.get("hidden_size", 1024),
            "num_attention_heads": 12,
            "projection_dim": 256,
        },
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 384,
        }
        | vision,
    )
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(config).eval().requires_grad_(False)
    for layer in model.text_encoder.encoder.layer:
        layer.crossattention.self.query.weight.mul_(4)
        layer.crossattention.self.key.weight.mul_(4)
    return model


def blip_small() -> BlipForImageTextRetrieval:
    """The same code with a small image tower."""
    return blip_large(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)


def tower_operations(model: BlipForImageTextRetrieval, size: int) -> int:
    """Floating-point operations of the image tower on one input of so many pixels a side."""
    # Multiply-adds of a ViT layer, two operations each: 12 · width² per token in matrices, 2 · width per pair of tokens
    # in attention.
    config = model.config.vision_config
    tokens, width = (size // config.patch_size) ** 2 + 1, config.hidden_size
    per_layer = 12 * width**2 * tokens + 2 * width * tokens**2
    return 2 * int(config.num_hidden_layers * per_layer)


@torch.no_grad()
def crf_rows() -> Iterator[Row]:
    """ConvCRF alone, on a random class map and a real photo."""
    colours = imagenet_normalise(torch.from_numpy(photo()).permute(2, 0, 1)[None].float() / 255)
    colours = F.interpolate(colours, size=(_SIZE, _SIZE), mode="bilinear")[0]
    for classes in (21, 81):
        generator = torch.Generator().manual_seed(classes)
        grid = (4 * torch.randn(1, classes, 8, 8, generator=generator)).softmax(dim=1)
        maps = F.interpolate(grid, size=(_SIZE, _SIZE), mode="bilinear", align_corners=True)[0]
        results: list[Tensor] = []

        def theirs(maps: Tensor = maps, results: list[Tensor] = results) -> None:
            results[:] = [plain.crf(maps, colours)]

        before, after = by_turns(theirs, lambda maps=maps: conv_crf(maps, colours))
        error = (conv_crf(maps, colours) - results[0]).abs()
        yield Row(
            f"ConvCRF, {classes} classes, {_SIZE} px",
            text_ms(before),
            text_ms(after),
            before / after,
            "≥ 30",
            f"largest error {error.max():.0e}, above 0.001 at {100 * (error.amax(dim=0) > 1e-3).float().mean():.3f} %",
        )


def embedded_tower_rows() -> Iterator[Row]:
    """Share of the peak that the embedded model's convolutions reach."""
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        tower = Embedded(WEIGHTS, device="cpu", dtype=dtype)._tower
        rgb, peak = torch.rand(1, 3, 384, 384), matmul_flops(dtype)
        with FlopCounterMode(display=False) as counter:  # with gradients, since it does not know fused operations
            tower(rgb)
        operations = counter.get_total_flops()
        with torch.inference_mode():
            spent = seconds(partial(tower, rgb), repeats=25)
        yield Row(
            f"embedded image tower's share of the matmul peak, {name}",
            f"{peak / 1e9:.0f} GFLOP/s",
            f"{operations / spent / 1e9:.0f} GFLOP/s",
            operations / spent / peak,
            "≥ 0.6",
            f"{text_ms(spent)}, {operations / 1e9:.1f} GFLOP",
        )


def large_rows() -> Iterator[Row]:
    """Segmenting and tuning with BLIP-large at 512 px, 49 prompts, 21 classes."""
    peak = matmul_flops()
    model = blip_large()
    backbone = Blip(model, BERT, input_size=_SIZE)
    prompts = Prompts.of([Query((name,)) for name in VOC])
    rgb = F.interpolate(torch.from_numpy(photo()).permute(2, 0, 1)[None].float() / 255, size=(_SIZE, _SIZE))[0]
    yield from _segment(model, backbone, prompts, rgb, peak)
    yield from _tune(model, backbone, prompts, rgb)


@torch.no_grad()
def _segment(
    model: BlipForImageTextRetrieval, backbone: Blip, prompts: Prompts, rgb: Tensor, peak: float
) -> Iterator[Row]:
    text = backbone.tokenize(prompts.words)
    pixels = imagenet_normalise(rgb)
    results: list[Tensor] = []

    def theirs(pixels: Tensor) -> None:
        results[:] = [plain.crf(plain.class_map(model, pixels, text, prompts.spans, LAYERS), pixels)]

    theirs(_small(pixels[None])[0])
    before = seconds(partial(theirs, pixels), repeats=1, warm_up=False)  # once: it takes half a minute
    operations = tower_operations(model, _SIZE)
    half = Blip(deepcopy(model), BERT, input_size=_SIZE, dtype=torch.bfloat16)
    for ours, dtype, target, most, least_share in (
        (backbone, "float32", "≥ 4", peak, "≥ 0.5"),
        (half, "bfloat16", "≥ 10", matmul_flops(torch.bfloat16), "≥ 0.4"),
    ):
        after, found = _timed(ours, rgb)
        tower = seconds(partial(encode_one, ours, rgb), repeats=3)
        agree = (results[0].argmax(dim=0) == found.argmax(dim=0)).float().mean()
        yield Row(
            f"segment, BLIP-large in {dtype}, {_SIZE} px, {len(prompts.words)} prompts, 21 classes, CRF",
            text_ms(before),
            text_ms(after),
            before / after,
            target,
            f"labels agree on {100 * agree:.2f} %; the image tower alone cannot be below {text_ms(operations / most)}",
        )
        yield Row(
            f"BLIP-large's image tower's share of the matmul peak, {dtype}",
            f"{most / 1e9:.0f} GFLOP/s",
            f"{operations / tower / 1e9:.0f} GFLOP/s",
            operations / tower / most,
            least_share,
            text_ms(tower),
        )


def _timed(backbone: Blip, rgb: Tensor) -> tuple[float, Tensor]:
    """Seconds of a segmentation, and its probabilities."""
    queries = [Query((name,)) for name in VOC]
    pipeline = Pipeline(backbone, layers=LAYERS, refinement=crf, min_relative_score=0.0)
    results: list[Tensor] = []

    def ours() -> None:
        found = pipeline.class_map(encode_one(backbone, rgb), queries)
        results.append(pipeline.refine(found, rgb).probabilities)

    return seconds(ours, repeats=3), results[-1]


def _tune(model: BlipForImageTextRetrieval, backbone: Blip, prompts: Prompts, rgb: Tensor) -> Iterator[Row]:
    text = backbone.tokenize(prompts.words)
    images = [rgb, rgb.flip(2)]
    labels = torch.zeros(2, _SIZE, _SIZE, dtype=torch.long)
    dog = VOC.index("dog") + 1
    labels[0, 150:400, 100:300], labels[1, 150:400, -300:-100] = dog, dog
    encoded = [encode_one(backbone, image) for image in images]
    joint = JointTuning(backbone, encoded, list(labels), text=text, spans=prompts.spans, layers=LAYERS)
    first = next(joint.epoch())
    joint_s = seconds(lambda: next(joint.epoch()), repeats=3, warm_up=False)
    others = [Query((name,)) for name in VOC if name != "dog"][:COMPETING_CATEGORIES]
    shots = [Shot.of(backbone, *pair) for pair in zip(encoded, (labels == dog).long(), strict=True)]
    own_s, both_s = (
        seconds(CategoryTuning(backbone, some, ["dog"], others=Prompts.of(others, taken=["dog"]), layers=LAYERS).step)
        for some in (shots[:1], shots)
    )
    pixels = imagenet_normalise(torch.stack(images))
    # A step of a small model on small photos is the warm-up.
    plain.JointTuning(
        blip_small(), _small(pixels), labels[:, :_WARM_UP_SIZE, :_WARM_UP_SIZE], text, prompts.spans, LAYERS
    ).step()
    # Run last, because it changes the model; once, because it takes more than a minute.
    theirs = plain.JointTuning(model, pixels, labels, text, prompts.spans, LAYERS)
    losses: list[float] = []
    plain_s = seconds(lambda: losses.append(theirs.step()), repeats=1, warm_up=False)
    what = "BLIP-large, 21 classes, 2 photos, per step"
    note = f"first loss {first:.5f}, plain {losses[0]:.5f}"
    yield Row(f"tune jointly, {what}", text_ms(plain_s), text_ms(joint_s), plain_s / joint_s, "≥ 10", note)
    what = "tune one category, BLIP-large, per step"
    classes = len(prompts.spans)
    alike = f"{classes} such steps on 2 photos take {text_ms(classes * both_s)}: {plain_s / (classes * both_s):.1f} ×"
    note = f"1 photo, against the authors' step of 2 photos and {classes} classes; {alike}"
    yield Row(what, text_ms(plain_s), text_ms(own_s), plain_s / own_s, "≥ 100", note)


def _small(images: Tensor) -> Tensor:
    """Images `[image, 3, y, x]` at the size of a warm-up."""
    return F.interpolate(images, size=(_WARM_UP_SIZE, _WARM_UP_SIZE))
