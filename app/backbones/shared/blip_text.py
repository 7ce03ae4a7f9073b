"""BLIP's text tower with cross-attention, as pure functions of its parameters, so that adapters are arguments.

The layout and names of the parameters are those of transformers' `BlipTextModel`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from app.method.backbone import TextTokens
from app.method.parameters import Change, LowRank, Parameters, TokenRows

from .adapted import (
    Int8Rows,
    cast,
    check_share,
    copies,
    delta_of,
    low_rank,
    replace_rows,
    token_copies,
    whole,
    with_prefix,
)

# Parameters of a cross-attention, without its prefix.
CROSS_ATTENTION = (
    "self.query.weight", "self.query.bias", "self.key.weight", "self.key.bias", "self.value.weight", "self.value.bias",
    "output.dense.weight", "output.dense.bias", "output.LayerNorm.weight", "output.LayerNorm.bias",
)  # fmt: skip

# Added to the logits of padding before the softmax, as in BERT.
_MASKED = -1e4


@dataclass(frozen=True)
class BlipText:
    """A text tower.

    Attributes:
        weights: Parameters by name; never written.
        heads: Attention heads per layer.
        layer_count: Number of layers with cross-attention; layer 0 is the first of them.
        eps: Epsilon of the layer norms.
        text_layers: Number of layers without cross-attention, which come first.
        prefix: Prefix of all parameter names, in adapters too.
        words: Word embeddings; None if they are among the weights.
    """

    weights: Mapping[str, Tensor]
    heads: int
    layer_count: int
    eps: float
    text_layers: int = 0
    prefix: str = ""
    words: Int8Rows | None = None

    def attend(
        self,
        image_tokens: Float[Tensor, "image_token width"],
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None,
        first_only: bool = False,
    ) -> tuple[dict[int, Float[Tensor, "prompt head token image_token"]], Float[Tensor, "prompt last hidden"]]:
        """Run prompts over one image; see `Backbone.attend`.

        Args:
            image_tokens: Of one image.
            text: The prompts.
            layers: Layers whose logits to return.
            adapters: Stacked adapters, each for its share of the prompts.
            first_only: True if the last hidden states are wanted of the first token alone. The last layer then
                computes no others, unless its logits are wanted.

        Returns:
            Cross-attention logits of the requested layers; the last hidden states, of the first token at least.
        """
        check_share(adapters, len(text.input_ids))
        x = self._embed(text, adapters)
        delta = delta_of(adapters)
        hidden_mask = (1 - text.attention_mask[:, None, None, :].to(x.dtype)) * _MASKED
        logits: dict[int, Tensor] = {}
        for layer in range(-self.text_layers, self.layer_count):
            name = self._layer(layer)
            first = first_only and layer == self.layer_count - 1 and layer not in layers
            asked = x[:, :1].contiguous() if first else x  # with gaps, torch would copy the weights per prompt
            x = attention(asked, x, hidden_mask, self.weights, f"{name}attention.", heads=self.heads, eps=self.eps)
            if layer >= 0:
                x, seen = self._cross_attention(x, image_tokens, layer, delta, wanted=layer in layers)
                if layer in layers and seen is not None:
                    logits[layer] = seen
            x = feed_forward(x, self.weights, name, eps=self.eps)
        return logits, x

    @property
    def image_width(self) -> int:
        """Width of an image token."""
        return self.weights[f"{self._layer(0)}crossattention.self.key.weight"].shape[1]

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """Cross-attention of the layers, and embedding rows of the tokens used (paper, section 3.4)."""
        names = [f"{self._layer(layer)}crossattention.{part}" for layer in layers for part in CROSS_ATTENTION]
        return Parameters(copies(self.weights, names), TokenRows(*token_copies(self._words, text.input_ids)))

    @property
    def _words(self) -> Tensor | Int8Rows:
        return self.words or self.weights[f"{self.prefix}embeddings.word_embeddings.weight"]

    def _embed(self, text: TextTokens, adapters: Parameters | None) -> Float[Tensor, "prompt token hidden"]:
        prefix = f"{self.prefix}embeddings."
        words = self._words[text.input_ids]
        if adapters:
            words = replace_rows(words, text.input_ids, adapters.tokens)
        x = words + self.weights[f"{prefix}position_embeddings.weight"][: text.input_ids.shape[1]]
        return _norm(x, self.weights, f"{prefix}LayerNorm.", self.eps)

    def _cross_attention(
        self, x: Tensor, image_tokens: Tensor, layer: int, delta: Mapping[str, Change], *, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        prefix = f"{self._layer(layer)}crossattention."
        base = {part: self.weights[prefix + part] for part in CROSS_ATTENTION}
        own = with_prefix(delta, prefix)
        return any_cross_attention(x, image_tokens, base, own, heads=self.heads, eps=self.eps, wanted=wanted)

    def _layer(self, layer: int) -> str:
        """Prefix of a layer's parameter names; layers before 0 have no cross-attention."""
        return f"{self.prefix}encoder.layer.{self.text_layers + layer}."


