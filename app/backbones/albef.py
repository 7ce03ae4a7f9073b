"""ALBEF (Li et al. 2021, https://arxiv.org/abs/2107.07651), from the checkpoint files that its authors published.

Neither the hub nor transformers has this model: a ViT-B/16, and a BERT whose first six layers read only the text and
whose last six (the fusion layers) also have cross-attention to the image. Layer 0 is the first fusion layer.
"""

import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertTokenizer

from app.errors import InvalidInputError
from app.method.backbone import EncodedImage, ImageTextScore, TextToImage, TextTokens
from app.method.parameters import Parameters

from .embedded import VOCABULARY
from .shared.adapted import layer_norm, linear
from .shared.blip_text import BlipText, of_patches
from .shared.clip_pixels import clip_normalise
from .shared.family import Family
from .shared.tokens import tokenize
from .shared.transformers_backbone import TransformersBackbone, encoded, revision_of

FAMILY = Family(
    name="albef",
    models="ALBEF",
    source="/models/ALBEF.pth",
    attention="cross-attention of the fusion layers",
    image_text_score="match head",
    tuned="cross-attention of the chosen layers",
    parameters_m=208.7,
)


# The authors pretrain at 256 pixels and fine-tune at 384 for retrieval and phrase grounding. Masks need the finer grid
# of 24 × 24 patches; pretrained position embeddings are interpolated to it, as the authors do.
_INPUT_SIZE = 384
# The authors' grounding reads this layer: the third fusion layer, the ninth of all.
_DEFAULT_LAYER = 2
# Width of an attention head in every ALBEF; a checkpoint does not store the number of heads.
_HEAD_SIZE = 64
_IMAGE_EPS, _TEXT_EPS = 1e-6, 1e-12

_IMAGE = "visual_encoder."
_POSITIONS = f"{_IMAGE}pos_embed"
_SUFFIXES = (".pth", ".pt", ".safetensors")


def load(source: str, *, device: str, dtype: str) -> "Albef":
    """Load `source`, a checkpoint file such as `ALBEF.pth` or a folder that holds one.

    The vocabulary is a `vocab.txt` beside it, or else that of bert-base-uncased, which ALBEF was trained with.

    Raises:
        InvalidInputError: If the file is missing, unreadable, or not a whole ALBEF.
    """
    if not source:
        raise InvalidInputError("ALBEF needs a checkpoint file: EXEMPLAR_BACKBONE=albef:/models/ALBEF.pth.")
    try:
        file = _checkpoint(Path(source))
        stored = _stored(file)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise InvalidInputError(
            f"No ALBEF checkpoint could be read from {source!r}: give ALBEF.pth, refcoco.pth or another file of the "
            f"authors, or a folder that holds just one ({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error
    layout = _Layout.of(stored)
    if missing := [name for name in layout.parameters() if name not in stored]:
        raise InvalidInputError(
            f"{source!r} is not a whole ALBEF, since {len(missing)} of its weights are missing, such as {missing[0]}: "
            "give a checkpoint of pretraining, retrieval or grounding, which have an image-text match head."
        )
    weights = {name: stored[name].float() for name in layout.parameters()}
    tokenizer = _tokenizer(file, words=len(weights[f"{layout.text}embeddings.word_embeddings.weight"]))
    return Albef(weights, tokenizer, name=f"albef:{Path(source).name}", device=device, dtype=getattr(torch, dtype))


class Albef(TransformersBackbone):
    """A `Backbone`; see `app.method.backbone`.

    Args:
        weights: All parameters in float32, named as in the authors' checkpoints.
        tokenizer: Tokenizer of its vocabulary.
        name: Name of the model in the service.
        input_size: Side of the square input in pixels; position embeddings are interpolated to it.
    """

    family = "albef"
    image_text_score: ImageTextScore = "match head"

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        tokenizer: Any,
        *,
        name: str = "albef",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        input_size: int = _INPUT_SIZE,
    ) -> None:
        self.name = name
        self.input_size = input_size
        self.revision = revision_of(weights.items(), "albef-1", str(input_size))
        self._layout = layout = _Layout.of(weights)
        side = input_size // weights[f"{_IMAGE}patch_embed.proj.weight"].shape[-1]
        self.patch_grid_hw = (side, side)
        own = {**weights, _POSITIONS: _interpolated(weights[_POSITIONS], side)}
        _fold_token_type(own, layout.text)
        # Copy: the checkpoint's tensors may be memory-mapped from its file.
        self._weights = {name: tensor.to(device, dtype, copy=True) for name, tensor in own.items()}
        self._tokenizer = tokenizer
        self._device, self._dtype = torch.device(device), dtype
        self.layer_count = layout.fusion_layers
        self.default_layers = (min(_DEFAULT_LAYER, self.layer_count - 1),)
        self._text = BlipText(
            self._weights,
            heads=weights["itm_head.weight"].shape[1] // _HEAD_SIZE,
            layer_count=layout.fusion_layers,
            eps=_TEXT_EPS,
            text_layers=layout.text_layers,
            prefix=layout.text,
        )
        self.feature_width = self._text.image_width

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(t.numel() * t.element_size() for t in self._weights.values())

    @torch.no_grad()
    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> list[EncodedImage]:
        """Run the image tower; the tokens are one CLS token and the patches."""
        pixels = clip_normalise(rgb).to(self._device, self._dtype)
        return encoded(_image_tower(pixels, self._weights, self._layout.blocks))

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
        """See `Backbone.attend`. The match head reads the first text token, as in training."""
        logits, hidden = self._text.attend(image.tokens, text, layers=layers, adapters=adapters, first_only=True)
        match = F.linear(hidden[:, 0], self._weights["itm_head.weight"], self._weights["itm_head.bias"])
        return TextToImage(of_patches(logits), match.float().softmax(dim=-1)[:, 1])

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """See `Backbone.trainable`."""
        return self._text.trainable(layers, text)


