"""ViLT image-text retrieval models (Kim et al. 2021, https://arxiv.org/abs/2102.03334), from the hub or a folder.

One transformer reads text tokens and image patches together; there is no image tower. The method reads the text→patch
block of this joint self-attention. Image tokens depend on the prompt from the first layer on, so prompts share only
their embeddings: of all families this one costs least per image and most per prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformers import ViltForImageAndTextRetrieval

from app.method.backbone import EncodedImage, ImageTextScore, TextToImage, TextTokens
from app.method.parameters import Change, Parameters, TokenRows
from app.method.prompts import phrase

from .shared.adapted import check_share, copies, delta_of, layer_norm, linear, replace_rows, token_copies
from .shared.family import Family
from .shared.transformers_backbone import TransformersBackbone, encoded, revision_of, whole_model

FAMILY = Family(
    name="vilt",
    models="ViLT",
    source="dandelin/vilt-b32-finetuned-coco",
    attention="joint self-attention, text to image",
    image_text_score="match head",
    tuned="attention of the chosen layers",
    parameters_m=111.6,
)


# A 4:3 photo then has the short side of 384 pixels that ViLT was trained with, and a long side within that range.
_INPUT_SIZE = 512
# Mean and deviation of ViLT's processor, for each channel.
_PIXEL_MEAN, _PIXEL_STD = 0.5, 0.5
_WORDS = "vilt.embeddings.text_embeddings.word_embeddings.weight"
_JOINT_ATTENTION = ("attention.attention.query", "attention.attention.key", "attention.attention.value",
                    "attention.output.dense")  # fmt: skip


def load(source: str, *, device: str, dtype: str) -> "Vilt":
    """Load `source`, a transformers id such as `dandelin/vilt-b32-finetuned-coco` or a local folder.

    Raises:
        InvalidInputError: If it is missing, unreadable, incomplete, or of another class.
    """
    model, tokenizer, name = whole_model(source, ViltForImageAndTextRetrieval, FAMILY)
    return Vilt(model, tokenizer, name=name, device=device, dtype=getattr(torch, dtype))


class Vilt(TransformersBackbone):
    """A `Backbone`; see `app.method.backbone`.

    An image token concatenates its embedding, which the joint transformer reads together with each prompt, and its
    feature (`JointTransformer.features`), which does not depend on a prompt.

    The transformers class shuffles the patches, and drops some where the configuration limits their number. Here all
    are kept, in the order of the grid.

    Args:
        model: Any `ViltForImageAndTextRetrieval`.
        tokenizer: Its tokenizer.
        name: Name of the model in the service.
        input_size: Side of the square input in pixels; position embeddings are interpolated to it.

    Raises:
        ValueError: If the input size is not a multiple of the patch size.
    """

    family = "vilt"
    image_text_score: ImageTextScore = "match head"

    def __init__(
        self,
        model: ViltForImageAndTextRetrieval,
        tokenizer: Any,
        *,
        name: str = "vilt",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        input_size: int = _INPUT_SIZE,
    ) -> None:
        config = model.config
        if input_size % config.patch_size:
            raise ValueError(f"expected an input of whole patches of {config.patch_size} pixels, got {input_size}")
        self.name = name
        self.input_size = input_size
        self.revision = revision_of(
            model.state_dict().items(), "vilt-1", str(input_size), str(config.num_attention_heads)
        )
        self.layer_count: int = config.num_hidden_layers
        # Not measured on trained weights; used until InfoScore has ranked the layers. From the middle on, words and
        # patches have interacted, and patches still represent their own place.
        self.default_layers = tuple(sorted({self.layer_count // 2, 3 * self.layer_count // 4}))
        side = input_size // config.patch_size
        self.patch_grid_hw = (side, side)
        self.feature_width: int = config.hidden_size
        self._place = _place(model.state_dict(), side).to(device, dtype)
        self._model = model.to(device, dtype).eval().requires_grad_(False)
        self._transformer = JointTransformer(
            dict(self._model.state_dict()),
            heads=config.num_attention_heads,
            layer_count=self.layer_count,
            eps=config.layer_norm_eps,
        )
        self._tokenizer = tokenizer
        self._longest_prompt: int = config.max_position_embeddings
        self._device, self._dtype = torch.device(device), dtype
        self._silence = self._tokens([""])

    @torch.no_grad()
    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> list[EncodedImage]:
        """Embed the patches behind one CLS token, with position and modality, and compute their features."""
        pixels = ((rgb - _PIXEL_MEAN) / _PIXEL_STD).to(self._device, self._dtype)
        w, projection = self._transformer.weights, "vilt.embeddings.patch_embeddings.projection."
        patch_size = w[projection + "weight"].shape[2]
        patches = F.conv2d(pixels, w[projection + "weight"], w[projection + "bias"], stride=patch_size)
        overall = w["vilt.embeddings.cls_token"].expand(len(rgb), -1, -1)
        embedded = torch.cat([overall, patches.flatten(2).mT], dim=1) + self._place
        return encoded(torch.cat([embedded, self._transformer.features(embedded, self._silence)], dim=2))

    def patch_features(self, image: EncodedImage) -> Float[Tensor, "patch feature"]:
        """States of the patches after half of the layers, with an empty sentence; see `JointTransformer.features`.

        The embeddings are linear in the pixels and encode little but colour and position. Half of the layers for one
        sentence cost a hundredth of a request's prompts, once per image.
        """
        return image.tokens[1:, self.feature_width :]

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Tokenise the words' prompts into word pieces, truncated to ViLT's 40 positions."""
        return self._tokens([phrase(word) for word in words])

    def attend(
        self,
        image: EncodedImage,
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None = None,
    ) -> TextToImage:
        """See `Backbone.attend`.

        The match head reads the first text token, as in training, and gives one logit. Retrieval trains it to rank the
        right text above fifteen others, so its sigmoid orders prompts but is not a calibrated probability.
        """
        embedded = image.tokens[:, : self.feature_width]
        logits, match = self._transformer.attend(embedded, text, layers=layers, adapters=adapters)
        return TextToImage(logits, match.float().sigmoid())

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """See `Backbone.trainable`: the four projections of the joint attention, which has no layer norm of its own."""
        return self._transformer.trainable(layers, text)

    def _tokens(self, sentences: Sequence[str]) -> TextTokens:
        batch = self._tokenizer(
            list(sentences),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self._longest_prompt,
            return_tensors="pt",
        )
        return TextTokens(batch["input_ids"].to(self._device), batch["attention_mask"].to(self._device))