def attention(
    x: Float[Tensor, "#prompt token hidden"],
    seen: Float[Tensor, "prompt seen hidden"],
    mask: Tensor | None,
    weights: Mapping[str, Tensor],
    prefix: str,
    *,
    heads: int,
    eps: float,
) -> Float[Tensor, "prompt token hidden"]:
    """BERT's attention with its residual and layer norm.

    Args:
        x: Tokens that attend.
        seen: Tokens attended to; `x` itself for self-attention.
        mask: As for `F.scaled_dot_product_attention`.
        weights: Parameters by name.
        prefix: Prefix of the names, such as `encoder.layer.3.attention.`.
        heads: Attention heads.
        eps: Epsilon of the layer norm.
    """
    q, k, v = (
        _heads(_linear(rows, weights, f"{prefix}self.{part}."), heads)
        for part, rows in (("query", x), ("key", seen), ("value", seen))
    )
    context = _merge(F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, attn_mask=mask))
    return _norm(x + _linear(context, weights, f"{prefix}output.dense."), weights, f"{prefix}output.LayerNorm.", eps)


def feed_forward(
    x: Float[Tensor, "prompt token hidden"], weights: Mapping[str, Tensor], prefix: str, *, eps: float
) -> Float[Tensor, "prompt token hidden"]:
    """BERT's feed-forward part with its residual and layer norm; `prefix` is, for example, `encoder.layer.3.`."""
    inner = F.gelu(_linear(x, weights, f"{prefix}intermediate.dense."))
    return _norm(x + _linear(inner, weights, f"{prefix}output.dense."), weights, f"{prefix}output.LayerNorm.", eps)


def any_cross_attention(
    x: Float[Tensor, "prompt token hidden"],
    image_tokens: Float[Tensor, "image_token width"],
    base: Mapping[str, Tensor],
    delta: Mapping[str, Change],
    *,
    heads: int,
    eps: float,
    wanted: bool,
) -> tuple[Float[Tensor, "prompt token hidden"], Float[Tensor, "prompt head token image_token"] | None]:
    """Cross-attention by the function that fits the adapters: low-rank changes, whole parameters, or none.

    Args:
        x: Text tokens; the share of one adapter after the other.
        image_tokens: Tokens of one image.
        base: The model's own parameters, named as in `CROSS_ATTENTION`.
        delta: Changed parameters of the same names, with a leading adapter axis.
        heads: Attention heads.
        eps: Epsilon of the layer norm.
        wanted: As for `cross_attention`.
    """
    if isinstance(delta.get("self.query.weight"), LowRank):
        return low_rank_cross_attention(x, image_tokens, base, delta, heads=heads, eps=eps)
    if delta:
        return adapted_cross_attention(x, image_tokens, delta, heads=heads, eps=eps)
    return cross_attention(x, image_tokens, base, heads=heads, eps=eps, wanted=wanted)


