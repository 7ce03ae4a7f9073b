"""Random decoder models: 5 layers, 4 heads of which 2 share keys, 8 × 8 patches (Qwen: 20 × 20)."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

_SPECIAL = (
    "<pad>", "<s>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>",
    "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)  # fmt: skip

_TEXT = {
    "hidden_size": 24,
    "intermediate_size": 13,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256 + len(_SPECIAL),
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 256,
    "max_position_embeddings": 4096,
}


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, so that every script can be asked for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(_SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<pad>", bos_token="<s>")


def token(name: str) -> int:
    """Number of a special token."""
    return 256 + _SPECIAL.index(name)


def llava(folder: Path, *, changed: bool, **text: int) -> str:
    """CLIP's image tower, Llama, which may differ from the others in some numbers."""
    vision = CLIPVisionConfig(
        hidden_size=22, intermediate_size=17, num_hidden_layers=3, num_attention_heads=2, image_size=112, patch_size=14
    )
    llama = LlamaConfig(**{**_TEXT, **text})
    config = LlavaConfig(vision_config=vision, text_config=llama, image_token_index=token("<image>"))
    return _written(LlavaForConditionalGeneration(config), folder, "llava", changed=changed)


def llava_next(folder: Path, *, changed: bool) -> str:
    """As LLaVA, the image in four tiles too, and a token at the end of each row."""
    vision = CLIPVisionConfig(
        hidden_size=22, intermediate_size=17, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_TEXT),
        image_token_index=token("<image>"),
        image_grid_pinpoints=[[56, 112], [112, 112]],
    )
    return _written(LlavaNextForConditionalGeneration(config), folder, "llava_next", changed=changed)


def smolvlm(folder: Path, *, changed: bool) -> str:
    """SigLIP's image tower, a pixel shuffle of 2, Llama."""
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 22,
            "intermediate_size": 17,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
        },
        text_config={**_TEXT, "model_type": "llama"},
        scale_factor=2,
        image_token_id=token("<image>"),
        pad_token_id=256,
    )
    return _written(SmolVLMForConditionalGeneration(config), folder, "smolvlm", changed=changed)


def qwen_vl(folder: Path, *, changed: bool) -> str:
    """An image tower of windows, patches merged by 2, positions of three axes."""
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 20,
            "out_hidden_size": 24,
            "intermediate_size": 17,
            "depth": 2,
            "num_heads": 1,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **_TEXT,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 1], "rope_theta": 1e4},
        },
        image_token_id=token("<|image_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        video_token_id=token("<s>"),
    )
    return _written(Qwen2_5_VLForConditionalGeneration(config), folder, "qwen_vl", changed=changed)


def _written(model: nn.Module, folder: Path, family: str, *, changed: bool) -> str:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
        model.lm_head.weight[5] += changed
    model.save_pretrained(folder)
    bytes_tokenizer().save_pretrained(folder)
    return f"{family}:{folder}"
