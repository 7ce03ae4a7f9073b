"""LLaVA-NeXT models (LLaVA-1.6; Liu et al. 2024, https://llava-vl.github.io/blog/2024-01-30-llava-next/)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration

from app.errors import InvalidInputError

from .shared.clip_pixels import CLIP_MEAN, CLIP_STD
from .shared.decoder import Decoder, Parts, layout_of, tiled
from .shared.family import Family
from .shared.transformers_backbone import whole_model

FAMILY = Family(
    name="llava_next",
    models="LLaVA-NeXT",
    source="llava-hf/llava-v1.6-mistral-7b-hf",
    attention="causal self-attention, text to image",
    image_text_score="yes/no question",
    tuned="low-rank change of q, k, v and o of the chosen layers",
    parameters_m=7566.7,
)

# Tiles per axis beside the whole image: the squarest of the layouts that the models were trained with.
_TILES = 2

# Text before and after a turn of the conversation, per language model.
_TURNS = {"mistral": ("[INST] ", " [/INST]"), "llama": ("USER: ", " ASSISTANT:")}


def load(source: str, *, device: str, dtype: str) -> Decoder:
    """Load `source`, a transformers id such as `llava-hf/llava-v1.6-mistral-7b-hf` or a local folder.

    Raises:
        InvalidInputError: If it is missing, unreadable, incomplete, or of another class.
    """
    model, tokenizer, name = whole_model(source, LlavaNextForConditionalGeneration, FAMILY, dtype="auto")
    return Decoder(model, _parts(model, tokenizer), tokenizer, name=name, device=device, dtype=getattr(torch, dtype))


def _parts(model: Any, tokenizer: Any) -> Parts:
    config, vision = model.config, model.config.vision_config
    side, size = vision.image_size // vision.patch_size, _TILES * vision.image_size
    if config.text_config.model_type not in _TURNS:
        raise InvalidInputError(
            f"{model.name_or_path!r} speaks by {config.text_config.model_type}: name a LLaVA-NeXT over "
            f"{' or '.join(_TURNS)}, such as {FAMILY.source}."
        )
    if [size, size] not in [list(pair) for pair in config.image_grid_pinpoints]:
        raise InvalidInputError(
            f"{model.name_or_path!r} doesn't take {size} × {size} pixels: name a LLaVA-NeXT that does, such as "
            f"{FAMILY.source}."
        )
    begin, end = _TURNS[config.text_config.model_type]

    def embed_image(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch image hidden"]:
        tiles, whole = tiled(pixels, _TILES)
        sizes = torch.tensor([[size, size]]).expand(len(pixels), -1)
        found = model.model.get_image_features(torch.cat([whole, tiles], dim=1), sizes)
        return torch.stack(list(found.pooler_output))

    rows = _TILES * side
    image = tokenizer.convert_ids_to_tokens(config.image_token_id) * (side**2 + rows * (rows + 1))
    return Parts(
        family=FAMILY,
        language_model=model.model.language_model,
        head=model.lm_head,
        embed_image=embed_image,
        layout=layout_of(tokenizer, f"{begin}{image}\n", config.image_token_id, _order(side)),
        after_question=end,
        input_size=size,
        patch_grid_hw=(rows, rows),
        mean=CLIP_MEAN,
        deviation=CLIP_STD,
    )


def _order(side: int) -> Int[Tensor, "patch"]:
    """Index of each patch among the image tokens: the whole image comes first, and a newline ends each row of tiles."""
    rows = _TILES * side
    return side**2 + torch.arange(rows * (rows + 1)).view(rows, rows + 1)[:, :-1].flatten()
