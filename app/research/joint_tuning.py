"""The authors' tuning (paper, section 3.4): one set of parameters for all classes, on supports of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from app.method.backbone import Backbone, EncodedImage, TextTokens
from app.method.evidence import Evidence, patch_logits
from app.method.parameters import Parameters
from app.method.scores import LayerWeights, ScoreMap
from app.method.shot import BACKGROUND_WEIGHT, IGNORE
from app.method.tuning import LEARNING_RATE, WEIGHT_DECAY

Spans = Sequence[tuple[int, int]]


class JointTuning:
    """Joint tuning, step by step.

    Args:
        backbone: A loaded model; its parameters are only read.
        images: The supports, encoded.
        labels: Of each support, on the network's input; values are classes, 255 is ignored.
        text: Tokens of all prompts.
        spans: Per class the half-open range of its prompts; the background first.
        layers: Layers to tune and read.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        background_weight: Weight of a background pixel in the loss.
        supports_per_step: Supports of one optimiser step (the authors' 2).
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Sequence[EncodedImage],
        labels: Sequence[Int[Tensor, "size size"]],
        *,
        text: TextTokens,
        spans: Spans,
        layers: Sequence[int],
        learning_rate: float = LEARNING_RATE,
        weight_decay: float = WEIGHT_DECAY,
        background_weight: float = BACKGROUND_WEIGHT,
        supports_per_step: int = 2,
    ) -> None:
        self.backbone, self.images, self.labels = backbone, images, labels
        self.text, self.spans, self.layers = text, tuple(spans), tuple(layers)
        self.background_weight, self.supports_per_step = background_weight, supports_per_step
        self.parameters = backbone.trainable(layers, text).map(lambda tensor: tensor.requires_grad_(True))
        self._optimiser = torch.optim.AdamW(self.parameters.trained, lr=learning_rate, weight_decay=weight_decay)

    def epoch(self) -> Iterator[float]:
        """One pass over the supports, in order; yields the loss of each step."""
        for start in range(0, len(self.labels), self.supports_per_step):
            loss = self._loss(range(start, min(start + self.supports_per_step, len(self.labels))))
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            self._optimiser.step()
            yield loss.item()

    @torch.no_grad()
    def class_map(self, image: EncodedImage, text: TextTokens, spans: Spans) -> Float[Tensor, "class size size"]:
        """Class probabilities of an image under the tuned parameters, at the network's input size."""
        return class_map_of(self.backbone, image, text, spans, self.layers, self.parameters)

    @torch.no_grad()
    def evidence(self, image: EncodedImage, text: TextTokens, spans: Spans) -> Evidence:
        """Attention of an image's prompts under the tuned parameters."""
        return evidence_of(self.backbone, image, text, spans, self.layers, self.parameters)

    def mean_scores(self, evidence: Evidence) -> Float[Tensor, "class patch"]:
        """Class scores on the patch grid, the mean over layers."""
        return mean_scores(evidence, self.layers)

    def _loss(self, indices: Sequence[int]) -> Float[Tensor, ""]:
        """One weighted mean over the pixels of all supports of the step, not a mean of means."""
        maps = [
            class_map_of(self.backbone, self.images[index], self.text, self.spans, self.layers, self.parameters)
            for index in indices
        ]
        log_p = torch.stack(maps).clamp_min(1e-12).log()
        weight = torch.ones(len(self.spans))
        weight[0] = self.background_weight
        labels = torch.stack([self.labels[index] for index in indices]).to(log_p.device)
        return F.nll_loss(log_p, labels, weight=weight.to(log_p), ignore_index=IGNORE)


def class_map_of(
    backbone: Backbone,
    image: EncodedImage,
    text: TextTokens,
    spans: Spans,
    layers: Sequence[int],
    parameters: Parameters | None = None,
) -> Float[Tensor, "class size size"]:
    """Class probabilities of one image, all prompts under the base model or under one set of parameters."""
    scores = mean_scores(evidence_of(backbone, image, text, spans, layers, parameters), layers)
    return ScoreMap(scores, backbone.patch_grid_hw, align_corners=True).probabilities((backbone.input_size,) * 2)


def evidence_of(
    backbone: Backbone,
    image: EncodedImage,
    text: TextTokens,
    spans: Spans,
    layers: Sequence[int],
    parameters: Parameters | None = None,
) -> Evidence:
    """Attention of one image's prompts, all under the base model or under one set of parameters."""
    seen = backbone.attend(image, text, layers=layers, adapters=parameters.stacked if parameters else None)
    return Evidence(patch_logits(seen, text.attention_mask, layers), seen.match_score.float(), tuple(spans))


def mean_scores(evidence: Evidence, layers: Sequence[int]) -> Float[Tensor, "class patch"]:
    """Class scores on the patch grid, the mean over layers."""
    equal = torch.ones(len(evidence.spans), len(layers))
    # Divided after the sum, as the authors do: thirds are not exact.
    return evidence.class_scores(LayerWeights(tuple(layers), equal)) / len(layers)
