"""Models of transformers' classes, from the hub or a folder: read whole, or refused in a sentence."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer

from app.errors import InvalidInputError
from app.method.backbone import MaskDecoder
from app.method.frame import Frame, fit_and_pad
from app.method.prompts import phrase

from .family import Family


def whole_model(
    source: str, model_type: Any, family: Family, *, dtype: Literal["float32", "auto"] = "float32"
) -> tuple[Any, Any, str]:
    """Read a model and its tokenizer.

    Args:
        source: A transformers id, or a folder as `save_pretrained` writes it.
        model_type: The class that reads it.
        family: What the sentences speak of.
        dtype: Number format to read it in; `auto` is the checkpoint's own.

    Returns:
        The model, the tokenizer, and what the service calls it: a folder by its last part, since a path means nothing
        elsewhere.

    Raises:
        InvalidInputError: If it is not there, not whole, or not such a model.
    """
    if not source:
        raise InvalidInputError(f"{family.models} needs an id or a folder: EXEMPLAR_BACKBONE={family.setting}.")
    try:
        model, found = model_type.from_pretrained(source, dtype=dtype, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InvalidInputError(
            f"No {family.models} model could be read from {source!r}: give a folder that holds config.json, the "
            "safetensors files, tokenizer.json and tokenizer_config.json, or an id of the hub while it can be reached "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error
    # transformers fills missing weights with random numbers and a missing vocabulary with nothing, and goes on.
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


def _reads(tokenizer: Any) -> bool:
    """Whether a prompt has tokens between the first and the last one, all of them known."""
    ids = tokenizer(phrase("dog"))["input_ids"]
    return len(ids) > 2 and tokenizer.unk_token_id not in ids


class TransformersBackbone:
    """Part of `Backbone` that is the same for every loaded model."""

    input_size: int
    _device: torch.device
    _dtype: torch.dtype
    mask_decoder: MaskDecoder | None = None
    _model: Any  # of transformers, which leaves it without types

    @property
    def device(self) -> str:
        """Where the weights are."""
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
        """The photo fitted into the square and padded, as in the authors' loader; the padding is image too."""
        return fit_and_pad(photo, self.input_size)
