"""LLaVA-1.5 models (Liu et al. 2023, https://arxiv.org/abs/2310.03744), from the hub or a folder."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from app.errors import InvalidInputError

from .shared.clip_pixels import CLIP_MEAN, CLIP_STD
from .shared.decoder import Decoder, Parts, layout_of
from .shared.family import Family
from .shared.transformers_backbone import whole_model

FAMILY = Family(
    name="llava",
    models="LLaVA-1.5",
    source="llava-hf/llava-1.5-7b-hf",
    attention="causal self-attention, text to image",
    image_text_score="yes/no question",
    tuned="low-rank change of q, k, v and o of the chosen layers",
    parameters_m=7063.4,
)


def load(source: str, *, device: str, dtype: str) -> Decoder:
    """Load `source`, a transformers id such as `llava-hf/llava-1.5-7b-hf` or a local folder.

    Raises:
        InvalidInputError: If it is missing, unreadable, incomplete, or of another class.
    """
    model, tokenizer, name = whole_model(source, LlavaForConditionalGeneration, FAMILY, dtype="auto")
    return Decoder(model, _parts(model, tokenizer), tokenizer, name=name, device=device, dtype=getattr(torch, dtype))


def _parts(model: Any, tokenizer: Any) -> Parts:
    vision, config = model.config.vision_config, model.config
    side = vision.image_size // vision.patch_size
    if config.vision_feature_select_strategy != "default":
        raise InvalidInputError(
            f"{model.name_or_path!r} keeps the image tower's global token (vision_feature_select_strategy is not "
            f"'default'): name a LLaVA-1.5 that has patches alone, such as {FAMILY.source}."
        )

    def embed_image(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch image hidden"]:
        return torch.stack(list(model.model.get_image_features(pixels).pooler_output))

    image = tokenizer.convert_ids_to_tokens(config.image_token_id) * side**2
    return Parts(
        family=FAMILY,
        language_model=model.model.language_model,
        head=model.lm_head,
        embed_image=embed_image,
        layout=layout_of(tokenizer, f"USER: {image}\n", config.image_token_id, torch.arange(side**2)),
        after_question=" ASSISTANT:",
        input_size=vision.image_size,
        patch_grid_hw=(side, side),
        mean=CLIP_MEAN,
        deviation=CLIP_STD,
    )
