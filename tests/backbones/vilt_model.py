"""A ViLT small enough for any test.

Its axes are prime where the network lets them be: 5 layers, 3 heads of 7, positions of 5 × 5 patches, 11 numbers inside
a feed-forward part.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertTokenizer, ViltConfig, ViltForImageAndTextRetrieval

from app.backbones.embedded import VOCABULARY

INPUT_PX = 224


def random_vilt(*, seed: int = 7, changed: bool = False) -> tuple[ViltForImageAndTextRetrieval, BertTokenizer]:
    """A model and its tokenizer; 32 pixels a patch, so 7 × 7 patches on `INPUT_PX`."""
    config = ViltConfig(
        hidden_size=21,
        num_hidden_layers=5,
        num_attention_heads=3,
        intermediate_size=11,
        image_size=160,
        patch_size=32,
    )
    model = ViltForImageAndTextRetrieval(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # A fresh model has no biases and hardly any attention: a test could not tell one layer from another.
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            # A patch has 3072 values: with more, its embedding would drown the words.
            scale = 0.03 if "projection" in name else 0.3
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
        model.rank_output.bias += changed
    return model.eval(), BertTokenizer(vocab=str(VOCABULARY))


def write(folder: Path, *, changed: bool) -> str:
    """Save one and return its spec."""
    for part in random_vilt(changed=changed):
        part.save_pretrained(folder)
    return f"vilt:{folder}"
