"""BLIP-2 image-text matching models (Li et al. 2023, https://arxiv.org/abs/2301.12597), from the hub or a folder.

The Q-Former puts 32 learned queries between text and image: they attend to the image in the cross-attention of every
other layer, and share their self-attention with the text. Text tokens have no logits to patches of their own;
`attention_through_queries` defines them by way of the queries.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformers import Blip2ForImageTextRetrieval

from app.errors import InvalidInputError
from app.method.backbone import EncodedImage, ImageTextScore, TextToImage, TextTokens
from app.method.parameters import Change, Parameters, TokenRows

from .shared.adapted import check_share, copies, delta_of, layer_norm, linear, replace_rows, token_copies, with_prefix
from .shared.blip_text import CROSS_ATTENTION, any_cross_attention
from .shared.clip_pixels import clip_normalise
from .shared.family import Family
from .shared.tokens import tokenize
from .shared.transformers_backbone import TransformersBackbone, encoded, revision_of, whole_model

FAMILY = Family(
    name="blip2",
    models="BLIP-2",
    source="Salesforce/blip2-itm-vit-g-coco",
    attention="text to queries, queries to image",
    image_text_score="match head",
    tuned="cross-attention of the chosen layers",
    parameters_m=1172.6,
)


# Input of the COCO-finetuned retrieval model: 26 × 26 patches.
_INPUT_SIZE = 364
_WORDS = "embeddings.word_embeddings.weight"


def load(source: str, *, device: str, dtype: str) -> "Blip2":
    """Load `source`, a transformers id such as `Salesforce/blip2-itm-vit-g-coco` or a local folder.

    Raises:
        InvalidInputError: If it is missing, unreadable, incomplete, or of another class.
    """
    model, tokenizer, name = whole_model(source, Blip2ForImageTextRetrieval, FAMILY)
    if not model.config.qformer_config.use_qformer_text_input:
        raise InvalidInputError(
            f"{source!r} is not a BLIP-2 matching model, since its Q-Former reads no text: give one with a matching "
            f"head, as {FAMILY.source} is."
        )
    return Blip2(model, tokenizer, name=name, device=device, dtype=getattr(torch, dtype))


class Blip2(TransformersBackbone):
    """A `Backbone`; see `app.method.backbone`.

    Layer i is the i-th cross-attention of the Q-Former that a text-reading layer follows: Q-Former layers 0, 2, …, 10
    are layers 0 … 5.

    Args:
        model: A `Blip2ForImageTextRetrieval` whose Q-Former reads text.
        tokenizer: Its tokenizer.
        name: Name of the model in the service.
        input_size: Side of the square input in pixels; position embeddings are interpolated to it.

    Raises:
        ValueError: If the input size is not a multiple of the patch size.
    """

    family = "blip2"
    image_text_score: ImageTextScore = "match head"

    def __init__(
        self,
        model: Blip2ForImageTextRetrieval,
        tokenizer: Any,
        *,
        name: str = "blip2",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        input_size: int = _INPUT_SIZE,
    ) -> None:
        vision, config = model.config.vision_config, model.config.qformer_config
        if input_size % vision.patch_size:
            raise ValueError(f"expected an input of whole patches of {vision.patch_size} pixels, got {input_size}")
        self.name = name
        self.input_size = input_size
        heads = (config.num_attention_heads, vision.num_attention_heads)
        self.revision = revision_of(model.state_dict().items(), "blip2-1", str(input_size), str(heads))
        self._model = model.to(device, dtype).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._device, self._dtype = torch.device(device), dtype
        self._text = QFormer(
            {name: t for name, t in self._model.state_dict().items() if not name.startswith("vision_model.")},
            heads=config.num_attention_heads,
            layer_count=config.num_hidden_layers,
            cross_every=config.cross_attention_frequency,
            eps=config.layer_norm_eps,
        )
        self.layer_count = len(self._text.read_layers)
        # Not measured on trained weights; used until InfoScore has ranked the layers. From the middle on, queries have
        # read the words and still attend to places.
        self.default_layers = tuple(sorted({self.layer_count // 2, 3 * self.layer_count // 4}))
        side = input_size // vision.patch_size
        self.patch_grid_hw = (side, side)
        self.feature_width: int = vision.hidden_size

    @torch.no_grad()
    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> list[EncodedImage]:
        """Run the image tower; the tokens are one CLS token and the patches, after its last layer norm."""
        pixels = clip_normalise(rgb).to(self._device, self._dtype)
        tokens: Tensor = self._model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        return encoded(tokens)

    def patch_features(self, image: EncodedImage) -> Float[Tensor, "patch width"]:
        """The patch tokens."""
        return image.tokens[1:]

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Tokenise the words' prompts into word pieces of BERT's vocabulary."""
        return tokenize(self._tokenizer, words, self._device)

    def attend(
        self,
        image: EncodedImage,
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None = None,
    ) -> TextToImage:
        """See `Backbone.attend`; `attention_through_queries` defines the logits.

        The match score is the mean of the match head's logits over the queries, as in training. All prompts share the
        keys and values of the image; each prompt has its own queries, which read it from the first layer on.
        """
        logits, match = self._text.attend(image.tokens, text, layers=layers, adapters=adapters)
        return TextToImage(logits, match.float().softmax(dim=-1)[:, 1])

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """See `Backbone.trainable`; the same kinds of parameters as for BLIP.

        The cross-attention's query and key can express any linear function of the image tokens. A word's embedding
        row can change the queries that it reads. The self-attention is not tuned: its projections also serve the
        exchange among queries, for which one example holds no evidence.
        """
        return self._text.trainable(layers, text)


