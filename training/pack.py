"""Writer of the weights file: float16; frozen matrices int8 by row; statistics and biases of the tower float32."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .start import is_quantised, quantised


def write(weights: dict[str, Tensor], out: Path, facts: dict[str, str]) -> None:
    """Write a weights file.

    Args:
        weights: Tensors by name, float32.
        out: The file to write.
        facts: Metadata for the file's header, such as the stage and the seed.
    """
    whole = {name: tensor.detach() for name, tensor in weights.items()}
    stored = quantised({name: tensor for name, tensor in whole.items() if is_quantised(name)})
    for name, tensor in whole.items():
        if name not in stored:
            exact = name in ("mu", "sd") or (name.startswith("image_tower.") and name.endswith(".bias"))
            stored[name] = tensor if exact else tensor.to(torch.float16)
    metadata = {
        "form": "BLIP image-text matching on EfficientNet-Lite2 image tokens",
        "started_from": "EfficientNet-Lite2 (Apache-2.0), MiniLM-L6-v2 (Apache-2.0)",
        **facts,
    }
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, out, metadata=metadata)
