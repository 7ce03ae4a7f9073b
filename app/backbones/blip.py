"""BLIP image-text retrieval models (Li et al. 2022, https://arxiv.org/abs/2201.12086), from the hub or a folder."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval

from app.method.backbone import EncodedImage, ImageTextScore, TextToImage, TextTokens
from app.method.frame import imagenet_normalise
from app.method.parameters import Parameters

from .shared.blip_text import BlipText, of_patches
from .shared.family import Family
from .shared.tokens import tokenize
from .shared.transformers_backbone import TransformersBackbone, encoded, revision_of, whole_model

FAMILY = Family(
    name="blip",
    models="BLIP",
    source="Salesforce/blip-itm-large-coco",
    attention="cross-attention",
    image_text_score="match head",
    tuned="cross-attention of the chosen layers",
    parameters_m=446.1,
)


_INPUT_SIZE = 512
# The paper's choice for BLIP-large, by InfoScore.
_DEFAULT_LAYERS = (0, 3)


def load(source: str, *, device: str, dtype: str) -> "Blip":
    """Load `source`, a transformers id such as `Salesforce/blip-itm-large-coco` or a local folder.

    Raises:
        InvalidInputError: If it is missing, unreadable, incomplete, or of another class.
    """
    model, tokenizer, name = whole_model(source, BlipForImageTextRetrieval, FAMILY)
    return Blip(model, tokenizer, name=name, device=device, dtype=getattr(torch, dtype))


class Blip(TransformersBackbone):
    """A `Backbone`; see `app.method.backbone`.

    Args:
        model: Any `BlipForImageTextRetrieval`.
        tokenizer: Its tokenizer, or None if prompts come as tokens.
        name: Name of the model in the service.
        input_size: Side of the square input in pixels; position embeddings are interpolated to it.
        match_on_padding: True to let the match head read padding, as the authors' code does; golden cases need it. By
            default a prompt's score does not depend on the length of the other prompts in the batch.
    """

    family = "blip"
    image_text_score: ImageTextScore = "match head"

    def __init__(
        self,
        model: BlipForImageTextRetrieval,
        tokenizer: object | None,
        *,
        name: str = "blip",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        input_size: int = _INPUT_SIZE,
        match_on_padding: bool = False,
    ) -> None:
        self.name = name
        self.input_size = input_size
        self.revision = revision_of(model.state_dict().items(), "blip-1", str(input_size))
        self._model = model.to(device, dtype).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._match_on_padding = match_on_padding
        self._device, self._dtype = torch.device(device), dtype
        config = model.config.text_config
        self.layer_count: int = config.num_hidden_layers
        self.default_layers = tuple(layer for layer in _DEFAULT_LAYERS if layer < self.layer_count)
        side = input_size // model.config.vision_config.patch_size
        self.patch_grid_hw = (side, side)
        weights = dict(self._model.text_encoder.state_dict())
        self._text = BlipText(
            weights, heads=config.num_attention_heads, layer_count=self.layer_count, eps=config.layer_norm_eps
        )
        self.feature_width = self._text.image_width

    @torch.no_grad()
    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> list[EncodedImage]:
        """Run the image tower; the tokens are one CLS token and the patches."""
        pixels = imagenet_normalise(rgb).to(self._device, self._dtype)
        tokens: Tensor = self._model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        expected = 1 + self.patch_grid_hw[0] * self.patch_grid_hw[1]
        if tokens.shape[1] != expected:
            raise ValueError(f"expected {expected} image tokens, got {tokens.shape[1]}")
        return encoded(tokens)

    def patch_features(self, image: EncodedImage) -> Float[Tensor, "patch width"]:
        """The patch tokens."""
        return image.tokens[1:]

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Tokenise the words' prompts into word pieces of BLIP's vocabulary."""
        if self._tokenizer is None:
            raise ValueError("expected a model with a tokenizer; this one takes tokens only")
        return tokenize(self._tokenizer, words, self._device)

    def attend(
        self,
        image: EncodedImage,
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None = None,
    ) -> TextToImage:
        """See `Backbone.attend`. The match head reads every text token; the highest probability counts."""
        logits, hidden = self._text.attend(image.tokens, text, layers=layers, adapters=adapters)
        head = self._model.itm_head
        match = F.linear(hidden, head.weight, head.bias).float().softmax(dim=-1)[..., 1]
        counted = torch.ones_like(text.attention_mask) if self._match_on_padding else text.attention_mask
        return TextToImage(of_patches(logits), (match * counted).amax(dim=1))

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """See `Backbone.trainable`."""
        return self._text.trainable(layers, text)
