"""The baseline computes the same numbers as the service, so a ratio of their times is meaningful."""

from __future__ import annotations

import torch

from app.backbones.blip import Blip
from app.method.frame import imagenet_normalise
from app.method.pipeline import encode_one
from app.method.prompts import Prompts, Query
from app.research.joint_tuning import JointTuning, class_map_of
from benchmarks import plain
from tests.models import INPUT_PX, random_blip

LAYERS = (1, 3)
PROMPTS = Prompts.of([Query(("dog", "puppy")), Query(("hot air balloon",))], ["wall", "grass field"])


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, INPUT_PX, INPUT_PX, generator=torch.Generator().manual_seed(11))


def test_its_class_map_is_the_service_s() -> None:
    model, tokenizer = random_blip()
    backbone = Blip(model, tokenizer, input_size=INPUT_PX)
    text = backbone.tokenize(PROMPTS.words)
    (image,) = images(1)
    with torch.no_grad():
        expected = plain.class_map(model, imagenet_normalise(image), text, PROMPTS.spans, LAYERS)
        found = class_map_of(backbone, encode_one(backbone, image), text, PROMPTS.spans, LAYERS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_its_tuning_loses_as_the_service_s_does() -> None:
    model, tokenizer = random_blip()
    backbone = Blip(model, tokenizer, input_size=INPUT_PX)
    text = backbone.tokenize(PROMPTS.words)
    pixels = images(2)
    labels = torch.zeros(2, INPUT_PX, INPUT_PX, dtype=torch.long)
    labels[0, :50], labels[1, :, 60:], labels[1, :9] = 1, 2, 255
    tokens = [encode_one(backbone, image) for image in pixels]
    ours = JointTuning(backbone, tokens, list(labels), text=text, spans=PROMPTS.spans, layers=LAYERS)
    losses = [next(ours.epoch()) for _ in range(3)]
    theirs = plain.JointTuning(model, imagenet_normalise(pixels), labels, text, PROMPTS.spans, LAYERS)
    torch.testing.assert_close(torch.tensor([theirs.step() for _ in range(3)]), torch.tensor(losses), rtol=0, atol=1e-4)
    assert losses[2] < losses[0]
