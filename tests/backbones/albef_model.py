"""A checkpoint of an ALBEF small enough for any test, as its authors save theirs.

Its axes are prime or differ where the network lets them be: 2 layers of text and 5 of fusion with 2 heads of 64, an
image tower of 3 such heads, 13 and 17 numbers inside the feed-forward parts, positions of 5 × 5 patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

TEXT, IMAGE = 128, 192
TEXT_LAYERS, FUSION_LAYERS, BLOCKS = 2, 5, 2
TEXT_INNER, IMAGE_INNER = 17, 13
WORDS, LENGTH = 30522, 83


def random_albef(*, seed: int = 7, text: str = "text_encoder.bert.", patch_px: int = 16) -> dict[str, Tensor]:
    """Parameters by name; `text` is what names of the text tower start with."""
    generator = torch.Generator().manual_seed(seed)

    def random(name: str, shape: tuple[int, ...]) -> Tensor:
        # A fresh model hardly attends: a test could not tell one layer from another.
        scale = 0.3 if len(shape) < 2 or "embed" in name or "token" in name else (2 / shape[1:].numel()) ** 0.5
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        return centre + scale * torch.randn(shape, generator=generator)

    return {name: random(name, torch.Size(shape)) for name, shape in _shapes(text, patch_px)}


def _shapes(text: str, patch_px: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "visual_encoder.cls_token", (1, 1, IMAGE)
    yield "visual_encoder.pos_embed", (1, 1 + 5 * 5, IMAGE)
    yield from _layer("visual_encoder.patch_embed.proj", IMAGE, 3, patch_px, patch_px)
    for block in range(BLOCKS):
        name = f"visual_encoder.blocks.{block}"
        yield from _layer(f"{name}.norm1", IMAGE)
        yield from _layer(f"{name}.attn.qkv", 3 * IMAGE, IMAGE)
        yield from _layer(f"{name}.attn.proj", IMAGE, IMAGE)
        yield from _layer(f"{name}.norm2", IMAGE)
        yield from _layer(f"{name}.mlp.fc1", IMAGE_INNER, IMAGE)
        yield from _layer(f"{name}.mlp.fc2", IMAGE, IMAGE_INNER)
    yield from _layer("visual_encoder.norm", IMAGE)
    for kind, rows in (("word", WORDS), ("position", LENGTH), ("token_type", 2)):
        yield f"{text}embeddings.{kind}_embeddings.weight", (rows, TEXT)
    yield from _layer(f"{text}embeddings.LayerNorm", TEXT)
    for layer in range(TEXT_LAYERS + FUSION_LAYERS):
        name = f"{text}encoder.layer.{layer}"
        yield from _attention(f"{name}.attention", TEXT)
        if layer >= TEXT_LAYERS:
            yield from _attention(f"{name}.crossattention", IMAGE)
        yield from _layer(f"{name}.intermediate.dense", TEXT_INNER, TEXT)
        yield from _layer(f"{name}.output.dense", TEXT, TEXT_INNER)
        yield from _layer(f"{name}.output.LayerNorm", TEXT)
    yield from _layer("itm_head", 2, TEXT)


def _attention(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part, columns in (("self.query", TEXT), ("self.key", width), ("self.value", width), ("output.dense", TEXT)):
        yield from _layer(f"{name}.{part}", TEXT, columns)
    yield from _layer(f"{name}.output.LayerNorm", TEXT)


def _layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def write(folder: Path, *, changed: bool = False, patch_px: int = 16) -> str:
    """Save one and return its spec; a changed one has one other weight."""
    weights = random_albef(patch_px=patch_px)
    weights["itm_head.bias"] += torch.tensor([float(changed), 0.0])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights, "epoch": 29}, folder / "ALBEF.pth")
    return f"albef:{folder}"
