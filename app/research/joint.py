"""Protocol `joint`: the authors' way, every class in one set of parameters, which the background's prompts use too.

A photo over 4:1 is seen whole here, and in pieces by the words beside it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.method.backbone import EncodedImage
from app.method.frame import labels_to_input
from app.method.pipeline import score_map
from app.method.prediction import ClassMap
from app.method.prompts import Prompts, Query
from app.method.shot import IGNORE

from .dataset import LabelledPhoto
from .joint_tuning import JointTuning
from .subject import Predict, Subject


def joint(subject: Subject, supports: Mapping[int, Sequence[LabelledPhoto]], seed: int) -> Predict:
    """Prediction under parameters tuned on all supports together."""
    backbone, options, classes = subject.backbone, subject.options, subject.dataset.classes
    prompts = Prompts.of([Query((name,)) for name in classes[1:]], options.background)
    photos = list({photo.id: photo for support in supports.values() for photo in support}.values())
    random.Random(seed).shuffle(photos)
    images, labels = zip(*(_support(subject, photo) for photo in photos), strict=True)
    tuning = JointTuning(
        backbone, images, labels, text=backbone.tokenize(prompts.words), spans=prompts.spans, layers=subject.layers
    )
    for number in range(options.joint_epochs):
        for done, _ in enumerate(tuning.epoch()):
            subject.progress(done, (len(photos) + 1) // 2, f"tuning jointly, pass {number + 1}")

    def predict(photo: LabelledPhoto, asked: Sequence[int]) -> ClassMap:
        here = Prompts.of([Query((classes[number],)) for number in asked], options.background)
        image = subject.see(photo).encoded
        evidence = tuning.evidence(image, backbone.tokenize(here.words), here.spans)
        scores = score_map(
            backbone,
            image,
            tuning.mean_scores(evidence),
            [None] * len(here.spans),
            use_mask_decoder=options.use_mask_decoder,
        )
        probabilities = scores.probabilities((backbone.input_size,) * 2)
        match = evidence.best_match()
        return ClassMap((0, *asked), probabilities, match, match, subject.layers)

    return predict


def _support(subject: Subject, photo: LabelledPhoto) -> tuple[EncodedImage, Tensor]:
    """A photo that is learned from, and its labels on the network's input."""
    image = subject.see(photo)
    labels = torch.from_numpy(labels_to_input(subject.labels(photo), image.frame, outside=IGNORE)).long()
    return image.encoded, labels
