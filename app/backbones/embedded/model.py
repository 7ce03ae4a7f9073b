"""The embedded model as a backbone: image tokens, text tower, match head, mask decoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from torch.nn import functional as F

from app.errors import InvalidInputError
from app.method.backbone import EncodedImage, ImageTextScore, TextToImage, TextTokens
from app.method.frame import Frame, stretch
from app.method.parameters import Parameters
from app.method.prompts import phrase

from ..shared.adapted import Int8Rows
from ..shared.blip_text import BlipText, of_patches
from ..shared.family import Family
from ..shared.tokens import MAX_TOKENS
from ..shared.transformers_backbone import TransformersBackbone, revision_of
from . import efficientnet
from .mask_decoder import PREFIX, MaskDecoder
from .presence import Presence, kind_facts

FAMILY = Family(
    name="embedded",
    models="EfficientNet-Lite2 and MiniLM, shipped with the service",
    source="",
    attention="cross-attention",
    image_text_score="match head",
    tuned="cross-attention of the chosen layers",
    parameters_m=30.9,
)


WEIGHTS = Path(__file__).parent / "weights" / "embedded.safetensors"
PRESENCE = Path(__file__).parent / "weights" / "presence.safetensors"
VOCABULARY = Path(__file__).parent / "weights" / "vocab.txt"

_INPUT_SIZE = 384
_GRID = 24
HEADS = 12
TEXT_EPS = 1e-12
# Length of the semantic part relative to a unit sentence embedding, as in training.
_SEMANTIC_SCALE = 19.6
_FEATURE_LIMIT = 6.0
_SCALE = ".scale"
# A third of the weights, of which a request reads a few rows.
_WORDS = "embeddings.word_embeddings.weight"
# Their mean is best when all names are requested, and good when only the present ones are (docs/quality.md).
DEFAULT_LAYERS = (0, 1)


def load(source: str, *, device: str, dtype: str) -> "Embedded":
    """Load the weights in this package, or a file of the same form if `source` names one.

    Raises:
        InvalidInputError: If that file is missing, unreadable or incomplete.
    """
    weights = Path(source) if source else WEIGHTS
    try:
        missing = sorted(_names(WEIGHTS) - _names(weights))
        if not missing:
            return Embedded(weights, device=device, dtype=getattr(torch, dtype))
    except (OSError, SafetensorError) as error:
        raise InvalidInputError(
            f"No embedded model could be read from {str(weights)!r} ({type(error).__name__}: {error}): "
            "set EXEMPLAR_BACKBONE=embedded for the weights that ship with the service."
        ) from error
    raise InvalidInputError(
        f"{str(weights)!r} is not a whole embedded model, since {len(missing)} of its weights are missing, such as "
        f"{missing[0]}: set EXEMPLAR_BACKBONE=embedded for the weights that ship with the service."
    )


def _names(file: Path) -> set[str]:
    """Names of the weights that a file must have: all but the scales of int8 matrices and the mask decoder."""
    with safe_open(file, framework="pt") as stored:
        names: list[str] = stored.keys()
    return {name for name in names if not name.endswith(_SCALE) and not name.startswith(PREFIX)}


class Embedded(TransformersBackbone):
    """`Backbone` of the embedded model; see `app.method.backbone`.

    Args:
        weights: A file of the form of `WEIGHTS`; it may lack the mask decoder.
        device: A torch device.
        dtype: Number format of the network.
    """

    family = "embedded"
    image_text_score: ImageTextScore = "match head"
    default_layers = DEFAULT_LAYERS
    patch_grid_hw = (_GRID, _GRID)
    input_size = _INPUT_SIZE

    def __init__(self, weights: Path, *, device: str, dtype: torch.dtype) -> None:
        in_file = load_file(weights)
        stored = dequantised(in_file)
        self.name = "embedded" if weights == WEIGHTS else f"embedded:{weights.name}"
        self.revision = revision_of(stored.items(), "embedded-1")
        self._device, self._dtype = torch.device(device), dtype
        words = _int8_rows(in_file, _WORDS, device=self._device, dtype=dtype)
        if words:
            del stored[_WORDS]
        tower = {
            name.removeprefix("image_tower."): t.float()
            for name, t in stored.items()
            if name.startswith("image_tower.")
        }
        self._tower = efficientnet.build({name: t.to(device) for name, t in tower.items()}, dtype)
        # The mask decoder is small and computes with probabilities: always float32.
        decoder = {
            name.removeprefix(PREFIX): t.to(device, torch.float32)
            for name, t in stored.items()
            if name.startswith(PREFIX)
        }
        self._weights = {
            # The two statistics stay float32: bfloat16 has too few digits for them.
            name: t.to(device, torch.float32 if name in ("mu", "sd") else dtype)
            for name, t in stored.items()
            if not name.startswith(("image_tower.", PREFIX))
        }
        self.mask_decoder = MaskDecoder(decoder, grid_hw=self.patch_grid_hw) if decoder else None
        self.presence = Presence.load(PRESENCE, decoder, revision=self.revision) if decoder else None
        # Members of each kind among ImageNet's classes; `training.presence` sets its own before there is such a file.
        self.kinds = self.presence.known.members if self.presence else None
        self.layer_count = sum(name.endswith(".crossattention.self.query.weight") for name in self._weights)
        self._text = BlipText(self._weights, heads=HEADS, layer_count=self.layer_count, eps=TEXT_EPS, words=words)
        self.feature_width = self._text.image_width
        # That of transformers, which takes a second to import.
        self._tokenizer = BertWordPieceTokenizer(str(VOCABULARY), lowercase=True)
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        tower = (tensor for _, tensor in self._tower.tensors())
        decoder = self.mask_decoder.memory_bytes if self.mask_decoder else 0
        words = self._text.words.nbytes if self._text.words else 0
        return sum(tensor.nbytes for tensor in [*self._weights.values(), *tower]) + words + decoder

    def preprocess(self, photo: UInt8[np.ndarray, "height width 3"]) -> tuple[Float[Tensor, "3 size size"], Frame]:
        """Stretch the whole photo to the square, as in training."""
        return stretch(photo, _INPUT_SIZE)

    @torch.no_grad()
    def encode_image(self, rgb: Float[Tensor, "batch 3 size size"]) -> list[EncodedImage]:
        """Run the image tower; tokens are one global token and 24 × 24 patches, fine features its map at 1/8."""
        edges, fine, deep = self._tower(rgb.to(self._device))
        tokens, classes = image_tokens(self._weights, fine, deep)
        kinds = [None if self.kinds is None else kind_facts(self.kinds, each) for each in classes]
        # The tower works in channels-last memory layout; the mask decoder expects rows.
        return [EncodedImage(*each) for each in zip(tokens, edges.contiguous(), kinds, strict=True)]

    def patch_features(self, image: EncodedImage) -> Float[Tensor, "patch width"]:
        """The patch tokens."""
        return image.tokens[1:]

    def tokenize(self, words: Sequence[str]) -> TextTokens:
        """Tokenise the words' prompts into word pieces of MiniLM's vocabulary."""
        encoded = self._tokenizer.encode_batch([phrase(word) for word in words])
        ids, mask = (torch.tensor([getattr(one, part) for one in encoded]) for part in ("ids", "attention_mask"))
        return TextTokens(ids.to(self._device), mask.to(self._device))

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


def image_tokens(
    weights: Mapping[str, Tensor], fine: Float[Tensor, "batch 120 y x"], deep: Float[Tensor, "batch 352 y x"]
) -> tuple[Float[Tensor, "batch image_token width"], Float[Tensor, "batch image_token imagenet_class"]]:
    """Image tokens by two maps of the image tower, and probabilities of ImageNet's classes; the global token first."""
    w = weights
    # [batch, channel, y, x] → [batch, patch, channel]
    fine, deep = fine.flatten(2).transpose(1, 2), deep.flatten(2).transpose(1, 2)
    # Visual part: both maps, standardised.
    head = F.relu6(F.linear(deep, w["head_w"], w["head_b"]))
    features = torch.cat([head, fine], dim=-1).float()
    features = ((features - w["mu"]) / w["sd"]).clamp(-_FEATURE_LIMIT, _FEATURE_LIMIT).to(head.dtype)
    patches = F.linear(features, w["vis.proj.weight"], w["vis.proj.bias"])
    overall = F.linear(2 * features.mean(dim=1, keepdim=True), w["vis.gproj.weight"], w["vis.gproj.bias"])
    tokens = torch.cat([overall, patches], dim=1)
    # Semantic part (ConSE, Norouzi et al. 2014): name embeddings of the ImageNet classes, weighted per patch.
    logits = F.linear(head, w["fc_w"], w["fc_b"]).float()
    classes = torch.cat([logits.mean(dim=1, keepdim=True), logits], dim=1).softmax(dim=-1)
    meaning = _SEMANTIC_SCALE * (classes.to(head.dtype) @ w["E"])
    tokens = tokens + F.linear(meaning, w["vis.sem.weight"], w["vis.sem.bias"])
    tokens = _norm(tokens, w, "vis.ln")
    inner = F.linear(_norm(tokens, w, "vis.mlp.0"), w["vis.mlp.1.weight"], w["vis.mlp.1.bias"])
    return tokens + F.linear(F.gelu(inner), w["vis.mlp.3.weight"], w["vis.mlp.3.bias"]), classes


def dequantised(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with int8 matrices replaced by their values: weight × `.scale`, a tensor with one scale per row.

    All are copies: a view of one of them would keep the whole file mapped.
    """
    scaled = {name.removesuffix(_SCALE) for name in stored if name.endswith(_SCALE)}
    return {
        name: tensor.float() * stored[name + _SCALE].float()[:, None] if name in scaled else tensor.clone()
        for name, tensor in stored.items()
        if not name.endswith(_SCALE)
    }


def _int8_rows(stored: Mapping[str, Tensor], name: str, *, device: torch.device, dtype: torch.dtype) -> Int8Rows | None:
    """A matrix as it is stored; None if it is not stored as int8."""
    if name + _SCALE not in stored:
        return None
    values, scale = (tensor.to(device, copy=True) for tensor in (stored[name], stored[name + _SCALE]))
    return Int8Rows(values, scale, dtype)


def _norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
