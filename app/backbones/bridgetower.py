"""BridgeTower image-text retrieval models (Xu et al. 2022, https://arxiv.org/abs/2206.08657), from the hub or a folder.

Bridges feed each of the last layers of an image tower and a text tower into one cross-modal layer. There the image
also attends to the text, so from the second cross-modal layer on every prompt has its own image tokens. Prompts share
the image tower alone, and each costs a few layers over all patches; elsewhere it costs layers over its words.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import BridgeTowerForImageAndTextRetrieval

from app.method.backbone import EncodedImage, ImageTextScore, TextToImage, TextTokens
from app.method.parameters import Change, LowRank, Parameters, TokenRows

from .shared.adapted import (
    cast,
    check_share,
    copies,
    delta_of,
    layer_norm,
    linear,
    replace_rows,
    token_copies,
    whole,
    with_prefix,
)
from .shared.blip_text import CROSS_ATTENTION, attention, feed_forward
from .shared.clip_pixels import clip_normalise
from .shared.family import Family
from .shared.tokens import tokenize
from .shared.transformers_backbone import TransformersBackbone, encoded, revision_of, whole_model

FAMILY = Family(
    name="bridgetower",
    models="BridgeTower",
    source="BridgeTower/bridgetower-base-itm-mlm",
    attention="cross-attention of the cross-modal layers",
    image_text_score="match head",
    tuned="cross-attention of the chosen layers",
    parameters_m=326.4,
)


# Patches per side: an input of 384 pixels for patches of 16, as in the authors' retrieval models, 336 for 14.
_GRID = 24
# Not measured on trained weights: the first layers, where image tokens depend least on the prompt.
_DEFAULT_LAYERS = (0, 1)
# Prompts that run at once, each with its own image tokens: 28 MB per copy in the base model.
_PROMPTS_AT_ONCE = 16
# Prefix of parameter names in adapters; `CrossModal` drops it.
_MODEL = "bridgetower."
_WORDS = "text_model.embeddings.word_embeddings.weight"


def load(source: str, *, device: str, dtype: str) -> "BridgeTower":
    """Load `source`, a transformers id such as `BridgeTower/bridgetower-base-itm-mlm` or a local folder.

    Raises:
        InvalidInputError: If it is missing, unreadable, incomplete, or of another class.
    """
    model, tokenizer, name = whole_model(source, BridgeTowerForImageAndTextRetrieval, FAMILY)
    return BridgeTower(model, tokenizer, name=name, device=device, dtype=getattr(torch, dtype))


class BridgeTower(TransformersBackbone):
    """A `Backbone`; see `app.method.backbone`.

    An image token is the concatenation of its inputs to all cross-modal layers.

    Args:
        model: Any `BridgeTowerForImageAndTextRetrieval`.
        tokenizer: Its tokenizer.
        name: Name of the model in the service.
        input_size: Side of the square input in pixels, None for 24 × 24 patches; position embeddings are interpolated
            to it.
    """

    family = "bridgetower"
    image_text_score: ImageTextScore = "match head"

    def __init__(
        self,
        model: BridgeTowerForImageAndTextRetrieval,
        tokenizer: Any,
        *,
        name: str = "bridgetower",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        input_size: int | None = None,
    ) -> None:
        config = model.config
        heads: int = config.text_config.num_attention_heads
        patch: int = config.vision_config.patch_size
        self.name = name
        self.input_size = input_size or _GRID * patch
        self.revision = revision_of(
            model.state_dict().items(), "bridgetower-1", str(self.input_size), str(heads), config.link_tower_type
        )
        self._model = model.to(device, dtype).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._device, self._dtype = torch.device(device), dtype
        self.layer_count: int = config.num_hidden_layers
        self.default_layers = tuple(layer for layer in _DEFAULT_LAYERS if layer < self.layer_count)
        self.patch_grid_hw = (self.input_size // patch,) * 2
        self.feature_width: int = config.hidden_size
        self._cross_modal = CrossModal(
            self._model.bridgetower,
            dict(self._model.bridgetower.state_dict()),
            heads=heads,
            layer_count=self.layer_count,
            tower_layers=config.text_config.num_hidden_layers,
            eps=config.text_config.layer_norm_eps,
        )

    @torch.no_grad()
    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> list[EncodedImage]:
        """Run the image tower; the tokens are one CLS token and the patches."""
        return encoded(self._cross_modal.of_image(clip_normalise(rgb).to(self._device, self._dtype)))

    def patch_features(self, image: EncodedImage) -> Float[Tensor, "patch feature"]:
        """The patch tokens' inputs to the last cross-modal layer."""
        return image.tokens[1:, -self.feature_width :]

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Tokenise the words' prompts into byte pairs of RoBERTa's vocabulary."""
        return tokenize(self._tokenizer, words, self._device)

    def attend(
        self,
        image: EncodedImage,
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None = None,
    ) -> TextToImage:
        """See `Backbone.attend`. The match head reads the first text and image token, as in training."""
        parts = []
        for prompts, own in _passes(len(text.input_ids), check_share(adapters, len(text.input_ids))):
            some = adapters[own] if adapters else None
            logits, pooled = self._cross_modal.attend(image.tokens, text[prompts], layers=layers, adapters=some)
            match: Tensor = self._model.itm_score(pooled).float().softmax(dim=-1)[:, 1]
            parts.append((logits, match))
        joined = {layer: torch.cat([logits[layer] for logits, _ in parts]) for layer in parts[0][0]}
        return TextToImage(joined, torch.cat([match for _, match in parts]))

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """Cross-attention of the text to the image, and the embedding rows of the tokens used."""
        weights = self._cross_modal.weights
        names = [f"{_text_layer(layer)}crossattention.{part}" for layer in layers for part in CROSS_ATTENTION]
        rows = TokenRows(*token_copies(weights[_WORDS], text.input_ids))
        return Parameters(copies(weights, names, prefix=_MODEL), rows)


@dataclass(frozen=True)
class CrossModal:
    """Both towers and the cross-modal layers, as functions of parameters.

    Attributes:
        model: A `BridgeTowerModel`, which runs the image tower and the small parts that no adapter changes.
        weights: Its parameters by name; never written.
        heads: Attention heads per layer.
        layer_count: Number of cross-modal layers.
        tower_layers: Number of layers of each tower; the last `layer_count` of them have a bridge.
        eps: Epsilon of the layer norms.
    """

    model: Any
    weights: Mapping[str, Tensor]
    heads: int
    layer_count: int
    tower_layers: int
    eps: float

    def of_image(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch image_token width"]:
        """Inputs of every image token to each cross-modal layer, concatenated."""
        tower = self.model.vision_model.visual
        x = tower.forward_pre(pixels, interpolate_pos_encoding=True)
        brought = []
        for index, block in enumerate(tower.transformer.resblocks[: self.tower_layers]):
            x = block(x)
            if index >= self._first:
                brought.append(self._brought("image", tower.forward_post(x), index - self._first))
        return torch.cat(brought, dim=-1)

    def attend(
        self,
        image_tokens: Float[Tensor, "image_token width"],
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None,
    ) -> tuple[dict[int, Float[Tensor, "prompt head token patch"]], Float[Tensor, "prompt pooled"]]:
        """Run prompts over one image; see `Backbone.attend`.

        Returns:
            Text→patch logits of the requested layers, and the match head's input.
        """
        mask = text.attention_mask.bool()[:, None, None, :]
        brought = image_tokens.chunk(self.layer_count, dim=1)
        hidden = self._embed(text, adapters)
        delta = delta_of(adapters)
        for index in range(self._first):
            hidden = self._tower_layer(hidden, mask, index)
        logits: dict[int, Tensor] = {}
        after: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
        for layer in range(self.layer_count):
            hidden = self._tower_layer(hidden, mask, self._first + layer)
            words = self._bridge("text", self._brought("text", hidden, layer), after[0], layer)
            image = self._bridge("image", brought[layer][None], after[1], layer)
            words_after, seen = self._text_layer(words, image, mask, layer, delta)
            # Of the last layer's image tokens only the first is used, by the match head.
            rows = 1 if layer == self.layer_count - 1 else len(image_tokens)
            after = words_after, self._image_layer(image, words, mask, layer, rows=rows)
            if layer in layers:
                logits[layer] = seen[..., 1:]
        return logits, self.model.get_cls_features(*after)

    @property
    def _first(self) -> int:
        """First layer of the towers with a bridge."""
        return self.tower_layers - self.layer_count

    def _embed(self, text: TextTokens, adapters: Parameters | None) -> Float[Tensor, "prompt token hidden"]:
        words = self.weights[_WORDS][text.input_ids]
        if adapters:
            words = replace_rows(words, text.input_ids, adapters.tokens)
        # RoBERTa derives positions from the token ids, since padding has none.
        embedded: Tensor = self.model.text_model.embeddings(input_ids=text.input_ids, inputs_embeds=words)
        return embedded

    def _tower_layer(self, x: Tensor, mask: Tensor, layer: int) -> Float[Tensor, "prompt token hidden"]:
        prefix = f"text_model.encoder.layer.{layer}."
        x = attention(x, x, mask, self.weights, f"{prefix}attention.", heads=self.heads, eps=self.eps)
        return feed_forward(x, self.weights, prefix, eps=self.eps)

    def _brought(self, kind: str, x: Float[Tensor, "batch row width"], layer: int) -> Tensor:
        """A tower's tokens as inputs of a cross-modal layer; those of layer 0 are normalised."""
        transform = getattr(self.model, f"cross_modal_{kind}_transform")
        if isinstance(transform, torch.nn.ModuleList):
            transform = transform[layer]
        brought: Tensor = transform(x) + self.weights["token_type_embeddings.weight"][int(kind == "image")]
        return brought if layer else getattr(self.model, f"cross_modal_{kind}_layernorm")(brought)

    def _bridge(self, kind: str, brought: Tensor, before: Tensor | None, layer: int) -> Tensor:
        """Input of a cross-modal layer: the tower's tokens, joined with the output of the layer before."""
        if before is None:
            return brought
        joined: Tensor = getattr(self.model, f"cross_modal_{kind}_link_tower")[layer - 1](brought, before, None)
        return joined

    def _text_layer(
        self, words: Tensor, image: Tensor, mask: Tensor, layer: int, delta: Mapping[str, Change]
    ) -> tuple[Tensor, Tensor]:
        """Text tokens after the layer, and their cross-attention logits."""
        name = _text_layer(layer)
        x = attention(words, words, mask, self.weights, f"{name}attention.", heads=self.heads, eps=self.eps)
        name = f"{name}crossattention."
        own = {name + part: change for part, change in with_prefix(delta, _MODEL + name).items()}
        x, seen = unprojected_cross_attention(x, image, self.weights, name, own, heads=self.heads, eps=self.eps)
        return feed_forward(x, self.weights, _text_layer(layer), eps=self.eps), seen

    def _image_layer(
        self, image: Tensor, words: Tensor, mask: Tensor, layer: int, *, rows: int
    ) -> Float[Tensor, "prompt row hidden"]:
        """The first `rows` image tokens after the layer."""
        prefix = f"cross_modal_image_layers.{layer}."
        x = attention(image[:, :rows], image, None, self.weights, f"{prefix}attention.", heads=self.heads, eps=self.eps)
        x = attention(x, words, mask, self.weights, f"{prefix}crossattention.", heads=self.heads, eps=self.eps)
        return feed_forward(x, self.weights, prefix, eps=self.eps)