@dataclass(frozen=True)
class QFormer:
    """The Q-Former as pure functions of its parameters, so that adapters are arguments.

    Attributes:
        weights: Parameters by their name in `Blip2ForImageTextRetrieval`; never written.
        heads: Attention heads per layer.
        layer_count: Number of layers, with or without cross-attention.
        cross_every: Layers 0, `cross_every`, 2 · `cross_every`, … have cross-attention.
        eps: Epsilon of the layer norms.
    """

    weights: Mapping[str, Tensor]
    heads: int
    layer_count: int
    cross_every: int
    eps: float

    @property
    def read_layers(self) -> tuple[int, ...]:
        """The layers with cross-attention that another layer follows, in which the text reads the queries."""
        return tuple(range(0, self.layer_count - 1, self.cross_every))

    def attend(
        self,
        image_tokens: Float[Tensor, "image_token width"],
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None,
    ) -> tuple[dict[int, Float[Tensor, "prompt head token patch"]], Float[Tensor, "prompt 2"]]:
        """Run prompts over one image; see `Backbone.attend`.

        Args:
            layers: Indices into `read_layers`.

        Returns:
            Text→patch logits of the requested layers, and the match head's logits `[no match, match]`.
        """
        prompts = len(text.input_ids)
        check_share(adapters, prompts)
        delta = delta_of(adapters)
        queries = self.weights["query_tokens"].expand(prompts, -1, -1)
        count = queries.shape[1]
        x = torch.cat([queries, self._embed(text, adapters)], dim=1)
        x = layer_norm(x, self.weights, "qformer.layernorm", delta, eps=self.eps)
        mask = F.pad(text.attention_mask.bool(), (count, 0), value=True)[:, None, None]
        numbers = {self.read_layers[place]: place for place in layers}
        logits: dict[int, Tensor] = {}
        looks: Tensor | None = None
        for layer in range(self.layer_count):
            x, choice = self._self_attention(x, layer, delta, mask=mask, queries=count)
            if looks is not None:
                logits[numbers[layer - 1]] = attention_through_queries(choice, looks[..., 1:])
                looks = None
            queries, words = x[:, :count], x[:, count:]
            if layer % self.cross_every == 0:
                queries, looks = self._cross_attention(queries, image_tokens, layer, delta, wanted=layer in numbers)
                looks = looks if layer in numbers else None
            queries = self._feed_forward(queries, layer, delta, of="_query")
            x = torch.cat([queries, self._feed_forward(words, layer, delta, of="")], dim=1)
        return logits, linear(x[:, :count], self.weights, "itm_head", delta).mean(dim=1)

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """Cross-attention of the layers, and the embedding rows of the tokens used."""
        prefixes = [_cross_prefix(self.read_layers[place]) for place in layers]
        names = [f"{prefix}{_in_blip2(part)}" for prefix in prefixes for part in CROSS_ATTENTION]
        rows = TokenRows(*token_copies(self.weights[_WORDS], text.input_ids))
        return Parameters(copies(self.weights, names), rows)

    def _embed(self, text: TextTokens, adapters: Parameters | None) -> Float[Tensor, "prompt token hidden"]:
        words = self.weights[_WORDS][text.input_ids]
        if adapters:
            words = replace_rows(words, text.input_ids, adapters.tokens)
        return words + self.weights["embeddings.position_embeddings.weight"][: text.input_ids.shape[1]]

    def _self_attention(
        self,
        x: Float[Tensor, "prompt token hidden"],
        layer: int,
        delta: Mapping[str, Change],
        *,
        mask: Bool[Tensor, "prompt 1 1 token"],
        queries: int,
    ) -> tuple[Float[Tensor, "prompt token hidden"], Float[Tensor, "prompt head text_token query"]]:
        """Self-attention over queries and text tokens.

        Args:
            queries: Number of queries; they are the first tokens.

        Returns:
            The new states, and the text tokens' logits to the queries.
        """
        w, prefix = self.weights, f"qformer.encoder.layer.{layer}.attention."
        q, k, v = (
            linear(x, w, f"{prefix}attention.{part}", delta).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        choice = q[:, :, queries:] @ k[:, :, :queries].mT / math.sqrt(q.shape[3])
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + linear(context, w, prefix + "output.dense", delta)
        return layer_norm(x, w, prefix + "output.LayerNorm", delta, eps=self.eps), choice

    def _cross_attention(
        self,
        x: Float[Tensor, "prompt query hidden"],
        image_tokens: Float[Tensor, "image_token width"],
        layer: int,
        delta: Mapping[str, Change],
        *,
        wanted: bool,
    ) -> tuple[Float[Tensor, "prompt query hidden"], Float[Tensor, "prompt head query image_token"] | None]:
        """Cross-attention of the queries to the image, by BLIP's implementation."""
        prefix = _cross_prefix(layer)
        base = {part: self.weights[prefix + _in_blip2(part)] for part in CROSS_ATTENTION}
        own = {_in_blip(name): change for name, change in with_prefix(delta, prefix).items()}
        return any_cross_attention(x, image_tokens, base, own, heads=self.heads, eps=self.eps, wanted=wanted)

    def _feed_forward(
        self, x: Float[Tensor, "prompt token hidden"], layer: int, delta: Mapping[str, Change], *, of: str
    ) -> Float[Tensor, "prompt token hidden"]:
        """Feed-forward part; `of` is the suffix of its name, `_query` for the queries and empty for the text."""
        w, prefix = self.weights, f"qformer.encoder.layer.{layer}."
        inner = F.gelu(linear(x, w, f"{prefix}intermediate{of}.dense", delta))
        x = x + linear(inner, w, f"{prefix}output{of}.dense", delta)
        return layer_norm(x, w, f"{prefix}output{of}.LayerNorm", delta, eps=self.eps)


def attention_through_queries(
    choice: Float[Tensor, "prompt choosing_head token query"], looks: Float[Tensor, "prompt head query patch"]
) -> Float[Tensor, "prompt head token patch"]:
    """Logits of text tokens to patches by way of the queries: Σ_j p[t, j] · (q_j · k_n / √d).

    p is the attention of token t to query j in the self-attention right after the queries' cross-attention to the
    image. In this order the image reaches the text through the queries, and a word can choose among queries by what
    they have read.

    This equals q̄_t · k_n / √d with q̄_t = Σ_j p[t, j] · q_j, the token's mixture of queries: a logit before any softmax
    over patches, as for any other backbone. So levels are comparable between prompts, and the softmax over prompts is
    meaningful. Rejected alternatives (by argument, not measured on trained weights):

    - log Σ_j p[t, j] · softmax_n(q_j · k_n), attention multiplied out, gives each token the same sum over patches, so
      that a prompt whose object is absent scores as high as one whose object is present.
    - log Σ_j p[t, j] · exp(q_j · k_n) keeps the levels, but the largest query logit at a patch dominates, even of a
      query that the token hardly attends to, since logits may span far more than log p.
    - p over all tokens, as the model computes it, lowers the logits of long prompts, whose tokens have more text to
      attend to. Here p sums to 1 over the queries alone.
    - Pairing the heads of both attentions by number: they are numbered independently. p is the mean over heads (as in
      attention rollout, Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928), and the heads of the result, the
      strongest of which counts later, are those that look at the image.

    Args:
        choice: Logits of text tokens to queries.
        looks: Logits of queries to patches.
    """
    p = choice.softmax(dim=-1).mean(dim=1, keepdim=True)
    return p @ looks


def _cross_prefix(layer: int) -> str:
    return f"qformer.encoder.layer.{layer}.crossattention."


def _in_blip2(part: str) -> str:
    """BLIP-2's name of a parameter of BLIP's cross-attention."""
    return part.replace("self.", "attention.", 1)


def _in_blip(part: str) -> str:
    """BLIP's name of a parameter, or of a factor, of BLIP-2's cross-attention."""
    return part.replace("attention.", "self.", 1)
