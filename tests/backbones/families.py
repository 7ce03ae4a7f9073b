"""A small model of every family, in the form that its loader reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from app.backbones.embedded import WEIGHTS
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
