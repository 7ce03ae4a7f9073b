"""Compare the method with golden cases: outputs of the authors' code on small random BLIP models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

from app.backbones.blip import Blip
from app.errors import InvalidInputError
from app.method.backbone import EncodedImage, TextTokens
from app.method.crf import CrfParameters, conv_crf
from app.method.evidence import patch_logits
from app.method.frame import IMAGENET_MEAN, IMAGENET_STD
from app.method.infoscore import LayerStatistics, infoscore, prompt_shares
from app.method.scores import head_max, prompt_scores

from .joint_tuning import JointTuning, class_map_of


@dataclass(frozen=True)
class Row:
    """The largest error of one output, and how large it may be."""

    output: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """True if it is close enough; NaN isn't."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class GoldenCase:
    """A golden file, read: the model, the inputs, and the authors' outputs."""

    backbone: Blip
    text: TextTokens
    spans: tuple[tuple[int, int], ...]
    layers: tuple[int, ...]
    query: Tensor
    supports: Tensor
    labels: Tensor
    crf: CrfParameters
    learning_rate: float
    weight_decay: float
    background_weight: float
    epochs: int
    supports_per_step: int
    expected: dict[str, Tensor]


def read(file: Path) -> GoldenCase:
    """Read a golden case.

    Raises:
        InvalidInputError: If the file isn't one.
    """
    try:
        with safe_open(file, "pt") as stored:
            facts = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # not a dict
        model = BlipForImageTextRetrieval(BlipConfig.from_dict(json.loads(facts["blip_config"])))
        model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        crf = json.loads(facts["crf"])
        return GoldenCase(
            backbone=Blip(model, None, input_size=int(facts["image_size"]), match_on_padding=True),
            text=TextTokens(tensors["input_ids"].long(), tensors["attention_mask"].long()),
            spans=tuple((start, stop) for start, stop in json.loads(facts["spans"])),
            layers=tuple(json.loads(facts["layers"])),
            query=tensors["query"],
            supports=tensors["support"],
            labels=tensors["support_labels"].long(),
            crf=CrfParameters(
                iterations=int(facts["crf_iterations"]),
                filter_size=crf["filter_size"],
                blur=crf["blur"],
                message_weight=float(crf["weight"]),
                position_deviation=float(crf["pos_sdims"]),
                position_weight=float(crf["pos_compat"]),
                colour_deviation=float(crf["col_schan"]),
                colour_weight=float(crf["col_compat"]),
            ),
            learning_rate=float(facts["learning_rate"]),
            weight_decay=float(facts["weight_decay"]),
            background_weight=float(facts["background_weight"]),
            epochs=int(facts["tune_iterations"]),
            supports_per_step=int(facts["gradient_accumulation_images"]),
            expected={n.removeprefix("out."): t for n, t in tensors.items() if n.startswith("out.")},
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{file} is not a golden case ({type(error).__name__}: {error}).") from error


def check(file: Path) -> Iterator[Row]:
    """Run a golden case and yield the error of each output."""
    case = read(file)
    backbone, text, want = case.backbone, case.text, case.expected
    every_layer = range(backbone.layer_count)
    images = [_encode(backbone, image) for image in (*case.supports, case.query[0])]
    with torch.no_grad():
        seen = backbone.attend(images[-1], text, layers=every_layer)
        for layer in every_layer:
            yield _absolute(f"attention_head_max.{layer}", head_max(seen.logits[layer]), want, 1e-4)
        yield _absolute("itm_scores", seen.match_score, want, 1e-4)
        unary = class_map_of(backbone, images[-1], text, case.spans, case.layers)
    yield _absolute("unary", unary[None], want, 1e-4)
    yield _absolute("crf", conv_crf(unary, case.query[0], case.crf)[None], want, 1e-3)
    scores = infoscore(_statistics(case, images))
    yield _relative("infoscore", scores.infoscore, want, 1e-4)
    yield _relative("infoscore_entropy_ratio", scores.entropy_ratio, want, 1e-4)
    yield _relative("infoscore_cov", scores.cov, want, 1e-4)
    tuning = JointTuning(
        backbone,
        images[:-1],
        list(case.labels),
        text=text,
        spans=case.spans,
        layers=case.layers,
        learning_rate=case.learning_rate,
        weight_decay=case.weight_decay,
        background_weight=case.background_weight,
        supports_per_step=case.supports_per_step,
    )
    losses = [loss for _ in range(case.epochs) for loss in tuning.epoch()]
    yield _absolute("tune_losses", torch.tensor(losses), want, 1e-3)
    yield _absolute("tuned_unary", tuning.class_map(images[-1], text, case.spans)[None], want, 1e-3)
    query = tuning.parameters.delta[f"encoder.layer.{case.layers[0]}.crossattention.self.query.weight"]
    assert isinstance(query, Tensor)
    yield _absolute("tuned_query_weight", query.detach(), want, 1e-3)


def _encode(backbone: Blip, normalised: Tensor) -> EncodedImage:
    """Golden images come normalised; backbones take values in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return backbone.encode_image((normalised * std + mean)[None])[0]


@torch.no_grad()
def _statistics(case: GoldenCase, images: list[EncodedImage]) -> LayerStatistics:
    backbone, text = case.backbone, case.text
    size = (backbone.input_size, backbone.input_size)
    statistics = LayerStatistics.empty(backbone.layer_count, len(text.input_ids))
    for image in images:
        layers = range(backbone.layer_count)
        seen = backbone.attend(image, text, layers=layers)
        scores = [prompt_scores(logits, seen.match_score) for logits in patch_logits(seen, text.attention_mask, layers)]
        shares = [prompt_shares(layer, backbone.patch_grid_hw, size) for layer in scores]
        statistics = statistics.add(torch.stack(shares))
    return statistics


def _absolute(output: str, got: Tensor, want: dict[str, Tensor], allowed: float) -> Row:
    return Row(output, float((got - want[output]).abs().max()), allowed)


def _relative(output: str, got: Tensor, want: dict[str, Tensor], allowed: float) -> Row:
    return Row(f"{output} (relative)", float(((got - want[output]) / want[output]).abs().max()), allowed)
