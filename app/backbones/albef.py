"""ALBEF (Li et al. 2021, https://arxiv.org/abs/2107.07651), from the checkpoint files that its authors published.

No hub and no class of transformers has it: ViT-B/16, and a BERT whose first six layers read the text alone and whose
last six also look at the image. Layers are counted from the first of those six.
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
from .shared.blip_text import BlipText, encoded, of_patches, revision_of, tokenize
from .shared.clip_pixels import clip_normalise
from .shared.family import Family
from .shared.transformers_backbone import TransformersBackbone

FAMILY = Family(
    name="albef",
    models="ALBEF",
    source="/models/ALBEF.pth",
    attention="cross-attention of the fusion layers",
    image_text_score="match head",
    tuned="cross-attention of the chosen layers",
    parameters_m=208.7,
)


# The authors pretrain at 256 pixels and fine-tune at 384, for retrieval and for grounding phrases in the image: a mask
# needs the finer grid, of 24 × 24 patches. Pretrained positions are interpolated to it, as they do.
_INPUT_SIZE = 384
# Where the authors' own grounding reads its maps: the third fusion layer, the ninth of all.
_DEFAULT_LAYER = 2
# A checkpoint doesn't say how many heads it has: in all of ALBEF, each has 64 numbers.
_HEAD_SIZE = 64
_IMAGE_EPS, _TEXT_EPS = 1e-6, 1e-12

_IMAGE = "visual_encoder."
_POSITIONS = f"{_IMAGE}pos_embed"
_SUFFIXES = (".pth", ".pt", ".safetensors")


def load(source: str, *, device: str, dtype: str) -> "Albef":
    """Load `source`, a checkpoint file such as `ALBEF.pth` or a folder that holds one.

    The words are those of a `vocab.txt` beside it, or else of bert-base-uncased, which ALBEF was trained with.

    Raises:
        InvalidInputError: If it is not there or not such a model.
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
        tokenizer: Of its vocabulary.
        name: What the service calls it.
        input_size: Side of the square input; position embeddings are interpolated to it.
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
        # Copies, since a checkpoint's tensors may still lie in its file.
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
        """One CLS token and the patch tokens."""
        pixels = clip_normalise(rgb).to(self._device, self._dtype)
        return encoded(_image_tower(pixels, self._weights, self._layout.blocks))

    def patch_features(self, image: EncodedImage) -> Float[Tensor, "patch width"]:
        """The patch tokens themselves."""
        return image.tokens[1:]

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Prompts to word pieces of BERT's vocabulary."""
        return tokenize(self._tokenizer, words, self._device)

    def attend(
        self,
        image: EncodedImage,
        text: TextTokens,
        *,
        layers: Sequence[int],
        adapters: Parameters | None = None,
    ) -> TextToImage:
        """See `Backbone.attend`. The match head reads the first token, as it was trained."""
        logits, hidden = self._text.attend(image.tokens, text, layers=layers, adapters=adapters)
        match = F.linear(hidden[:, 0], self._weights["itm_head.weight"], self._weights["itm_head.bias"])
        return TextToImage(of_patches(logits), match.float().softmax(dim=-1)[:, 1])

    def trainable(self, layers: Sequence[int], text: TextTokens) -> Parameters:
        """See `Backbone.trainable`."""
        return self._text.trainable(layers, text)


@dataclass(frozen=True)
class _Layout:
    """How many layers a checkpoint has of each kind.

    Attributes:
        text: What names of the text tower start with: pretraining wraps it into a `bert`, fine-tuning does not.
        blocks: Layers of the image tower.
        text_layers: Layers of the text tower that see text only.
        fusion_layers: Those after them, with cross-attention.
    """

    text: str
    blocks: int
    text_layers: int
    fusion_layers: int

    @classmethod
    def of(cls, names: Collection[str]) -> "_Layout":
        """Read it from the names of the parameters; at least one layer of a kind that every ALBEF has."""
        wrapped = any(name.startswith("text_encoder.bert.") for name in names)
        text = "text_encoder.bert." if wrapped else "text_encoder."
        layer = f"{text}encoder.layer."
        fusion = max(1, _numbered([name for name in names if ".crossattention." in name], layer))
        text_layers = max(0, _numbered(names, layer) - fusion)
        return cls(text, max(1, _numbered(names, f"{_IMAGE}blocks.")), text_layers, fusion)

    def parameters(self) -> Iterator[str]:
        """Names of all that is used: no momentum copies, queues, projections to the common space or language heads."""
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
    """How many numbers follow this start of a name."""
    return len({name[len(start) :].partition(".")[0] for name in names if name.startswith(start)})


def _checkpoint(path: Path) -> Path:
    """The file itself, or the only one in a folder."""
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(found) != 1:
        raise ValueError(f"it holds {len(found)} files that end in {', '.join(_SUFFIXES)}")
    return found[0]


def _stored(file: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint; nothing in it is run, and only what is used leaves the disk."""
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
    """Position embeddings of a square grid for another one; that of the CLS token, the first, stays."""
    trained = round((positions.shape[1] - 1) ** 0.5)
    if trained == side:
        return positions
    grid = positions[:, 1:].mT.reshape(1, -1, trained, trained)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).mT], dim=1)


def _fold_token_type(weights: dict[str, Tensor], text: str) -> None:
    """A prompt has one type of token: its embedding becomes part of every position."""
    kind = weights.pop(f"{text}embeddings.token_type_embeddings.weight")[0]
    positions = f"{text}embeddings.position_embeddings.weight"
    weights[positions] = weights[positions] + kind


def _image_tower(
    pixels: Float[Tensor, "batch 3 size size"], w: Mapping[str, Tensor], blocks: int
) -> Float[Tensor, "batch image_token width"]:
    """A vision transformer (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929), norms first."""
    patch = w[f"{_IMAGE}patch_embed.proj.weight"]
    patches = F.conv2d(pixels, patch, w[f"{_IMAGE}patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).mT
    x = torch.cat([w[f"{_IMAGE}cls_token"].expand(len(pixels), -1, -1), patches], dim=1) + w[_POSITIONS]
    for block in range(blocks):
        name = f"{_IMAGE}blocks.{block}"
        qkv = linear(layer_norm(x, w, f"{name}.norm1", {}, eps=_IMAGE_EPS), w, f"{name}.attn.qkv", {})
        q, k, v = qkv.view(*x.shape[:2], 3, -1, _HEAD_SIZE).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(context, w, f"{name}.attn.proj", {})
        inner = linear(layer_norm(x, w, f"{name}.norm2", {}, eps=_IMAGE_EPS), w, f"{name}.mlp.fc1", {})
        x = x + linear(F.gelu(inner), w, f"{name}.mlp.fc2", {})
    return layer_norm(x, w, f"{_IMAGE}norm", {}, eps=_IMAGE_EPS)
