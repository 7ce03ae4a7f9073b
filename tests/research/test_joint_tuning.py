"""Joint tuning: properties that the parity cases in `test_parity.py` do not cover."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.backbones.blip import Blip
from app.method.backbone import EncodedImage
from app.method.prompts import Prompts, Query
from app.method.shot import IGNORE
from app.research.joint_tuning import JointTuning
from tests.models import INPUT_PX, random_blip


@pytest.fixture(scope="module")
def blip() -> Blip:
    """7 × 7 patches, 5 layers."""
    model, tokenizer = random_blip()
    return Blip(model, tokenizer, name="blip:random", input_size=INPUT_PX)


def image_of(blip: Blip, seed: int) -> EncodedImage:
    """Of a photo whose object, at the top left, is redder than the rest."""
    rgb = 0.5 * torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(seed))
    rgb[0, :48, :64] += 0.5
    return blip.encode_image(rgb[None])[0]


def labels(number: int) -> Tensor:
    """The object covers 3 × 4 of 7 × 7 patches; the last row is padding."""
    square = torch.zeros(112, 112, dtype=torch.long)
    square[:48, :64] = number
    square[96:] = IGNORE
    return square


@pytest.fixture
def tuning(blip: Blip) -> JointTuning:
    prompts = Prompts.of([Query(("dog",)), Query(("cat", "kitten"))], ("sky", "wall", "railway track"))
    return JointTuning(
        blip,
        [image_of(blip, seed) for seed in range(3)],
        [labels(1), labels(2), labels(1)],
        text=blip.tokenize(prompts.words),
        spans=prompts.spans,
        layers=(0, 3),
        learning_rate=2e-3,
    )


def test_the_loss_falls_and_the_base_model_stays(blip: Blip, tuning: JointTuning) -> None:
    before = {name: tensor.clone() for name, tensor in blip._model.state_dict().items()}
    losses = [list(tuning.epoch()) for _ in range(5)]
    assert [len(epoch) for epoch in losses] == [2] * 5  # 3 supports, 2 per step
    assert sum(losses[-1]) < sum(losses[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in blip._model.state_dict().items())


def test_the_class_map_is_of_probabilities(tuning: JointTuning) -> None:
    list(tuning.epoch())
    maps = tuning.class_map(tuning.images[0], tuning.text, tuning.spans)
    assert maps.shape == (3, 112, 112)
    assert not maps.requires_grad
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(112, 112))
