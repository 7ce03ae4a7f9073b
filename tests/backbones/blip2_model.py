"""A BLIP-2 small enough for any test.

Its axes are prime where the network lets them be: 3 heads of 7, 5 queries, an image width of 2 · 11, positions of 5 × 5
patches. Layers 0, 2, 4 and 6 of its 9 have cross-attention and a text behind them, layer 8 cross-attention alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
)

from app.backbones.embedded import VOCABULARY

INPUT_PX = 140


def random_blip2(
    *, seed: int = 7, changed: bool = False, reads_text: bool = True
) -> tuple[Blip2ForImageTextRetrieval, BertTokenizer]:
    """A model and its tokenizer; 28 pixels a patch, so 5 × 5 patches on `INPUT_PX`."""
    vision = Blip2VisionConfig(
        hidden_size=22,
        intermediate_size=17,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=INPUT_PX,
        patch_size=28,
    )
    qformer = Blip2QFormerConfig(
        hidden_size=21,
        num_hidden_layers=9,
        num_attention_heads=3,
        intermediate_size=13,
        max_position_embeddings=83,
        use_qformer_text_input=reads_text,
    )
    config = Blip2Config(
        vision_config=vision.to_dict(), qformer_config=qformer.to_dict(), num_query_tokens=5, image_text_hidden_size=7
    )
    model = Blip2ForImageTextRetrieval(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # A fresh model has no biases and hardly any attention: a test could not tell one layer from another.
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            # A patch has 2352 values: with more, they would drown its place.
            scale = 0.03 if "patch_embedding" in name else 0.3
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
        model.itm_head.bias[0] += changed
    return model.eval(), BertTokenizer(vocab=str(VOCABULARY))


def write(folder: Path, *, changed: bool) -> str:
    """Save one and return its spec."""
    for part in random_blip2(changed=changed):
        part.save_pretrained(folder)
    return f"blip2:{folder}"
