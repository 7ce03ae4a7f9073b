"""Each class reads its own layers, as loud as its adapter says."""

from __future__ import annotations

import math

import torch
from app.method.class_map import upsample
from app.method.ensemble import LayerWeights, layer_weights, weighted_scores

from app.backbones.blip import Blip
from app.method.evidence import Evidence
from tests.models import random_adapter


def test_a_class_without_adapter_averages_the_chosen_layers_and_an_adapter_brings_its_own(blip: Blip) -> None:
    taught = random_adapter(blip, "dog", layers=(1, 3), ensemble=(0.25, 0.75))
    found = layer_weights([None, taught, None], chosen=(0, 3))
    assert found.layers == (0, 1, 3)
    assert found.weights.tolist() == [[0.5, 0, 0.5], [0, 0.25, 0.75], [0.5, 0, 0.5]]


def test_layers_are_named_once_and_in_order() -> None:
    assert layer_weights([None], chosen=(3, 0)).layers == (0, 3)


def test_scores_are_mixed_by_hand() -> None:
    # The background (1 prompt) and a category (2 synonyms) at 1 patch of 2 layers.
    evidence = Evidence(
        patch_logits=torch.tensor([[[math.log(2)], [0.0], [0.0]], [[0.0], [math.log(3)], [0.0]]]),
        match_score=torch.tensor([1.0, 0.8, 0.4]),
        spans=((0, 1), (1, 3)),
    )
    weights = LayerWeights(layers=(0, 3), weights=torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    # Layer 0: softmax (1/2, 1/4, 1/4) · match = (0.5, 0.2, 0.1); layer 3: (1/5, 3/5, 1/5) · match = (0.2, 0.48, 0.08).
    expected = torch.tensor([[0.5 * 0.5 + 0.5 * 0.2], [0.25 * 0.2 + 0.75 * 0.48]])
    assert torch.allclose(weighted_scores(evidence, weights), expected)


def test_mixing_before_upsampling_equals_mixing_after() -> None:
    generator = torch.Generator().manual_seed(0)
    evidence = Evidence(
        patch_logits=torch.randn(3, 5, 6, generator=generator),
        match_score=torch.rand(5, generator=generator),
        spans=((0, 2), (2, 4), (4, 5)),
    )
    mix = torch.rand(3, 3, generator=generator).softmax(dim=1)
    before = upsample(weighted_scores(evidence, LayerWeights((0, 1, 2), mix)), (2, 3), (11, 13))
    after = torch.zeros(3, 11, 13)
    for layer in range(3):
        alone = LayerWeights((layer,), torch.ones(3, 1))
        one = Evidence(evidence.patch_logits[[layer]], evidence.match_score, evidence.spans)
        after += mix[:, layer, None, None] * upsample(weighted_scores(one, alone), (2, 3), (11, 13))
    assert torch.allclose(before, after, atol=1e-6)