@dataclass(frozen=True)
class JointTransformer:
    """The transformer over text and image as pure functions of its parameters, so that adapters are arguments.

    Attributes:
        weights: Parameters by their name in `ViltForImageAndTextRetrieval`; never written.
        heads: Attention heads per layer.
        layer_count: Number of layers.
        eps: Epsilon of the layer norms.
    """

    weights: Mapping[str, Tensor]
    heads: int
    layer_count: int
    eps: float

    def attend(
        self,
        image_tokens: Float[Tensor, "image_token hidden"],
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None,
    ) -> tuple[dict[int, Float[Tensor, "prompt head token patch"]], Float[Tensor, "prompt"]]:
        """Run prompts over one image; see `Backbone.attend`.

        Args:
            image_tokens: Embeddings, the CLS token first.

        Returns:
            Text→patch logits of the requested layers, and the match head's logit.
        """
        prompts, tokens = text.input_ids.shape
        check_share(adapters, prompts)
        delta = delta_of(adapters)
        x = torch.cat([self._embed(text, adapters), image_tokens.expand(prompts, -1, -1)], dim=1)
        mask = _readable(text, len(image_tokens))
        logits: dict[int, Tensor] = {}
        for layer in range(self.layer_count):
            # The image tokens after the last layer are not used.
            asking = x.shape[1] if layer < self.layer_count - 1 else tokens
            x, q, k = self._layer(x, layer, delta, mask=mask, asking=asking)
            if layer in layers:
                logits[layer] = q[:, :, :tokens] @ k[:, :, tokens + 1 :].mT / math.sqrt(q.shape[3])
        first = layer_norm(x[:, :1], self.weights, "vilt.layernorm", delta, eps=self.eps)
        pooled = linear(first, self.weights, "vilt.pooler.dense", delta).tanh()
        return logits, linear(pooled, self.weights, "rank_output", delta)[:, 0, 0]

    def features(
        self, image_tokens: Float[Tensor, "batch image_token hidden"], silence: TextTokens
    ) -> Float[Tensor, "batch image_token hidden"]:
        """Image tokens after the first half of the layers, normalised as the next layer reads them.

        The transformer is initialised from a ViT trained on ImageNet (ViLT paper, section 3.1), in which semantic
        similarity of patches is clearest halfway: earlier layers encode edges and colours, later ones the whole image
        (Amir et al. 2021, https://arxiv.org/abs/2112.05814). Layer norm removes the few channels that are large in
        every patch.

        Args:
            image_tokens: Embeddings.
            silence: The sentence without words, `[CLS] [SEP]`. The transformer was never trained without a text, and
                heads without a target attend to such tokens.
        """
        half = self.layer_count // 2
        words = self._embed(silence, None).expand(len(image_tokens), -1, -1)
        x = torch.cat([words, image_tokens], dim=1)
        mask = _readable(silence, image_tokens.shape[1])
        for layer in range(half):
            x, _, _ = self._layer(x, layer, {}, mask=mask, asking=x.shape[1])
        name = f"vilt.encoder.layer.{half}.layernorm_before"
        return layer_norm(x[:, words.shape[1] :], self.weights, name, {}, eps=self.eps)

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """Joint attention of the layers, and the embedding rows of the tokens used."""
        names = [
            f"vilt.encoder.layer.{layer}.{part}.{kind}"
            for layer in layers
            for part in _JOINT_ATTENTION
            for kind in ("weight", "bias")
        ]
        rows = TokenRows(*token_copies(self.weights[_WORDS], text.input_ids))
        return Parameters(copies(self.weights, [name for name in names if name in self.weights]), rows)

    def _embed(self, text: TextTokens, adapters: Parameters | None) -> Float[Tensor, "prompt token hidden"]:
        w, prefix = self.weights, "vilt.embeddings.text_embeddings."
        words = w[_WORDS][text.input_ids]
        if adapters:
            words = replace_rows(words, text.input_ids, adapters.tokens)
        place = w[prefix + "position_embeddings.weight"][: text.input_ids.shape[1]]
        x = words + w[prefix + "token_type_embeddings.weight"][0] + place
        x = layer_norm(x, w, prefix + "LayerNorm", delta_of(adapters), eps=self.eps)
        return x + w["vilt.embeddings.token_type_embeddings.weight"][0]

    def _layer(
        self,
        x: Float[Tensor, "prompt token hidden"],
        layer: int,
        delta: Mapping[str, Change],
        *,
        mask: Bool[Tensor, "#prompt 1 1 token"],
        asking: int,
    ) -> tuple[
        Float[Tensor, "prompt asking hidden"],
        Float[Tensor, "prompt head asking size"],
        Float[Tensor, "prompt head token size"],
    ]:
        """One pre-norm layer.

        Args:
            asking: Number of leading tokens to compute; they attend to all tokens.

        Returns:
            The new states and the queries of those tokens, and the keys of all tokens.
        """
        w, prefix = self.weights, f"vilt.encoder.layer.{layer}."
        normed = layer_norm(x, w, prefix + "layernorm_before", delta, eps=self.eps)
        q, k, v = (
            self._heads(linear(rows, w, f"{prefix}attention.attention.{part}", delta))
            for part, rows in (("query", normed[:, :asking]), ("key", normed), ("value", normed))
        )
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x[:, :asking] + linear(context, w, prefix + "attention.output.dense", delta)
        normed = layer_norm(x, w, prefix + "layernorm_after", delta, eps=self.eps)
        inner = F.gelu(linear(normed, w, prefix + "intermediate.dense", delta))
        return x + linear(inner, w, prefix + "output.dense", delta), q, k

    def _heads(self, x: Float[Tensor, "prompt token hidden"]) -> Float[Tensor, "prompt head token size"]:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _readable(text: TextTokens, image_tokens: int) -> Bool[Tensor, "prompt 1 1 token"]:
    """Attention mask: True on all tokens but the text's padding."""
    return F.pad(text.attention_mask.bool(), (0, image_tokens), value=True)[:, None, None]


def _place(weights: Mapping[str, Tensor], side: int) -> Float[Tensor, "1 image_token hidden"]:
    """Position embeddings interpolated to this grid, plus the embedding of the image modality."""
    position = weights["vilt.embeddings.position_embeddings"]
    trained = math.isqrt(position.shape[1] - 1)
    grid = position[:, 1:].mT.reshape(1, -1, trained, trained)  # [1, hidden, y, x]
    grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=True).flatten(2).mT
    return torch.cat([position[:, :1], grid], dim=1) + weights["vilt.embeddings.token_type_embeddings.weight"][1]
