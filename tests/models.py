"""A BLIP small enough for any test, and adapters of random numbers.

Its axes are prime where a network lets them be: 5 text layers, 3 heads of 7, an image width of 2 · 11, 7 × 7 patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

from app.backbones.embedded import VOCABULARY
from app.method.adapter import Adapter
from app.method.backbone import Backbone
from app.method.parameters import VisualPrompt

INPUT_PX = 112


def random_blip(*, seed: int = 7) -> tuple[BlipForImageTextRetrieval, BertTokenizer]:
    """A model and its tokenizer; 16 pixels a patch."""
    text = {
        "vocab_size": 30522,
        "hidden_size": 21,
        "encoder_hidden_size": 22,
        "intermediate_size": 13,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "max_position_embeddings": 83,
        "projection_dim": 7,
        "bos_token_id": 101,
    }
    vision = {
        "hidden_size": 22,
        "intermediate_size": 17,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 80,  # 5 × 5 patches: positions are interpolated to any input used here
        "patch_size": 16,
        "projection_dim": 7,
    }
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=7))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # A fresh model has no biases and hardly any attention: a test could not tell one layer from another.
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), BertTokenizer(vocab=str(VOCABULARY))


def random_adapter(
    backbone: Backbone,
    *prompts: str,
    layers: Sequence[int] = (0, 3),
    ensemble: Sequence[float] = (0.5, 0.5),
    seed: int = 0,
) -> Adapter:
    """An adapter that differs from the base model in every parameter, and from others by its seed."""
    generator = torch.Generator().manual_seed(seed)
    base = backbone.trainable(layers, backbone.tokenize(prompts))
    return Adapter(
        backbone=backbone.name,
        revision=backbone.revision,
        category=prompts[0],
        version=1,
        prompts=prompts,
        layers=tuple(layers),
        ensemble=tuple(ensemble),
        example_iou=0.5,
        zero_shot_example_iou=0.25,
        created_at="2026-01-02T03:04:05Z",
        parameters=base.map(lambda tensor: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)),
        visual_prompt=VisualPrompt(
            torch.randn(backbone.feature_width, generator=generator), torch.tensor(0.1 * seed - 0.2)
        ),
    )
