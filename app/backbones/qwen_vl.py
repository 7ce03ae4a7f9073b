"""Qwen2.5-VL models (Bai et al. 2025, https://arxiv.org/abs/2502.13923), from the hub or a folder."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from .shared.clip_pixels import CLIP_MEAN, CLIP_STD
from .shared.decoder import Decoder, Layout, Parts, layout_of
from .shared.family import Family
from .shared.transformers_backbone import whole_model

FAMILY = Family(
    name="qwen_vl",
    models="Qwen2.5-VL",
    source="Qwen/Qwen2.5-VL-3B-Instruct",
    attention="causal self-attention, text to image",
    image_text_score="yes/no question",
    tuned="low-rank change of q, k, v and o of the chosen layers",
    parameters_m=3754.6,
)

# Image tokens per row, each of 28 × 28 pixels. The model takes any size; other families have about as many.
_SIDE = 20


def load(source: str, *, device: str, dtype: str) -> Decoder:
    """Load `source`, a transformers id such as `Qwen/Qwen2.5-VL-3B-Instruct` or a local folder.

    Raises:
        InvalidInputError: If it is missing, unreadable, incomplete, or of another class.
    """
    model, tokenizer, name = whole_model(source, Qwen2_5_VLForConditionalGeneration, FAMILY, dtype="auto")
    return Decoder(model, _parts(model, tokenizer), tokenizer, name=name, device=device, dtype=getattr(torch, dtype))


def _parts(model: Any, tokenizer: Any) -> Parts:
    vision = model.config.vision_config
    merged = vision.spatial_merge_size
    side = _SIDE * merged

    def embed_image(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch image hidden"]:
        patch, frames = vision.patch_size, vision.temporal_patch_size
        # A photo is a video of equal frames. Patches that merge into one token are adjacent:
        # [batch, colour, frame, y, merged y, pixel y, x, merged x, pixel x]
        # → [batch, y, x, merged y, merged x, colour, frame, pixel y, pixel x]
        film = pixels[:, :, None].expand(-1, -1, frames, -1, -1)
        grid = film.reshape(len(pixels), 3, frames, _SIDE, merged, patch, _SIDE, merged, patch)
        grid = grid.permute(0, 3, 6, 4, 7, 1, 2, 5, 8)
        sizes = torch.tensor([[1, side, side]], device=pixels.device).expand(len(pixels), -1)
        found = model.model.get_image_features(grid.reshape(len(pixels) * side**2, -1), sizes)
        return torch.stack(list(found.pooler_output))

    return Parts(
        family=FAMILY,
        language_model=model.model.language_model,
        head=model.lm_head,
        embed_image=embed_image,
        layout=_layout(tokenizer, model.config.image_token_id),
        after_question="<|im_end|>\n<|im_start|>assistant\n",
        input_size=side * vision.patch_size,
        patch_grid_hw=(_SIDE, _SIDE),
        mean=CLIP_MEAN,
        deviation=CLIP_STD,
    )


def _layout(tokenizer: Any, image_token_id: int) -> Layout:
    """Layout with the row and column of each image token as positions; the text continues after the larger of them."""
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    image = tokenizer.convert_ids_to_tokens(image_token_id) * _SIDE**2
    before = f"{system}<|im_start|>user\n<|vision_start|>{image}<|vision_end|>"
    plain = layout_of(tokenizer, before, image_token_id, torch.arange(_SIDE**2), axes=3)
    positions, start = plain.positions.clone(), int(plain.placeholders[0])
    place = torch.arange(_SIDE**2)
    positions[:, plain.placeholders] = start + torch.stack([0 * place, place // _SIDE, place % _SIDE])
    after = positions.shape[1] - int(plain.placeholders[-1]) - 1
    positions[:, plain.placeholders[-1] + 1 :] = start + _SIDE + torch.arange(after)
    return replace(plain, positions=positions, following=start + _SIDE + after)