@dataclass(frozen=True)
class _Layout:
    """Number of layers of each kind in a checkpoint, and the prefix of its text tower.

    Attributes:
        text: Prefix of the text tower's parameter names; it contains `bert.` after pretraining, not after fine-tuning.
        blocks: Layers of the image tower.
        text_layers: Layers of the text tower without cross-attention.
        fusion_layers: Layers with cross-attention, which follow them.
    """

    text: str
    blocks: int
    text_layers: int
    fusion_layers: int

    @classmethod
    def of(cls, names: Collection[str]) -> "_Layout":
        """Count the layers in the parameter names; a layer kind that every ALBEF has counts at least 1."""
        wrapped = any(name.startswith("text_encoder.bert.") for name in names)
        text = "text_encoder.bert." if wrapped else "text_encoder."
        layer = f"{text}encoder.layer."
        fusion = max(1, _numbered([name for name in names if ".crossattention." in name], layer))
        text_layers = max(0, _numbered(names, layer) - fusion)
        return cls(text, max(1, _numbered(names, f"{_IMAGE}blocks.")), text_layers, fusion)

    def parameters(self) -> Iterator[str]:
        """Names of the parameters used: no momentum copies, queues, contrastive projections or language-model heads."""
        yield from (f"{_IMAGE}cls_token", _POSITIONS, f"{self.text}embeddings.token_type_embeddings.weight")
        yield from (f"{self.text}embeddings.{kind}_embeddings.weight" for kind in ("word", "position"))
        for module in self._modules():
            yield from (f"{module}.weight", f"{module}.bias")

    def _modules(self) -> Iterator[str]:
        yield from (f"{_IMAGE}patch_embed.proj", f"{_IMAGE}norm", f"{self.text}embeddings.LayerNorm", "itm_head")
        for block in range(self.blocks):
            for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
                yield f"{_IMAGE}blocks.{block}.{part}"
        attention = [f"self.{part}" for part in ("query", "key", "value")] + ["output.dense", "output.LayerNorm"]
        for layer in range(self.text_layers + self.fusion_layers):
            name = f"{self.text}encoder.layer.{layer}"
            yield from (f"{name}.{part}" for part in ("intermediate.dense", "output.dense", "output.LayerNorm"))
            for kind in ("attention", "crossattention") if layer >= self.text_layers else ("attention",):
                yield from (f"{name}.{kind}.{part}" for part in attention)


