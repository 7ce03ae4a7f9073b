"""Loading of transformers models from the hub or a folder, and the part of `Backbone` that all families share."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor

from app.errors import InvalidInputError
from app.method.backbone import EncodedImage, MaskDecoder, PresenceModel
from app.method.frame import Frame, fit_and_pad
from app.method.prompts import phrase

from .family import Family


def whole_model(
    source: str, model_type: Any, family: Family, *, dtype: Literal["float32", "auto"] = "float32"
) -> tuple[Any, Any, str]:
    """Read a complete model and its tokenizer.

    Args:
        source: A transformers id, or a folder as `save_pretrained` writes it.
        model_type: The transformers class to read it with.
        family: Family named in error messages.
        dtype: Number format to read it in; `auto` is the checkpoint's own.

    Returns:
        The model, the tokenizer, and the model's name in the service; a folder is named by its last part, since its
        path has no meaning on other machines.

    Raises:
        InvalidInputError: If the model is missing, unreadable, incomplete, or of another class.
    """
    # Imported here, because the embedded model shares this file and needs a second less for its start.
    from transformers import AutoTokenizer

    if not source:
        raise InvalidInputError(f"{family.models} needs an id or a folder: EXEMPLAR_BACKBONE={family.setting}.")
    try:
        _check_type(source, model_type, family)
        model, found = model_type.from_pretrained(source, dtype=dtype, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InvalidInputError(
            f"No {family.models} model could be read from {source!r}: give a folder that holds config.json, the "
            "safetensors files, tokenizer.json and tokenizer_config.json, or an id of the hub while it can be reached "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error
    # transformers fills missing weights with random numbers and a missing vocabulary with nothing, without an error.
    if missing := sorted(found["missing_keys"]):
        raise InvalidInputError(
            f"{source!r} is not a whole {family.models} model, since {len(missing)} of its weights are missing, such "
            f"as {missing[0]}: give one that has them, as {family.source} has."
        )
    if not _reads(tokenizer):
        raise InvalidInputError(
            f"{source!r} is not a whole {family.models} model, since its tokenizer knows no words: put tokenizer.json "
            "and tokenizer_config.json, or its vocabulary, beside the weights."
        )
    return model, tokenizer, f"{family.name}:{Path(source).name if Path(source).exists() else source}"


def revision_of(tensors: Iterable[tuple[str, Tensor]], *context: str) -> str:
    """Hash of a model's weights and of the context that determines its output: 16 hex digits of SHA-256."""
    digest = hashlib.sha256("\0".join(context).encode())
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def encoded(tokens: Float[Tensor, "batch image_token width"]) -> list[EncodedImage]:
    """One `EncodedImage` per image of a batch of tokens."""
    return [EncodedImage(each) for each in tokens]


def _check_type(source: str, model_type: Any, family: Family) -> None:
    """Refuse a model of another type by its configuration.

    transformers would first make a model of default size, which may be gigabytes, for all that the configuration lacks.
    """
    if expected := getattr(model_type, "config_class", None):
        stored, _ = expected.get_config_dict(source)
        if (found := stored.get("model_type", expected.model_type)) != expected.model_type:
            raise InvalidInputError(
                f"{source!r} is a model of type {found!r}, not {family.models}: name the family that it is of."
            )


def _reads(tokenizer: Any) -> bool:
    """True if a prompt has known tokens between the first and the last one."""
    ids = tokenizer(phrase("dog"))["input_ids"]
    return len(ids) > 2 and tokenizer.unk_token_id not in ids


class TransformersBackbone:
    """Part of `Backbone` that is the same for every loaded model."""

    input_size: int
    _device: torch.device
    _dtype: torch.dtype
    mask_decoder: MaskDecoder | None = None
    presence: PresenceModel | None = None
    _model: Any  # untyped in transformers

    @property
    def device(self) -> str:
        """Device of the weights."""
        return str(self._device)

    @property
    def dtype(self) -> str:
        """Number format of the network."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(p.numel() * p.element_size() for p in self._model.parameters())

    def preprocess(self, photo: UInt8[np.ndarray, "height width 3"]) -> tuple[Float[Tensor, "3 size size"], Frame]:
        """Fit the photo into the square and pad it, as the authors' loader does; the model sees the padding too."""
        return fit_and_pad(photo, self.input_size)
