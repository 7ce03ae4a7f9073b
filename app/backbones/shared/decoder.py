"""Backbone over a decoder language model that reads the image as tokens: shared by LLaVA, SmolVLM and Qwen.

The method reads the text→image block of the causal self-attention: a prompt's words come after the
image, so they attend to all of it. The prefix before the words is the same for every prompt and under every adapter. It
runs once per photo, and its keys and values are the photo's image tokens, which all prompts share. An adapter changes
the projections of the prompt's own tokens (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685) and their
embeddings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from app.method.backbone import EncodedImage, ImageTextScore, TextToImage, TextTokens
from app.method.parameters import Change, LowRank, Parameters, TokenRows
from app.method.prompts import phrase

from .adapted import check_share, delta_of, low_rank, replace_rows, token_copies
from .family import Family
from .transformers_backbone import TransformersBackbone, encoded, revision_of

# Rank of an adapter's change of one projection.
_RANK = 8
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

# First words of an answer; vocabularies have them with and without a leading space.
_YES = ("yes", "Yes", " yes", " Yes")
_NO = ("no", "No", " no", " No")

# Name of the attention function below in the registry of transformers.
_ATTENTION = "exemplar_text_to_image"


@dataclass(frozen=True)
class Layout:
    """The prefix before a prompt's words, and the places of the patches in it.

    Attributes:
        token_ids: All tokens before the words, with a placeholder for each image token.
        placeholders: Places of the image tokens, in the order in which the image tower gives them.
        patches: Places of the patches, row by row of the grid; image tokens outside the grid are in `placeholders`
            only.
        positions: Rotary positions, one row per axis of the model's positions.
        following: Rotary position of the first word.
    """

    token_ids: Int[Tensor, "prefix"]
    placeholders: Int[Tensor, "image"]
    patches: Int[Tensor, "patch"]
    positions: Int[Tensor, "axis prefix"]
    following: int


@dataclass(frozen=True)
class Parts:
    """Parts of one family's model that `Decoder` runs.

    Attributes:
        family: The family.
        language_model: The decoder's layers, without the head.
        head: Maps hidden states to vocabulary logits.
        embed_image: Maps a normalised input to image tokens as the language model takes them.
        layout: The prefix before a prompt's words.
        after_question: Text between a question and the model's answer.
        input_size: Side of the square input in pixels.
        patch_grid_hw: Rows and columns of patches.
        mean: Mean of the image tower's input, per channel.
        deviation: Deviation of the image tower's input, per channel.
    """

    family: Family
    language_model: nn.Module
    head: nn.Linear
    embed_image: Callable[[Float[Tensor, "batch 3 size size"]], Float[Tensor, "batch image hidden"]]
    layout: Layout
    after_question: str
    input_size: int
    patch_grid_hw: tuple[int, int]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


@dataclass
class _Pass:
    """One run of the decoder: inputs and outputs of its attention.

    Attributes:
        prefix: Keys and values of each layer, `[1, head, prefix, size]`; None while the prefix itself runs.
        wanted: Layers whose logits are recorded.
        delta: Changed parameters, with a leading adapter axis.
        keys_and_values: Output while the prefix runs: its keys and values by layer.
        logits: Output otherwise: logits of the wanted layers to the whole prefix.
    """

    prefix: Sequence[tuple[Tensor, Tensor]] | None
    wanted: frozenset[int] = frozenset()
    delta: Mapping[str, Change] = field(default_factory=dict)
    keys_and_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)


# The current run. The layers of transformers cannot pass it on as an argument; it is local to the thread and call.
_PASS: ContextVar[_Pass] = ContextVar("decoder_pass")


def layout_of(
    tokenizer: Any, before: str, image_token_id: int, order: Int[Tensor, "patch"], *, axes: int = 1
) -> Layout:
    """Layout of a prefix that contains the placeholder once for each image token.

    Args:
        tokenizer: The model's tokenizer.
        before: Text before the words.
        image_token_id: Id of the placeholder.
        order: Index of each patch among the image tokens, row by row of the grid.
        axes: Number of rotary axes; each counts the tokens.
    """
    ids = torch.tensor(tokenizer(before, add_special_tokens=True)["input_ids"])
    placeholders = (ids == image_token_id).nonzero().flatten()
    positions = torch.arange(len(ids)).expand(axes, -1)
    return Layout(ids, placeholders, placeholders[order], positions, following=len(ids))


def tiled(
    pixels: Float[Tensor, "batch 3 size size"], count: int
) -> tuple[Float[Tensor, "batch tile 3 part part"], Float[Tensor, "batch 1 3 part part"]]:
    """Cut images into `count` × `count` tiles, row by row, and shrink the whole to the size of a tile."""
    part = pixels.shape[2] // count
    # [batch, 3, tile y, tile x, y, x] → [batch, tile y, tile x, 3, y, x]
    tiles = pixels.unfold(2, part, part).unfold(3, part, part).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    return tiles, F.avg_pool2d(pixels, count)[:, None]


class Decoder(TransformersBackbone):
    """`Backbone` over any decoder vision-language model; see `app.method.backbone`.

    Args:
        model: The whole model, in float32 or in its checkpoint's format.
        parts: The parts of it that are run.
        tokenizer: Its tokenizer.
        name: Name of the model in the service.
        device: A torch device.
        dtype: Number format of the network.
    """

    image_text_score: ImageTextScore = "yes/no question"

    def __init__(
        self, model: nn.Module, parts: Parts, tokenizer: Any, *, name: str, device: str, dtype: torch.dtype
    ) -> None:
        self.family, self.name = parts.family.name, name
        self.input_size, self.patch_grid_hw = parts.input_size, parts.patch_grid_hw
        self.revision = revision_of(model.state_dict().items(), f"{self.family}-1", str(parts.input_size))
        self._device, self._dtype = torch.device(device), dtype
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self._device, dtype)
        # Buffers keep their format: in bfloat16, rotary frequencies would be 0.7 rad off after 600 tokens.
        self._model = model.to(self._device).eval().requires_grad_(False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._parts, self._tokenizer = parts, tokenizer
        layers = _layers(parts.language_model)
        self.layer_count = len(layers)
        # Not measured: the middle, where decoders are known to attend to the image most; POST /layers/rank improves it.
        self.default_layers = tuple(sorted({max(0, self.layer_count // 2 - 1), self.layer_count // 2}))
        self._embeddings: Tensor = parts.language_model.get_input_embeddings().weight  # type: ignore[operator]  # of transformers
        self.feature_width = self._embeddings.shape[1]
        self._answers = [answer.to(self._device) for answer in _answers(tokenizer)]
        parts.language_model.config._attn_implementation = _ATTENTION  # type: ignore[union-attr]  # of transformers
        for name, linear in self._projections(range(self.layer_count)):
            linear.register_forward_hook(_changed(name))

    @torch.no_grad()
    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> list[EncodedImage]:
        """Run the prefix; an image token concatenates its input and its keys and values of every layer."""
        layout = self._parts.layout
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (self._parts.mean, self._parts.deviation))
        pixels = ((rgb - mean) / deviation).to(self._device, self._dtype)
        image = self._parts.embed_image(pixels)
        x = self._embeddings[layout.token_ids.to(self._device)].repeat(len(rgb), 1, 1)
        x[:, layout.placeholders] = image.to(x)
        with _running(_Pass(prefix=None)) as run:
            self._decode(x, layout.positions)
        # Keys and values: [batch, head, prefix, size] → [batch, prefix, head · size].
        rows = [tensor.transpose(1, 2).flatten(2) for layer in sorted(run.keys_and_values)
                for tensor in run.keys_and_values[layer]]  # fmt: skip
        return encoded(torch.cat([x, *rows], dim=2))

    def patch_features(self, image: EncodedImage) -> Float[Tensor, "patch feature"]:
        """The patches' inputs to the language model."""
        return image.tokens[self._parts.layout.patches, : self.feature_width]

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Tokenise the words' prompts and yes/no questions."""
        prompts = self._tokens([phrase(word) for word in words])
        questions = self._tokens([
            f"Is there any {word} in this image? Answer yes or no.{self._parts.after_question}" for word in words
        ])  # fmt: skip
        return TextTokens(prompts.input_ids, prompts.attention_mask, questions=questions)

    def attend(
        self,
        image: EncodedImage,
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None = None,
    ) -> TextToImage:
        """See `Backbone.attend`. The match score is the probability of the answer yes against no."""
        check_share(adapters, len(text.input_ids))
        prefix = self._prefix(image.tokens)
        _, logits = self._read(prefix, text, frozenset(layers), adapters)
        patches = self._parts.layout.patches.to(self._device)
        match = torch.ones(len(text.input_ids), device=self._device)
        if text.questions is not None:
            last, _ = self._read(prefix, text.questions, frozenset(), adapters)
            match = self._probability_of_yes(last)
        return TextToImage({layer: seen[..., patches] for layer, seen in logits.items()}, match)

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """Low-rank changes of the layers' projections, zero at first, and the embedding rows of the tokens used."""
        generator = torch.Generator().manual_seed(0)
        delta: dict[str, Change] = {}
        for name, linear in self._projections(layers):
            right = torch.randn(_RANK, linear.in_features, generator=generator) / linear.in_features**0.5
            left = torch.zeros(linear.out_features, _RANK, device=self._device)
            delta[f"{name}.weight"] = LowRank(left, right.to(self._device))
        return Parameters(delta, TokenRows(*token_copies(self._embeddings, text.input_ids)))

    def _projections(self, layers: Sequence[int]) -> Iterator[tuple[str, nn.Linear]]:
        """Names and modules of the four attention projections of the layers."""
        for layer in layers:
            attention = _layers(self._parts.language_model)[layer].self_attn
            for part in _PROJECTIONS:
                yield f"layers.{layer}.self_attn.{part}", getattr(attention, part)

    def _tokens(self, texts: Sequence[str]) -> TextTokens:
        # Causal attention: tokens never attend to padding on their right.
        batch = self._tokenizer(
            list(texts), add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
        )
        return TextTokens(batch["input_ids"].to(self._device), batch["attention_mask"].to(self._device))

    def _prefix(self, image_tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, `[1, head, prefix, size]`, read from the image tokens."""
        config: Any = self._parts.language_model.config
        rows = image_tokens[:, self.feature_width :]
        heads = rows.view(len(rows), self.layer_count, 2, config.num_key_value_heads, -1)
        # [prefix, layer, key or value, head, size] → [layer, key or value, 1, head, prefix, size]
        by_layer = heads.permute(1, 2, 3, 0, 4)[:, :, None]
        return [(layer[0], layer[1]) for layer in by_layer]

    def _read(
        self, prefix: list[tuple[Tensor, Tensor]], text: TextTokens, wanted: frozenset[int], own: Parameters | None
    ) -> tuple[Float[Tensor, "prompt hidden"], dict[int, Float[Tensor, "prompt head token prefix"]]]:
        """Run texts after the prefix; returns the last token's hidden state of each, and the wanted layers' logits."""
        x = self._embeddings[text.input_ids]
        if own:
            x = replace_rows(x, text.input_ids, own.tokens)
        layout = self._parts.layout
        positions = layout.following + torch.arange(x.shape[1]).expand(len(layout.positions), -1)
        with _running(_Pass(prefix=prefix, wanted=wanted, delta=delta_of(own))) as run:
            hidden = self._decode(x, positions)
        last = text.attention_mask.sum(dim=1) - 1
        return hidden[torch.arange(len(x), device=x.device), last], run.logits

    def _decode(self, x: Float[Tensor, "prompt token hidden"], positions: Int[Tensor, "axis token"]) -> Tensor:
        at = positions.to(self._device)
        # With one axis the shape is [1, token]; with several, [axis, batch, token].
        at = at if len(at) == 1 else at[:, None].expand(-1, len(x), -1)
        hidden: Tensor = self._parts.language_model(inputs_embeds=x, position_ids=at, use_cache=False).last_hidden_state
        return hidden

    def _probability_of_yes(self, hidden: Float[Tensor, "prompt hidden"]) -> Float[Tensor, "prompt"]:
        """Probability of yes among the answers yes and no."""
        head = self._parts.head
        yes, no = (
            F.linear(hidden, head.weight[answer], None if head.bias is None else head.bias[answer]).float().logsumexp(1)
            for answer in self._answers
        )
        return torch.sigmoid(yes - no)


def text_to_image_attention(
    module: nn.Module,
    query: Float[Tensor, "prompt head token size"],
    key: Float[Tensor, "prompt shared_head token size"],
    value: Float[Tensor, "prompt shared_head token size"],
    attention_mask: Tensor | None,
    scaling: float,
    **unused: object,
) -> tuple[Float[Tensor, "prompt token head size"], None]:
    """Causal self-attention after a prefix that all prompts share, without a copy of its keys per prompt.

    The signature is that of attention functions in transformers; the current run is in `_PASS`.
    """
    run, layer = _PASS.get(), int(module.layer_idx)  # type: ignore[arg-type]  # of transformers
    if run.prefix is None:
        run.keys_and_values[layer] = (key, value)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    prompts, heads, tokens, size = query.shape
    prefix_key, prefix_value = (rows[0] for rows in run.prefix[layer])
    # [prompt, shared_head, group · token, size]: query heads that share keys are adjacent.
    q = (query * scaling).reshape(prompts, key.shape[1], -1, size)
    # [shared_head, prompt · group · token, …]: one product per head for all prompts; torch would copy a prefix with a
    # prompt axis of 1 for each of them.
    by_head = key.shape[1], prompts, q.shape[2], -1
    to_prefix = (q.transpose(0, 1).flatten(1, 2) @ prefix_key.mT).view(by_head).transpose(0, 1)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)
    to_own = (q @ key.mT).view(prompts, heads, tokens, tokens).masked_fill(later, float("-inf"))
    if layer in run.wanted:
        run.logits[layer] = to_prefix.reshape(prompts, heads, tokens, -1)
    both = torch.cat([to_prefix, to_own.view(prompts, key.shape[1], -1, tokens)], dim=-1)
    seen = both.float().softmax(dim=-1).to(value)
    of_prefix = seen[..., :-tokens].transpose(0, 1).flatten(1, 2) @ prefix_value
    out = of_prefix.view(by_head).transpose(0, 1) + seen[..., -tokens:] @ value
    return out.reshape(prompts, heads, tokens, size).transpose(1, 2), None


AttentionInterface.register(_ATTENTION, text_to_image_attention)


@contextmanager
def _running(run: _Pass) -> Iterator[_Pass]:
    token = _PASS.set(run)
    try:
        yield run
    finally:
        _PASS.reset(token)


def _changed(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor | None]:
    """Forward hook that adds each adapter's low-rank change to its share of a projection's output."""

    def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        change = _PASS.get().delta.get(f"{name}.weight")
        if change is None:
            return None
        left, right = (factor.to(output) for factor in low_rank(change))
        rows = inputs[0].reshape(len(left), -1, inputs[0].shape[-1])
        return output + ((rows @ right.mT) @ left.mT).view_as(output)

    return add


def _layers(language_model: nn.Module) -> Any:
    return language_model.layers


def _answers(tokenizer: Any) -> tuple[Int[Tensor, "yes"], Int[Tensor, "no"]]:
    """First tokens of the answers yes and no, without the tokens that both may begin with."""
    yes, no = (
        {tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words} - {tokenizer.unk_token_id}
        for words in (_YES, _NO)
    )
    return torch.tensor(sorted(yes - no)), torch.tensor(sorted(no - yes))
