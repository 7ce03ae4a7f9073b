"""A small model of every family, in the form that its loader reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.backbones.embedded import WEIGHTS
from app.backbones.embedded.model import dequantised
from tests.backbones.albef_model import write as albef
from tests.backbones.blip2_model import write as blip2
from tests.backbones.bridgetower_model import write as bridgetower
from tests.backbones.decoder_models import llava, llava_next, qwen_vl, smolvlm
from tests.backbones.vilt_model import write as vilt
from tests.models import random_blip


def embedded(folder: Path, *, changed: bool) -> str:
    """The weights that ship with the service, which are small enough."""
    if not changed:
        return "embedded"
    tensors = load_file(WEIGHTS)
    tensors["itm_head.bias"] = tensors["itm_head.bias"] + 1
    save_file(tensors, folder / "other.safetensors")
    return f"embedded:{folder / 'other.safetensors'}"


def blip(folder: Path, *, changed: bool) -> str:
    """A random one."""
    model, tokenizer = random_blip()
    with torch.no_grad():
        model.itm_head.bias[0] += changed
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return f"blip:{folder}"


# Writes a model into the folder and returns what EXEMPLAR_BACKBONE says for it; a changed one differs in one weight.
FAMILIES: dict[str, Callable[..., str]] = {
    "embedded": embedded,
    "blip": blip,
    "albef": albef,
    "bridgetower": bridgetower,
    "llava": llava,
    "llava_next": llava_next,
    "smolvlm": smolvlm,
    "qwen_vl": qwen_vl,
    "vilt": vilt,
    "blip2": blip2,
}

# Families whose models are folders of transformers' `save_pretrained`.
FOLDERS = [family for family in FAMILIES if family not in ("embedded", "albef")]


def weights_file(spec: str) -> Path:
    """The file of the weights that a spec names."""
    family, _, source = spec.partition(":")
    if family == "embedded":
        return Path(source) if source else WEIGHTS
    return Path(source) / ("ALBEF.pth" if family == "albef" else "model.safetensors")


def read_weights(spec: str) -> dict[str, Tensor]:
    """All tensors of a model's file, as numbers."""
    file = weights_file(spec)
    if file.suffix == ".pth":
        return dict(torch.load(file)["model"])
    return dequantised(load_file(file))


def with_weights(spec: str, weights: Mapping[str, Tensor], folder: Path) -> str:
    """Write a copy of a model with other weights into a new folder, and return the copy's spec."""
    copy = copied(spec, folder)
    file = weights_file(copy)
    if file.suffix == ".pth":
        torch.save({"model": dict(weights)}, file)
    else:
        save_file(dict(weights), file, metadata={"format": "pt"})
    return copy


def copied(spec: str, folder: Path) -> str:
    """Copy a model into a new folder, and return the copy's spec."""
    family, _, source = spec.partition(":")
    if family == "embedded":
        folder.mkdir()
        shutil.copy(WEIGHTS, folder / WEIGHTS.name)
        return f"embedded:{folder / WEIGHTS.name}"
    shutil.copytree(source, folder)
    return f"{family}:{folder}"


def stored_name(weights: Mapping[str, Tensor], ending: str | tuple[str, ...]) -> str:
    """Full name of the one tensor outside the image tower whose name ends like this."""
    (name,) = [name for name in weights if name.endswith(ending) and "vis" not in name]
    return name
