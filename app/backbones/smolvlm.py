"""SmolVLM (Marafioti et al. 2025, https://arxiv.org/abs/2504.05299) and Idefics3 models, from the hub or a folder."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForImageTextToText, Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration

from app.errors import InvalidInputError

from .shared.decoder import Decoder, Parts, layout_of, tiled
from .shared.family import Family
from .shared.transformers_backbone import whole_model

FAMILY = Family(
    name="smolvlm",
    models="SmolVLM, Idefics3",
    source="HuggingFaceTB/SmolVLM-500M-Instruct",
    attention="causal self-attention, text to image",
    image_text_score="yes/no question",
    tuned="low-rank change of q, k, v and o of the chosen layers",
    parameters_m=507.5,
)


# Tiles per axis beside the whole image, as in the models' training. After the pixel shuffle a tile has only 8 × 8
# (SmolVLM) or 13 × 13 (Idefics3) tokens.
_TILES = 2


def load(source: str, *, device: str, dtype: str) -> Decoder:
    """Load `source`, a transformers id such as `HuggingFaceTB/SmolVLM-500M-Instruct` or a local folder.

    Raises:
        InvalidInputError: If it is missing, unreadable, incomplete, or of another class.
    """
    model, tokenizer, name = whole_model(source, AutoModelForImageTextToText, FAMILY, dtype="auto")
    if not isinstance(model, Idefics3ForConditionalGeneration | SmolVLMForConditionalGeneration):
        raise InvalidInputError(
            f"{source!r} is a {type(model).__name__}, neither SmolVLM nor Idefics3: name the family that it is of."
        )
    return Decoder(model, _parts(model, tokenizer), tokenizer, name=name, device=device, dtype=getattr(torch, dtype))


def _parts(model: Any, tokenizer: Any) -> Parts:
    inner, vision = model.model, model.config.vision_config
    side = vision.image_size // vision.patch_size // model.config.scale_factor

    def embed_image(pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch image hidden"]:
        images = torch.cat(tiled(pixels, _TILES), dim=1).flatten(0, 1)
        patches = vision.image_size // vision.patch_size
        seen = torch.ones(len(images), patches, patches, dtype=torch.bool, device=pixels.device)
        hidden = inner.vision_model(pixel_values=images, patch_attention_mask=seen).last_hidden_state
        embedded: Tensor = inner.connector(hidden)
        return embedded.view(len(pixels), -1, embedded.shape[-1])

    return Parts(
        family=FAMILY,
        language_model=inner.text_model,
        head=model.lm_head,
        embed_image=embed_image,
        layout=layout_of(tokenizer, _before(side), model.config.image_token_id, _order(side)),
        after_question="<end_of_utterance>\nAssistant:",
        input_size=_TILES * vision.image_size,
        patch_grid_hw=(_TILES * side, _TILES * side),
        mean=(0.5, 0.5, 0.5),
        deviation=(0.5, 0.5, 0.5),
    )


def _before(side: int) -> str:
    """Text before the words: the tiles row by row, then the whole image, as the models' processor writes them."""
    image, around = "<image>" * side**2, "<fake_token_around_image>"
    rows = "".join(
        "".join(f"{around}<row_{row}_col_{column}>{image}" for column in range(1, _TILES + 1)) + "\n"
        for row in range(1, _TILES + 1)
    )
    return f"<|im_start|>User:{rows}\n{around}<global-img>{image}{around}"


def _order(side: int) -> Int[Tensor, "patch"]:
    """Index of each patch among the image tokens: the tiles come one after the other, the whole image last."""
    tokens = torch.arange(_TILES**2 * side**2).view(_TILES, _TILES, side, side)
    return tokens.transpose(1, 2).flatten()  # [tile y, y, tile x, x], the grid row by row