def unprojected_cross_attention(
    x: Float[Tensor, "prompt token hidden"],
    image: Float[Tensor, "#prompt image_token hidden"],
    weights: Mapping[str, Tensor],
    prefix: str,
    delta: Mapping[str, Change],
    *,
    heads: int,
    eps: float,
) -> tuple[Float[Tensor, "prompt token hidden"], Float[Tensor, "prompt head token image_token"]]:
    """Cross-attention to shared image tokens or to each prompt's own, each adapter's share under its parameters.

    No image token is projected: q·(X·Wk)ᵀ = (q·Wk)·Xᵀ and softmax·(X·Wv) = (softmax·X)·Wv, exactly. Where each prompt
    has its own image tokens, this is cheaper for the model's own weights too: a prompt has few words and many patches.

    Args:
        prefix: Prefix of all parameter names, such as `cross_modal_text_layers.3.crossattention.`.
        delta: As in `app.backbones.shared.adapted.linear`.
    """
    prompts, tokens, hidden = x.shape
    own = cast(delta, x)
    q = linear(x, weights, f"{prefix}self.query", own).view(prompts, tokens, heads, -1).transpose(1, 2)
    q = q / math.sqrt(hidden // heads)
    asked = _with_keys(q, weights, f"{prefix}self.key", own).flatten(1, 2)
    shift = whole(own.get(f"{prefix}self.key.bias", weights[f"{prefix}self.key.bias"][None]))
    logits = (asked @ image.mT).view(prompts, heads, tokens, -1) + _times(q, shift.view(len(shift), heads, -1, 1))
    context = (logits.softmax(dim=-1).flatten(1, 2) @ image).view(prompts, heads, tokens, -1)
    context = _to_values(context, weights, f"{prefix}self.value", own)
    shift = whole(own.get(f"{prefix}self.value.bias", weights[f"{prefix}self.value.bias"][None]))
    merged = context.transpose(1, 2).reshape(len(shift), -1, hidden) + shift[:, None]
    out = x + linear(merged.view_as(x), weights, f"{prefix}output.dense", own)
    return layer_norm(out, weights, f"{prefix}output.LayerNorm", own, eps=eps), logits


def _with_keys(
    q: Float[Tensor, "prompt head token size"], weights: Mapping[str, Tensor], name: str, delta: Mapping[str, Change]
) -> Float[Tensor, "prompt head token hidden"]:
    """q·Wk per head."""
    weight, heads = f"{name}.weight", q.shape[1]
    change = delta.get(weight)
    if isinstance(change, Tensor):
        return _times(q, _split(change, heads))
    out = _times(q, _split(weights[weight][None], heads))
    if isinstance(change, LowRank):
        out = out + _times(_times(q, _split(change.left, heads)), change.right[:, None])
    return out


def _to_values(
    seen: Float[Tensor, "prompt head token hidden"],
    weights: Mapping[str, Tensor],
    name: str,
    delta: Mapping[str, Change],
) -> Float[Tensor, "prompt head token size"]:
    """x·Wvᵀ per head; x is a weighted mean of image tokens."""
    weight, heads = f"{name}.weight", seen.shape[1]
    change = delta.get(weight)
    if isinstance(change, Tensor):
        return _times(seen, _split(change, heads).mT)
    out = _times(seen, _split(weights[weight][None], heads).mT)
    if isinstance(change, LowRank):
        out = out + _times(_times(seen, change.right[:, None].mT), _split(change.left, heads).mT)
    return out


def _split(matrix: Float[Tensor, "adapter hidden in"], heads: int) -> Float[Tensor, "adapter head size in"]:
    return matrix.view(len(matrix), heads, -1, matrix.shape[2])


def _times(
    x: Float[Tensor, "prompt head token in"], matrix: Float[Tensor, "adapter #head in out"]
) -> Float[Tensor, "prompt head token out"]:
    """Each adapter's share of the prompts times its matrix, per head."""
    rows = x.view(len(matrix), -1, *x.shape[1:]).transpose(1, 2)  # [adapter, head, prompt, token, in]
    out = rows.flatten(2, 3) @ matrix  # [adapter, head, prompt · token, out]
    return out.view(*rows.shape[:4], -1).transpose(1, 2).reshape(*x.shape[:3], -1)


def _passes(prompts: int, adapters: int) -> Iterator[tuple[slice, slice]]:
    """Slices of prompts that run at once, and of the adapters that they run under."""
    if adapters == 1:
        for start in range(0, prompts, _PROMPTS_AT_ONCE):
            yield slice(start, start + _PROMPTS_AT_ONCE), slice(None)
        return
    share = prompts // adapters
    step = max(1, _PROMPTS_AT_ONCE // share)
    for start in range(0, adapters, step):
        yield slice(start * share, (start + step) * share), slice(start, start + step)


def _text_layer(layer: int) -> str:
    return f"cross_modal_text_layers.{layer}."
