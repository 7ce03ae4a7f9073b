"""File format of adapters: safetensors, with all other values in the header.

A changed parameter is stored under its own name, the factors of a low-rank change under that name with `.left` and
`.right`, the other parts under the prefixes below. All earlier releases use the same names.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any, get_args

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from app.method.adapter import DTYPES, Adapter, Kept
from app.method.parameters import Change, ExampleMemory, LowRank, Parameters, TokenRows, VisualPrompt

FORMAT = "exemplar-adapter-1"

_TOKEN_IDS = "embeddings.word_embeddings.token_ids"
_TOKEN_ROWS = "embeddings.word_embeddings.rows"
_LEFT, _RIGHT = ".left", ".right"
_VISUAL_PROMPT, _MEMORY = "visual.", "example."
# Tensors of the memory that are left out if all are zero: earlier releases read such files too.
_OF_ABSENT = ("absent", "absent_share")


def adapter_to_bytes(adapter: Adapter) -> bytes:
    """The adapter as a file."""
    header = {
        "format": FORMAT,
        "backbone": adapter.backbone,
        "revision": adapter.revision,
        "category": adapter.category,
        "version": adapter.version,
        "prompts": adapter.prompts,
        "layers": adapter.layers,
        "ensemble": adapter.ensemble,
        "example_iou": adapter.example_iou,
        "zero_shot_example_iou": adapter.zero_shot_example_iou,
        "created_at": adapter.created_at,
        "kept": adapter.kept,
        "presence_bias": adapter.presence_bias,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _flat(adapter).items()}
    return save(tensors, metadata={"exemplar": json.dumps(header)})


def adapter_from_bytes(raw: bytes) -> Adapter:
    """The adapter in a file. It inverts `adapter_to_bytes` bit by bit.

    Raises:
        ValueError: If the bytes are not an adapter: truncated, of another format, or with values out of range.
    """
    try:
        tensors = load(raw)
        header = json.loads(_metadata(raw)["exemplar"])
        _check_tensors(tensors)
        adapter = Adapter(
            backbone=_text(header["backbone"]),
            revision=_text(header["revision"]),
            category=_text(header["category"]),
            version=int(header["version"]),
            prompts=tuple(_text(word) for word in _items(header["prompts"])),
            layers=tuple(int(layer) for layer in _items(header["layers"])),
            ensemble=tuple(float(weight) for weight in _items(header["ensemble"])),
            example_iou=float(header["example_iou"]),
            zero_shot_example_iou=float(header["zero_shot_example_iou"]),
            created_at=_text(header["created_at"]),
            kept=_kept(header, tensors),
            presence_bias=float(header.get("presence_bias", 0.0)),
            visual_prompt=_part(VisualPrompt, _VISUAL_PROMPT, tensors),
            memory=_memory(tensors),
            parameters=_parameters(tensors),
        )
        known_format = header["format"] == FORMAT
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"expected an adapter in safetensors form, got something else: {error}") from error
    _check_header(adapter, known_format=known_format)
    return adapter


def _flat(adapter: Adapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if adapter.parameters:
        for name, change in adapter.parameters.delta.items():
            if isinstance(change, LowRank):
                tensors |= {name + _LEFT: change.left, name + _RIGHT: change.right}
            else:
                tensors[name] = change
        tensors |= {_TOKEN_IDS: adapter.parameters.tokens.ids, _TOKEN_ROWS: adapter.parameters.tokens.rows}
    for prefix, part in ((_VISUAL_PROMPT, adapter.visual_prompt), (_MEMORY, adapter.memory)):
        if part:
            tensors |= {prefix + each.name: getattr(part, each.name) for each in fields(part)}
    if adapter.memory and not adapter.memory.absent_share.any():
        for name in _OF_ABSENT:
            del tensors[_MEMORY + name]
    return tensors


def _part(kind: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Remove the tensors with this prefix and return them as a value; None if there are none."""
    own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    return kind(**{name.removeprefix(prefix): tensor for name, tensor in own.items()}) if own else None


def _memory(tensors: dict[str, Tensor]) -> ExampleMemory | None:
    """The example memory; files without photos that lack the category have no tensors for them."""
    if _MEMORY + "inside" in tensors:
        for name in _OF_ABSENT:
            tensors.setdefault(_MEMORY + name, torch.zeros_like(tensors[_MEMORY + name.replace("absent", "inside")]))
    memory: ExampleMemory | None = _part(ExampleMemory, _MEMORY, tensors)
    return memory


def _kept(header: dict[str, Any], tensors: dict[str, Tensor]) -> Kept:
    """What a file says it keeps; earlier releases kept no tensors where the words were better."""
    kept: Kept = header.get("kept", "adapter") if tensors else "words"
    if kept not in get_args(Kept):
        raise TypeError(f"expected one of {get_args(Kept)}, got {kept!r:.40}")
    return kept


def _parameters(tensors: dict[str, Tensor]) -> Parameters | None:
    """Parameters from all remaining tensors."""
    if not tensors:
        return None
    tokens = TokenRows(tensors.pop(_TOKEN_IDS), tensors.pop(_TOKEN_ROWS))
    delta: dict[str, Change] = {}
    for name, tensor in tensors.items():
        if name.endswith(_LEFT):
            base = name.removesuffix(_LEFT)
            delta[base] = LowRank(tensor, tensors[base + _RIGHT])
        elif not name.endswith(_RIGHT):
            delta[name] = tensor
        elif name.removesuffix(_RIGHT) + _LEFT not in tensors:
            raise KeyError(name.removesuffix(_RIGHT) + _LEFT)
    return Parameters(delta, tokens)


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"expected one of {DTYPES} for {name}, got {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"expected finite numbers in {name}")


def _check_header(adapter: Adapter, *, known_format: bool) -> None:
    if not known_format:
        raise ValueError(f"expected an adapter of format {FORMAT}")
    if not adapter.prompts or not adapter.layers or len(adapter.layers) != len(adapter.ensemble):
        raise ValueError("expected an adapter with at least one prompt and one ensemble weight per layer")
    if len(set(adapter.layers)) != len(adapter.layers) or min(adapter.layers) < 0:
        raise ValueError("expected layers that are not negative, each named once")
    if not all(math.isfinite(w) and w >= 0 for w in adapter.ensemble) or not math.isclose(
        sum(adapter.ensemble), 1, abs_tol=1e-3
    ):
        raise ValueError("expected ensemble weights that are not negative and sum to 1")
    if not math.isfinite(adapter.presence_bias):
        raise ValueError("expected a finite bias of presence")
    if not all(0 <= iou <= 1 for iou in (adapter.example_iou, adapter.zero_shot_example_iou)):
        raise ValueError("expected example scores in [0, 1]")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("expected text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TypeError("expected text without half a surrogate pair")
    return value


def _items(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return value


def _metadata(raw: bytes) -> dict[str, Any]:
    # safetensors.load() checks the header but drops its metadata, so the header is parsed again here.
    length = int.from_bytes(raw[:8], "little")
    header: dict[str, dict[str, Any]] = json.loads(raw[8 : 8 + length])
    return header["__metadata__"]