def cross_attention(
    x: Float[Tensor, "prompt token hidden"],
    image_tokens: Float[Tensor, "image_token width"],
    w: Mapping[str, Tensor],
    *,
    heads: int,
    eps: float,
    wanted: bool = True,
) -> tuple[Float[Tensor, "prompt token hidden"], Float[Tensor, "prompt head token image_token"] | None]:
    """Cross-attention of all prompts under the same parameters; the image is projected once for all of them.

    Args:
        x: Text tokens.
        image_tokens: Tokens of one image.
        w: Parameters, named as in `CROSS_ATTENTION`.
        heads: Attention heads.
        eps: Epsilon of the layer norm.
        wanted: True to return the logits; otherwise they are never in memory as a whole.
    """
    prompts, tokens, hidden = x.shape
    # [head, row, size]: one product per head for all prompts, without a copy of the keys per prompt.
    q, k, v = (
        F.linear(rows, w[f"self.{part}.weight"], w[f"self.{part}.bias"])
        .view(-1, heads, hidden // heads)
        .transpose(0, 1)
        for part, rows in (("query", x), ("key", image_tokens), ("value", image_tokens))
    )
    per_prompt = None
    if wanted:
        logits = (q / math.sqrt(q.shape[2])) @ k.mT
        per_prompt = logits.view(heads, prompts, tokens, -1).transpose(0, 1)  # [prompt, head, token, image_token]
        context = logits.softmax(dim=-1) @ v
    else:
        context = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    context = context.transpose(0, 1).reshape(prompts, tokens, hidden)  # [head, row, size] → [row, head, size]
    context = F.linear(context, w["output.dense.weight"], w["output.dense.bias"])
    norm = (w["output.LayerNorm.weight"], w["output.LayerNorm.bias"])
    return F.layer_norm(x + context, (hidden,), *norm, eps), per_prompt


def adapted_cross_attention(
    x: Float[Tensor, "prompt token hidden"],
    image_tokens: Float[Tensor, "image_token width"],
    delta: Mapping[str, Change],
    *,
    heads: int,
    eps: float,
) -> tuple[Float[Tensor, "prompt token hidden"], Float[Tensor, "prompt head token image_token"]]:
    """Cross-attention with each adapter's share of the prompts under its own parameters, which have an adapter axis.

    No adapter projects the image: q·(X·Wk)ᵀ = (q·Wk)·Xᵀ and softmax·(X·Wv) = (softmax·X)·Wv, exactly. Its key and value
    weights multiply its few text tokens instead of the many image tokens.
    """
    w = {name: whole(change).to(x.dtype) for name, change in delta.items()}
    prompts, tokens, hidden = x.shape
    count, width = len(w["self.key.weight"]), image_tokens.shape[1]
    size = hidden // heads
    rows = x.reshape(count, -1, hidden)
    q = torch.baddbmm(w["self.query.bias"][:, None], rows, w["self.query.weight"].mT)
    q = q.view(count, -1, heads, size).transpose(1, 2) / math.sqrt(size)  # [adapter, head, row, size]
    key = w["self.key.weight"].view(count, heads, size, width)
    value = w["self.value.weight"].view(count, heads, size, width)
    logits = (q @ key) @ image_tokens.T + q @ w["self.key.bias"].view(count, heads, size, 1)
    context = (logits.softmax(dim=-1) @ image_tokens) @ value.mT + w["self.value.bias"].view(count, heads, 1, size)
    merged = context.transpose(1, 2).reshape(count, -1, hidden)
    out = rows + torch.baddbmm(w["output.dense.bias"][:, None], merged, w["output.dense.weight"].mT)
    scale, shift = w["output.LayerNorm.weight"][:, None], w["output.LayerNorm.bias"][:, None]
    out = F.layer_norm(out, (hidden,), eps=eps) * scale + shift
    per_prompt = logits.view(count, heads, prompts // count, tokens, -1).transpose(1, 2)
    return out.view(prompts, tokens, hidden), per_prompt.reshape(prompts, heads, tokens, -1)


def low_rank_cross_attention(
    x: Float[Tensor, "prompt token hidden"],
    image_tokens: Float[Tensor, "image_token width"],
    base: Mapping[str, Tensor],
    delta: Mapping[str, Change],
    *,
    heads: int,
    eps: float,
) -> tuple[Float[Tensor, "prompt token hidden"], Float[Tensor, "prompt head token image_token"]]:
    """Cross-attention with each adapter's share of the prompts under the base plus its own low-rank changes.

    The base matrices project the image once for all adapters. An adapter's part of a key is the `right` factor's
    projection, `rank` numbers per image token; the `left` factor is applied to its queries instead. Values likewise.

    Args:
        base: The model's own parameters.
        delta: Low-rank changes of the matrices, and all other parameters, with a leading adapter axis.
    """
    w = cast(delta, x)
    prompts, tokens, hidden = x.shape
    count, size = len(whole(w["self.query.bias"])), hidden // heads
    rows = x.reshape(count, -1, hidden)

    def project(part: str, rows: Tensor) -> Tensor:
        change = low_rank(w[f"{part}.weight"])
        own: Tensor = (rows @ change.right.mT) @ change.left.mT
        return own + F.linear(rows, base[f"{part}.weight"]) + whole(w[f"{part}.bias"])[:, None]

    def of_image(part: str) -> tuple[Tensor, Tensor, Tensor]:
        """The base's projection of the image per head, the adapters' `right` one, and their `left` factor per head.

        The second is one product for all adapters, `[adapter, rank, image_token]`: a product per adapter with so few
        columns takes ten times as long.
        """
        shared = F.linear(image_tokens, base[f"{part}.weight"]).view(-1, heads, size).transpose(0, 1)
        change = low_rank(w[f"{part}.weight"])
        own = (change.right.flatten(0, 1) @ image_tokens.T).view(count, change.right.shape[1], -1)
        return shared, own, change.left.view(count, heads, size, change.left.shape[2])

    # Base keys: one product per head for all adapters, [head, adapter · row, image_token]. An adapter's change: one
    # product per adapter, [adapter, head · row, image_token]; its bias is one more column of the factors. One is summed
    # into the other: at this size memory is slower than the products.
    q = project("self.query", rows).view(count, -1, heads, size).transpose(1, 2) / math.sqrt(size)
    shared, own, left = of_image("self.key")
    left = torch.cat([left, whole(w["self.key.bias"]).view(count, heads, size, 1)], dim=3)
    own = F.pad(own, (0, 0, 0, 1), value=1.0)
    logits = ((q @ left).flatten(1, 2) @ own).view(*q.shape[:3], -1)
    by_head = q.transpose(0, 1).reshape(heads, -1, size) @ shared.mT
    logits += by_head.view(heads, count, q.shape[2], -1).transpose(0, 1)

    seen = logits.softmax(dim=-1)
    shared, own, left = of_image("self.value")
    by_head = seen.transpose(0, 1).reshape(heads, -1, len(image_tokens)) @ shared
    by_adapter = (seen.flatten(1, 2) @ own.mT).view(*q.shape[:3], -1) @ left.mT
    constant = whole(w["self.value.bias"]).view(count, heads, 1, size)
    context = by_adapter + by_head.view(heads, count, q.shape[2], size).transpose(0, 1) + constant
    context = context.transpose(1, 2).reshape(count, -1, hidden)
    out = rows + project("output.dense", context)
    scale, shift = (whole(w[f"output.LayerNorm.{part}"])[:, None] for part in ("weight", "bias"))
    out = F.layer_norm(out, (hidden,), eps=eps) * scale + shift
    per_prompt = logits.view(count, heads, prompts // count, tokens, -1).transpose(1, 2)
    return out.view(prompts, tokens, hidden), per_prompt.reshape(prompts, heads, tokens, -1)


def of_patches(
    logits: Mapping[int, Float[Tensor, "prompt head token image_token"]],
) -> dict[int, Float[Tensor, "prompt head token patch"]]:
    """Logits to the patches: without the first image token, which is global."""
    return {layer: seen[..., 1:] for layer, seen in logits.items()}


def _heads(x: Float[Tensor, "prompt token hidden"], heads: int) -> Float[Tensor, "prompt head token size"]:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _merge(x: Float[Tensor, "prompt head token size"]) -> Float[Tensor, "prompt token hidden"]:
    return x.transpose(1, 2).flatten(2)


def _linear(x: Tensor, weights: Mapping[str, Tensor], prefix: str) -> Tensor:
    return F.linear(x, weights[prefix + "weight"], weights[prefix + "bias"])


def _norm(x: Tensor, weights: Mapping[str, Tensor], prefix: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[prefix + "weight"], weights[prefix + "bias"], eps)