def _numbered(names: Collection[str], start: str) -> int:
    """Number of distinct indices after this prefix."""
    return len({name[len(start) :].partition(".")[0] for name in names if name.startswith(start)})


def _checkpoint(path: Path) -> Path:
    """The path if it is a file, or the only checkpoint in the folder."""
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(found) != 1:
        raise ValueError(f"it holds {len(found)} files that end in {', '.join(_SUFFIXES)}")
    return found[0]


def _stored(file: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, memory-mapped where possible; unpickling runs no code."""
    if file.suffix == ".safetensors":
        return load_file(file)
    stored = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    state = stored.get("model", stored) if isinstance(stored, Mapping) else stored
    if not isinstance(state, Mapping):
        raise ValueError(f"expected parameters by name, got {type(state).__name__}")
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _tokenizer(checkpoint: Path, *, words: int) -> Any:
    beside = checkpoint.parent / "vocab.txt"
    vocabulary = beside if beside.exists() else VOCABULARY
    tokenizer = BertTokenizer(vocab=str(vocabulary))
    if len(tokenizer) != words:
        raise InvalidInputError(
            f"{str(vocabulary)!r} has {len(tokenizer)} words where {str(checkpoint)!r} has {words}: put the vocab.txt "
            "that it was trained with beside it."
        )
    return tokenizer


def _interpolated(positions: Float[Tensor, "1 position width"], side: int) -> Float[Tensor, "1 image_token width"]:
    """Position embeddings interpolated to another square grid; the first, of the CLS token, is kept."""
    trained = round((positions.shape[1] - 1) ** 0.5)
    if trained == side:
        return positions
    grid = positions[:, 1:].mT.reshape(1, -1, trained, trained)  # [1, width, y, x]
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).mT], dim=1)


def _fold_token_type(weights: dict[str, Tensor], text: str) -> None:
    """Add the embedding of token type 0, the only type in a prompt, to every position embedding."""
    kind = weights.pop(f"{text}embeddings.token_type_embeddings.weight")[0]
    positions = f"{text}embeddings.position_embeddings.weight"
    weights[positions] = weights[positions] + kind


def _image_tower(
    pixels: Float[Tensor, "batch 3 size size"], w: Mapping[str, Tensor], blocks: int
) -> Float[Tensor, "batch image_token width"]:
    """A pre-norm vision transformer (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929)."""
    patch = w[f"{_IMAGE}patch_embed.proj.weight"]
    patches = F.conv2d(pixels, patch, w[f"{_IMAGE}patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).mT
    x = torch.cat([w[f"{_IMAGE}cls_token"].expand(len(pixels), -1, -1), patches], dim=1) + w[_POSITIONS]
    for block in range(blocks):
        name = f"{_IMAGE}blocks.{block}"
        qkv = linear(layer_norm(x, w, f"{name}.norm1", {}, eps=_IMAGE_EPS), w, f"{name}.attn.qkv", {})
        # [batch, token, 3, head, size] → [3, batch, head, token, size]
        q, k, v = qkv.view(*x.shape[:2], 3, -1, _HEAD_SIZE).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(context, w, f"{name}.attn.proj", {})
        inner = linear(layer_norm(x, w, f"{name}.norm2", {}, eps=_IMAGE_EPS), w, f"{name}.mlp.fc1", {})
        x = x + linear(F.gelu(inner), w, f"{name}.mlp.fc2", {})
    return layer_norm(x, w, f"{_IMAGE}norm", {}, eps=_IMAGE_EPS)
