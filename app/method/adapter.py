"""What one example changes: an immutable value, passed to the model as an argument and never written into it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

FORMAT = "exemplar-adapter-1"

# Of parameters, and of token ids: adapters that run in one pass are stacked, so others could not stand next to them.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int64)

# The rows of the word-embedding table that an adapter replaces, and the tokens they belong to.
TOKEN_IDS = "embeddings.word_embeddings.token_ids"
TOKEN_ROWS = "embeddings.word_embeddings.rows"

# What names of tensors start with that tell the mask decoder how the examples look (`example_memory`).
MEMORY_PREFIX = "example."


@dataclass(frozen=True)
class Adapter:
    """A category's own copy of the parameters that one example may change.

    Attributes:
        backbone: Name of the model it was tuned on, such as `embedded`.
        revision: Hash of that model's weights; on any other the adapter means nothing.
        category: The category's name.
        version: 1, 2, …; never used twice for one name.
        prompts: The category's name and the other words for it.
        layers: Layers whose cross-attention was tuned and is read.
        ensemble: Weight of each of `layers`, sum 1.
        tensors: Parameter name to value, and how the examples look; empty where the words alone scored better than all
            of it.
        example_iou: Intersection over union by these tensors on the category's own examples, in [0, 1].
        zero_shot_example_iou: The same of the words alone.
        created_at: RFC 3339 time.
    """

    backbone: str
    revision: str
    category: str
    version: int
    prompts: tuple[str, ...]
    layers: tuple[int, ...]
    ensemble: tuple[float, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)
    example_iou: float
    zero_shot_example_iou: float
    created_at: str

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """The tensors that prompts run under: all but what is kept of the examples for the mask decoder."""
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith(MEMORY_PREFIX)}

    @cached_property
    def form(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parameters, rows of tokens aside: adapters of one form can run side by side."""
        rows = (TOKEN_IDS, TOKEN_ROWS)
        return frozenset(
            (name, () if name in rows else tuple(tensor.shape)) for name, tensor in self.parameters.items()
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def adapter_to_bytes(adapter: Adapter) -> bytes:
    """Write an adapter as safetensors whose header holds everything but the tensors."""
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
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    return save(tensors, metadata={"exemplar": json.dumps(header)})


def adapter_from_bytes(raw: bytes) -> Adapter:
    """Read what `adapter_to_bytes` wrote; the inverse, bit by bit.

    Raises:
        ValueError: If the bytes are not an adapter: cut short, of another format, or with values out of range.
    """
    try:
        tensors = load(raw)
        header = json.loads(_metadata(raw)["exemplar"])
        adapter = Adapter(
            backbone=_text(header["backbone"]),
            revision=_text(header["revision"]),
            category=_text(header["category"]),
            version=int(header["version"]),
            prompts=tuple(_text(word) for word in _items(header["prompts"])),
            layers=tuple(int(layer) for layer in _items(header["layers"])),
            ensemble=tuple(float(weight) for weight in _items(header["ensemble"])),
            tensors=tensors,
            example_iou=float(header["example_iou"]),
            zero_shot_example_iou=float(header["zero_shot_example_iou"]),
            created_at=_text(header["created_at"]),
        )
        known_format = header["format"] == FORMAT
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"expected an adapter in safetensors form, got something else: {error}") from error
    _check(adapter, known_format=known_format)
    return adapter


def _check(adapter: Adapter, *, known_format: bool) -> None:
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
    if not all(0 <= iou <= 1 for iou in (adapter.example_iou, adapter.zero_shot_example_iou)):
        raise ValueError("expected example scores in [0, 1]")
    for name, tensor in adapter.tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"expected one of {_DTYPES} for {name}, got {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"expected finite numbers in {name}")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("expected text")
    return value


def _items(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return value


def _metadata(raw: bytes) -> dict[str, Any]:
    # safetensors.load() checks the header and drops its metadata, so it is read once more here.
    length = int.from_bytes(raw[:8], "little")
    header: dict[str, dict[str, Any]] = json.loads(raw[8 : 8 + length])
    return header["__metadata__"]
